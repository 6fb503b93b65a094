"""The socket at which a server listens.

Layer: serve.
"""

import errno
import socket

from offramp._core.errors import InputError

BACKLOG = 2048  # connections that wait to be taken


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: If the port is in use or not allowed, or there is no such address here.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
    except OSError as error:
        raise InputError(
            f"host must be an address of this machine, got {host!r}: {error}."
        ) from None
    held = socket.socket(family, kind, number)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        held.listen(BACKLOG)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port must be free, and {port} of {host} is in use. Give another, or 0 for any "
                "that is free."
            ) from None
        if error.errno == errno.EACCES:
            raise InputError(
                f"port must be one that you may use, got {port}; those from 1024 on are."
            ) from None
        raise InputError(
            f"host must be an address of this machine, got {host!r}: {error}."
        ) from None
    return held


def address_of(held: socket.socket) -> str:
    """The address that clients ask, of a socket that listens."""
    host, port, *_ = held.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
