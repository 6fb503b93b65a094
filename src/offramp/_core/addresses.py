"""Addresses of servers, and what may be said of them: neither a password nor a key.

Layer: _core.
"""

import ipaddress
import re
from contextlib import suppress
from urllib.parse import urlsplit

from offramp._core.errors import InputError

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")  # how a name differs from most keys
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")  # a name or an address, which all read alike


def checked_url(url: str, variable: str | None, *, argument: str = "key_env") -> tuple[str, str]:
    """An address without a slash at its end, and its host.

    Args:
        url: The address.
        variable: Environment variable of the key that is sent there, or None.
        argument: What the variable's name was given as, for messages.

    Raises:
        InputError: If it is none, holds a key, or a key would go over plain http.

    >>> checked_url("https://example.org/v1/", None)
    ('https://example.org/v1', 'example.org')
    """
    start = origin(url)
    if not start.startswith(("http:", "https:")):
        shown = "a text that is none" if isinstance(url, str) else repr(url)
        got = repr(start) if start else shown
        raise InputError(f"url must be an address such as 'https://host/v1', got {got}.")
    parts = urlsplit(url)
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError(
            f"url must hold no user, password, ? or #, got one with some at {start!r}: keys come "
            f"from an environment variable, named by {argument}."
        )
    if variable is not None and not _VARIABLE.fullmatch(str(variable)):  # it may be the key itself
        raise InputError(
            f"{argument} must be the name of an environment variable, of capitals, digits and '_', "
            "such as OPENAI_API_KEY; what was given is none, and is not shown here."
        )
    host = str(parts.hostname)
    if parts.scheme == "http" and variable is not None and not is_local(host):
        raise InputError(f"url must begin with https where a key is sent, got {start!r}.")
    return url.rstrip("/"), host


def is_local(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def origin(url: object) -> str:
    """Scheme, host and port of an address, which hold no key; nothing of what is none."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return ""
    with suppress(ValueError):  # brackets that do not close, a port that is none
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        if parts.hostname and _HOST.fullmatch(parts.hostname):
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return f"{parts.scheme}://{host}{port}"
    return ""
