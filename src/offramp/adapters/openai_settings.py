"""What is known of a chat-completions endpoint as a stage, and what its tokens cost.

Layer: adapters.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, final

from offramp._core.addresses import checked_url
from offramp._core.checks import (
    check_choice,
    check_class_names,
    check_not_negative,
    check_positive_int,
    check_text,
)
from offramp._core.errors import InputError
from offramp._core.schema import omitted
from offramp._core.types import ON_ERROR, OnError
from offramp.adapters.limits import Limits

Form = Literal["logprobs", "json"]
FORMS: tuple[Form, ...] = ("logprobs", "json")
FIELD = re.compile(r"\{(\w+)\}")  # of a prompt
LENGTHS = ("max_tokens", "max_completion_tokens")  # bounds of an answer, by several names

_MILLION = 1e6
_RESERVED = frozenset({"model", "messages", "logprobs", "stream", "n"})


@final
@dataclass(frozen=True, kw_only=True)
class Prices:
    """What tokens cost.

    Args:
        input: A million tokens of the prompt.
        output: A million tokens of the answer.
        request: Each answer, whatever its length.
        unit: Of the money.

    Raises:
        InputError: If a price is negative.
    """

    input: float
    output: float
    request: float = omitted(0.0)
    unit: str = omitted("usd")

    def __post_init__(self) -> None:
        check_text("prices: unit", self.unit)
        for name in ("input", "output", "request"):
            check_not_negative(f"prices: {name}", getattr(self, name))

    def of(self, read: float, written: float) -> float:
        """What so many tokens cost."""
        return self.request + (read * self.input + written * self.output) / _MILLION


@final
@dataclass(frozen=True, kw_only=True)
class OpenAISettings:
    """All that is known of such a stage, without its key; the fields are those of `from_openai`."""

    url: str
    model: str
    labels: tuple[str, ...]
    prompt: str
    key_env: str | None = "OPENAI_API_KEY"
    answer: Form = "logprobs"
    prices: Prices | None = None
    max_tokens: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    on_error: OnError = "next"
    daily_cap: float | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        checked_url(self.url, self.key_env)
        for name in ("model", "prompt"):
            check_text(name, getattr(self, name))
        if self.daily_cap is not None:
            check_not_negative("daily_cap", self.daily_cap)
        check_choice("on_error", self.on_error, ON_ERROR)
        check_choice("answer", self.answer, FORMS)
        check_positive_int("max_tokens", self.max_tokens)
        check_class_names(self.labels, None, name="labels")
        if len(self.labels) < 2 or not all(map(plain, self.labels)):
            raise InputError(f"labels must be at least 2 texts, got {list(self.labels)}.")
        if len({plain(label) for label in self.labels}) < len(self.labels):
            raise InputError("labels must differ in more than case, quotes and points.")
        if not {*FIELD.findall(self.prompt)} - {"labels"}:  # else each row asks the same
            raise InputError(
                "prompt must say where the example goes: {row}, or {title} for the field 'title' "
                f"of rows with several, got {self.prompt!r}."
            )
        self._check_options()

    def _check_options(self) -> None:
        options = self.options
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise InputError(f"options must be a dict of fields by name, got {options!r}.")
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"options must be what JSON can hold: {error}.") from None
        taken = sorted(_RESERVED & set(options))
        if taken:
            raise InputError(f"options must not hold {taken}: they are set by this adapter.")
        lengths = [options[name] for name in LENGTHS if options.get(name) is not None]
        for length in lengths:
            check_positive_int("options: the length of an answer", length)
        if not lengths and "max_tokens" in options and self.prices is not None:
            raise InputError(
                "options must not take max_tokens away where there are prices: an answer of any "
                "length has no highest price. Give another bound, such as max_completion_tokens."
            )


def plain(label: str) -> str:
    """A label without what models put around it."""
    return label.strip().strip("\"'`*.").strip().casefold()
