"""How a device asks its cloud: how long, how often, how much, and when not at all.

Layer: edge.  Needs nothing but Python.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from offramp._core.addresses import checked_url
from offramp._core.errors import InputError


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a device asks its cloud.

    Args:
        url: Address of the server, such as "https://cloud.example"; None for a device alone.
        model: What the server calls the cloud's bundle.
        timeout: Seconds after which what has no answer is answered by the device, all attempts and
            the waits between them together.
        attempts: How often a call is tried in all. No connection, 429, 408, 425 and 500 and above
            are tried again; any other refusal never.
        longest_wait: Seconds to wait before another attempt at most.
        breaker_failures: After so many failed attempts in a row nobody is asked for a while.
        breaker_seconds: How long that is; one call tries then.
        min_time_between: Seconds between two calls at least; what comes sooner is answered here.
        bytes_per_day: The most to send in a day (UTC), or None.
        usd_per_call: What a call costs.
        usd_per_day: The most to spend in a day (UTC), or None.
        confident_audit_rate: Share of the answers of the device, in [0, 1], that are sent all the
            same, so that the server's watch hears of them.
        queue: Folder in which what the cloud could not be asked waits for `Client.flush`; None
            for none.
        queue_most: Calls that wait there at most; the oldest give way.
        token_env: Environment variable that holds the server's token, or None.
        max_rows: Examples of one call at most.

    Raises:
        InputError: If a value is outside its domain, or a token would go over plain http.

    >>> Settings(url="http://127.0.0.1:8000").timeout
    2.0
    """

    url: str | None = None
    model: str = "cloud"
    timeout: float = 2.0
    attempts: int = 3
    longest_wait: float = 1.0
    breaker_failures: int = 3
    breaker_seconds: float = 10.0
    min_time_between: float = 0.0
    bytes_per_day: int | None = None
    usd_per_call: float = 0.0
    usd_per_day: float | None = None
    confident_audit_rate: float = 0.0
    queue: Path | str | None = None
    queue_most: int = 1000
    token_env: str | None = None
    max_rows: int = 256

    def __post_init__(self) -> None:
        for name in ("attempts", "breaker_failures", "queue_most", "max_rows"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for name in ("timeout", "longest_wait", "breaker_seconds"):
            _check_number(name, getattr(self, name), above=name == "timeout")
        for name in ("min_time_between", "usd_per_call", "bytes_per_day", "usd_per_day"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        _check_number("confident_audit_rate", self.confident_audit_rate)
        if self.confident_audit_rate > 1:
            raise InputError(
                f"confident_audit_rate must be in [0, 1], got {self.confident_audit_rate!r}."
            )
        if self.usd_per_day is not None and not self.usd_per_call:
            raise InputError("usd_per_day needs usd_per_call, what a call costs.")
        self._check_url()

    def _check_url(self) -> None:
        if self.url is not None:
            checked_url(self.url, self.token_env, argument="token_env")

    def token(self, environment: Mapping[str, str] = os.environ) -> str | None:
        """The token.

        Raises:
            InputError: If the variable holds none.
        """
        if self.token_env is None:
            return None
        token = environment.get(self.token_env, "").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(f"The environment variable {self.token_env} must hold the token.")
        return token


def _check_number(name: str, value: object, *, above: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value < math.inf and (value > 0 or not above)):  # type: ignore[operator]
        wanted = "above 0" if above else "at least 0"
        raise InputError(f"{name} must be a finite number, {wanted}, got {value!r}.")
