"""A TCP proxy that does what links do: late, slow, cut off, half closed, gone for a while."""

import queue
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

_PART = 4096
_END, _RESET = object(), object()  # behind the last part


@dataclass
class Faults:
    """What the link does; may be changed while it runs.

    Args:
        latency: Seconds that what is sent is on its way, in one direction.
        jitter: Seconds that are drawn on top.
        bandwidth: Bytes in a second, or None.
        drop: Share of connections whose bytes never arrive.
        reset: Share of connections that are reset once the request has come.
        half_close: Whether the answer is cut off in the middle, by an orderly end.
        outage: Whether nobody is let in.
        stall: Whether what comes is held back.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    drop: float = 0.0
    reset: float = 0.0
    half_close: bool = False
    outage: bool = False
    stall: bool = False
    seed: int = 0
    drawn: Random = field(default_factory=lambda: Random(0))


class Proxy:
    """Listens on a free port of this machine, and passes on what comes."""

    def __init__(self, url, faults):
        parts = urlsplit(url)
        self._to = (parts.hostname, parts.port)
        self.faults, self.connections, self.bytes_up = faults, 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open, self._lock, self._closing = set(), threading.Lock(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                came, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            faults = self.faults
            if faults.outage:
                _reset(came)
                continue
            try:
                there = socket.create_connection(self._to, timeout=5)
            except OSError:
                _reset(came)
                continue
            with self._lock:
                self._open |= {came, there}
            lost = faults.drawn.random() < faults.drop
            cut = faults.drawn.random() < faults.reset
            for source, target, up in ((came, there, True), (there, came, False)):
                threading.Thread(
                    target=self._pass, args=(source, target, up, lost, cut), daemon=True
                ).start()

    def _pass(self, source, target, up, lost, cut):
        """Read what comes, and note when it would arrive; another thread hands it on then.

        What is on its way does not keep what comes behind it from setting out.
        """
        coming, free = queue.SimpleQueue(), 0.0  # when the link has carried what came before
        threading.Thread(
            target=self._hand_on, args=(source, target, up, coming), daemon=True
        ).start()
        with suppress(OSError):
            while part := source.recv(_PART):
                faults = self.faults
                while (lost or faults.stall) and not self._closing:
                    time.sleep(0.01)
                    faults = self.faults
                if cut and not up:
                    break
                free = max(free, time.monotonic())
                free += len(part) / faults.bandwidth if faults.bandwidth else 0.0
                coming.put((free + faults.latency + faults.jitter * faults.drawn.random(), part))
        coming.put((time.monotonic() + self.faults.latency, _RESET if cut and not up else _END))

    def _hand_on(self, source, target, up, coming):
        with suppress(OSError):
            while True:
                at, part = coming.get()
                time.sleep(max(at - time.monotonic(), 0.0))
                faults = self.faults
                if faults.outage or part is _RESET:
                    _reset(source)
                    _reset(target)
                    return
                if part is _END:
                    target.shutdown(socket.SHUT_WR)
                    return
                if faults.half_close and not up:
                    target.sendall(part[: len(part) // 2])
                    target.shutdown(socket.SHUT_WR)
                    return
                if up:
                    self.bytes_up += len(part)
                target.sendall(part)

    def cut_off(self):
        """Reset everything that is open."""
        with self._lock:
            held, self._open = self._open, set()
        for each in held:
            _reset(each)

    def close(self):
        self._closing = True
        self._listener.close()
        self.cut_off()


def _reset(held):
    """Close so that the other side sees a reset."""
    with suppress(OSError):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    with suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)
    held.close()


@contextmanager
def proxied(url, **faults):
    """A proxy before a server, while within."""
    proxy = Proxy(url, Faults(**faults))
    try:
        yield proxy
    finally:
        proxy.close()
