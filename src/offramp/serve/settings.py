"""What a server takes, and how much of it.

Layer: serve.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from offramp._core.checks import check_choice, check_fraction, check_number, check_positive_int
from offramp._core.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # of a model, as an address holds it

OnAlarm = Literal["reference", "keep"]


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server; each protects those who wait from those who send.

    Args:
        host: Where it listens; by default this machine alone can ask.
        port: There; 0 for any that is free.
        backend: What runs the stages, as `offramp.load` takes it, like the next two.
        allow_network: Hosts that bundles with services may call.
        allow_import: Whether bundles may name Python code to import.
        allow_types: Types that their classifiers of scikit-learn may be made of.
        max_queue: Examples that are accepted and not answered, of each model.
        max_rows: Examples of one request.
        max_body: Bytes of one request, also after it was unpacked.
        max_pixels: Of one image.
        deadline: Seconds within which a request is answered that says none; None for any time.
        patience: Seconds that an example waits for others, before it goes on alone.
        body_seconds: Within which a request has to arrive.
        header_seconds: Within which its first line and headers have to.
        drain_seconds: Given to what was accepted, once the server is told to end.
        token: What a request has to bring as `Authorization: Bearer`; None where none is asked.
        gears: "auto" moves along the gears of a bundle under load, where it has some; "on" refuses
            bundles without; "off" stays in one; the name of a gear holds that one.
        audit: Share of the examples that the reference answers as well, in [0, 1].
        on_alarm: What answers once a promise is broken: "reference", or "keep" what did.
        watch: Folder where audits and what they came to are kept over a restart.
        workers: Processes that answer at one port.
        part: Which of these this is, from 0.
        hang_seconds: After which one of several is ended and started anew that answers nothing, or
            whose stage has not come to the end of a batch.
        load_seconds: After which one of several is ended that has not come to the end of loading;
            one that hangs three times in a row while it loads is given up.
        engines: Threads that run stages, in each.
        decoders: Threads that read requests and decode images.

    Raises:
        InputError: If one is outside its domain.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    backend: str | None = None
    allow_network: tuple[str, ...] = ()
    allow_types: tuple[str, ...] = ()
    allow_import: bool = False
    max_queue: int = 4096
    max_rows: int = 1024
    max_body: int = 64 * 2**20
    max_pixels: int = 40_000_000
    deadline: float | None = None
    patience: float = 0.002
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    drain_seconds: float = 30.0
    token: str | None = None
    gears: str = "auto"
    audit: float = 0.0
    on_alarm: OnAlarm = "keep"
    watch: Path | None = None
    workers: int = 1
    part: int = 0
    hang_seconds: float = 60.0
    load_seconds: float = 600.0
    engines: int = 1
    decoders: int = 2

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_rows", "max_body", "max_pixels"):
            check_positive_int(name, getattr(self, name))
        for name in ("workers", "engines", "decoders"):
            check_positive_int(name, getattr(self, name))
        check_fraction("audit", self.audit)
        check_choice("on_alarm", self.on_alarm, ("reference", "keep"))
        limits = ("body_seconds", "header_seconds", "drain_seconds", "hang_seconds", "load_seconds")
        for name in ("deadline", *limits):
            value = getattr(self, name)
            if value is not None and not check_number(name, value, "of seconds") > 0:
                raise InputError(f"{name} must be more than 0 seconds, got {value}.")
        if self.token is not None and not self.token.strip():
            raise InputError("token must not be empty; leave it out to ask for none.")
        if not 0 <= self.port < 2**16:
            raise InputError(f"port must be in [0, 65535], got {self.port}.")


def token_from(variable: str, environment: Mapping[str, str]) -> str:
    """The token that an environment variable holds.

    Raises:
        InputError: If it holds none, or one that no header can carry.

    >>> token_from("TOKEN", {"TOKEN": "secret"})
    'secret'
    """
    token = environment.get(variable, "").strip()
    if not token:
        raise InputError(
            f"The environment variable {variable} must hold the token, and is "
            f"{'empty' if variable in environment else 'not set'}. Set it, for example "
            f"export {variable}=..., or leave --token-env out to ask for none."
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(f"What {variable} holds is no token: a header cannot carry it.")
    return token


def check_name(name: str) -> str:
    """Return the name of a model, if an address can hold it.

    Raises:
        InputError: Otherwise.

    >>> check_name("resnet-56")
    'resnet-56'
    """
    if NAME.fullmatch(name) is None:
        raise InputError(
            "The name of a model must be of letters, digits, '_', '-' and '.', and begin with a "
            f"letter or digit, got {name!r}. Give another: name=folder."
        )
    return name
