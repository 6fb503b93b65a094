"""A language model behind an OpenAI-compatible endpoint, as a classifier.

The prompt names the labels; the answer is a label with its probability, of the tokens' own
probabilities or of what the model says in JSON. Tokens have prices, so each example has a cost.

Layer: adapters.  Needs the extra `services`.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np

from offramp._core.checks import check_class_names, check_record
from offramp._core.errors import InputError
from offramp._core.files import parse_json
from offramp._core.schema import to_json
from offramp._core.types import OnError
from offramp.adapters.connection import CallError, Connection
from offramp.adapters.journal import Answer
from offramp.adapters.limits import Limits, limits_of
from offramp.adapters.openai_settings import FIELD, LENGTHS, Form, OpenAISettings, Prices, plain
from offramp.adapters.service import Service
from offramp.stages import Stage
from offramp.stages.answers import Labels

_NO_NUMBERS = (LookupError, TypeError, ValueError, OverflowError)  # where answers should have some
_EXTRA_TOKENS = 64  # that a chat puts around a message, and more
_MISSING = ("NAType", "NaTType")  # of pandas
_JSON = 'Answer in JSON: {"label": one of the labels, "confidence": number from 0 to 1}.'


def from_openai(
    url: str,
    *,
    model: str,
    labels: Sequence[str],
    prompt: str,
    key_env: str | None = "OPENAI_API_KEY",
    answer: Form = "logprobs",
    prices: Prices | Mapping[str, Any] | None = None,
    max_tokens: int = 64,
    options: Mapping[str, Any] | None = None,
    on_error: OnError = "next",
    daily_cap: float | None = None,
    limits: Limits | dict[str, object] | None = None,
) -> Stage:
    """A chat-completions endpoint as a stage that answers with labels and confidences.

    An answer that is none of the labels counts as a label outside the classes, a refusal or an
    answer that cannot be read as one that is right with probability 0: both were paid for, both are
    wrong, and no policy takes them for a class. What could not be asked at all, after all attempts,
    is no answer; `on_error` says what it means.

    Args:
        url: Such as "https://api.openai.com/v1"; `/chat/completions` is added.
        model: Name of the model there.
        labels: The classes, as the model shall write them.
        prompt: What is asked: {row} stands for the row, {name} for a field of rows that are
            mappings or of tables, {labels} for the labels. Other braces stay as they are.
        key_env: Name of the environment variable that holds the key, which is read at each call
            and kept nowhere; None for a service that needs none.
        answer: "logprobs": the model writes the label alone; its confidence is the product of its
            tokens' probabilities. "json": it writes label and confidence as JSON, which is for
            services without logprobs; such confidences want calibrating.
        prices: Of a million tokens: {"input": 0.15, "output": 0.60}, and perhaps "request" and
            "unit" ("usd"). Without them answers have no price.
        max_tokens: Of an answer.
        options: Further fields of each request, such as {"seed": 1}; the temperature is 0 unless
            it is given here. An option that is None is left out: where a service calls the length
            otherwise, {"max_tokens": None, "max_completion_tokens": 64}.
        on_error: What it means that it has failed for good: "next" asks the next stage,
            "reference" the reference, "refuse" gives no answer.
        daily_cap: The most to spend in a day (UTC). Then it is not asked, and the stages before
            answer.
        limits: How it may be called (`Limits`), also as a mapping of some of the fields.

    Raises:
        InputError: If an argument is outside its domain.
        MissingExtraError: If httpx or tenacity is not installed.

    >>> stage = from_openai(
    ...     "http://127.0.0.1:8000/v1", model="tiny", labels=["good", "bad"], key_env=None,
    ...     prompt="Is this review good or bad? Answer with one word: {row}",
    ... )
    >>> stage.name, stage.class_names, stage.outputs
    ('tiny', ('good', 'bad'), 'confidence')
    """
    return openai_stage(
        OpenAISettings(
            url=url,
            model=model,
            labels=check_class_names(labels, None, name="labels"),
            prompt=prompt,
            key_env=key_env,
            answer=answer,
            prices=None if prices is None else check_record("prices", prices, Prices),
            max_tokens=max_tokens,
            options={}
            if options is None
            else dict(options)
            if isinstance(options, Mapping)
            else options,
            on_error=on_error,
            daily_cap=daily_cap,
            limits=limits_of(limits),
        )
    )


def openai_stage(settings: OpenAISettings) -> Stage:
    """The stage that some settings describe."""
    connection = Connection(settings.url, key_env=settings.key_env, limits=settings.limits)
    settings = replace(settings, url=connection.url)
    service = Service(
        ChatClassifier(settings),
        connection,
        on_error=settings.on_error,
        daily_cap=settings.daily_cap,
    )
    return Stage(settings.model, service, outputs="confidence", class_names=settings.labels)


@final
class ChatClassifier:
    """Asks for a label, and reads it.

    Args:
        settings: Of the stage.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        self.settings = settings
        self.unit = None if settings.prices is None else settings.prices.unit
        self.classes = len(settings.labels)
        self._numbers = {plain(label): k for k, label in enumerate(settings.labels)}
        self._others = Labels(settings.model, settings.labels)
        self.identity = _digest(
            {
                "url": settings.url,
                "prompt": settings.prompt,
                "labels": settings.labels,  # their order numbers the answers
                "prices": to_json(settings.prices),
                "body": self._body(""),  # model, options, and what the system is told
            }
        )
        self._refusal = Labels(self.identity).refusal  # never agrees with that of another service

    def digest(self, row: object) -> str:
        """Of the request, and of all that says what its answer means."""
        return _digest({"of": self.identity, "text": self.text(row)})

    def most(self, row: object) -> float:
        """The price of as many tokens as the texts have bytes, and of the longest answer."""
        if self.settings.prices is None:
            return 0.0
        body = self._body(self.text(row))
        sent = json.dumps([body["messages"], self.settings.options])  # which may hold texts as well
        written = max(body[name] for name in LENGTHS if name in body)
        return self.settings.prices.of(len(sent.encode()) + _EXTRA_TOKENS, written)

    def text(self, row: object) -> str:
        """The prompt about a row.

        Raises:
            InputError: If a field is not there.
        """
        fields = row if isinstance(row, Mapping) else {}
        known = {"row": row, **fields, "labels": ", ".join(self.settings.labels)}

        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name not in known:
                raise InputError(
                    f"prompt names {{{name}}}, which is no field of a row with {list(fields)}; a "
                    "row that is a text has no fields, and {row} stands for it."
                )
            return _shown(known[name])

        return FIELD.sub(put, self.settings.prompt)

    async def __call__(self, connection: Connection, row: object, digest: str) -> Answer:
        """Ask about a row."""
        said = await connection.ask(
            "/chat/completions",
            self._body(self.text(row)),
            # Services that know it do not count an attempt twice whose answer was lost.
            headers={"Idempotency-Key": digest},
        )
        price = self._price(said)
        try:
            return self._answer(said, price, connection)
        except CallError as error:
            raise CallError(str(error), paid=price) from None

    def _answer(self, said: Mapping[str, Any], price: float, connection: Connection) -> Answer:
        """What a service has said, for this price."""
        try:
            choice = said["choices"][0]
            text, refused = (_text(choice["message"].get(k)) for k in ("content", "refusal"))
            filtered = choice.get("finish_reason") == "content_filter"
        except (LookupError, TypeError, AttributeError):
            raise CallError("an answer without choices") from None
        kept = connection.clean(refused or text)
        if refused or filtered or not text.strip():
            return self._none(kept, price)
        found = self._of_json(text) if self.settings.answer == "json" else _of_tokens(text, choice)
        if found is None:
            return self._none(kept, price)
        return Answer(label=self._number(found[0]), confidence=found[1], price=price, text=kept)

    def _body(self, text: str) -> dict[str, Any]:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": settings.max_tokens,
        }
        if settings.answer == "logprobs":
            body["logprobs"] = True
        else:
            body["messages"].insert(0, {"role": "system", "content": _JSON})
            body["response_format"] = {"type": "json_object"}
        return {k: v for k, v in {**body, **settings.options}.items() if v is not None}

    def _price(self, said: Mapping[str, Any]) -> float:
        if self.settings.prices is None:
            return 0.0
        try:
            usage = said["usage"]
            read, written = float(usage["prompt_tokens"]), float(usage["completion_tokens"])
        except _NO_NUMBERS:
            raise CallError(
                "an answer without its usage, so nobody knows its price", paid=None
            ) from None
        price = self.settings.prices.of(read, written)
        if not (read >= 0 and written >= 0 and price < math.inf):
            raise CallError("an answer whose usage is no number of tokens", paid=None)
        return price

    def _none(self, text: str, price: float) -> Answer:
        """What was paid for and says nothing."""
        return Answer(label=self._refusal, confidence=0.0, price=price, text=text)

    def _number(self, label: str) -> int:
        """The class, or a number of its own for what is none."""
        known = self._numbers.get(plain(label))
        return self._others[plain(label)] if known is None else known

    def _of_json(self, text: str) -> tuple[str, float] | None:
        try:
            found = parse_json(text)
            label, confidence = found["label"], float(found["confidence"])
        except _NO_NUMBERS:
            return None
        return (label, confidence) if isinstance(label, str) and 0 <= confidence <= 1 else None


def _of_tokens(text: str, choice: Mapping[str, Any]) -> tuple[str, float]:
    """The label, and the product of its tokens' probabilities.

    Raises:
        CallError: If there are none: asking again would be of no use.
    """
    try:
        each = [float(token["logprob"]) for token in choice["logprobs"]["content"]]
        total = math.fsum(each)
    except _NO_NUMBERS:
        each, total = [], math.nan
    if not each or math.isnan(total):
        raise CallError("an answer without logprobs; this service may need answer='json'")
    return text, math.exp(min(total, 0.0))


def _shown(value: object) -> str:
    """What stands in a prompt for a value.

    Raises:
        InputError: If its text would not tell what it is.
    """
    kind = type(value)
    if (
        value is None
        or kind.__name__ in _MISSING
        or (isinstance(value, float | np.floating) and math.isnan(value))
    ):
        raise InputError(
            f"A row must hold a value for each field that the prompt names, got {value}. Fill "
            "gaps, or leave such rows out: an answer to them would be paid for."
        )
    plain = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    if isinstance(value, bytes) or plain:
        raise InputError(
            f"A row must be a text, numbers, or a mapping of such fields, got {kind.__name__}, "
            "whose text would not tell what it is. Give the text that the service shall read."
        )
    return str(value)


def _text(value: object) -> str:
    """A text of an answer; what is none says nothing."""
    return value if isinstance(value, str) else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
