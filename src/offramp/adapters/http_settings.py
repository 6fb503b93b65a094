"""What is known of a stage that another server runs: what a bundle holds of it.

Layer: adapters.
"""

import re
from dataclasses import dataclass, field
from typing import final

from offramp._core.addresses import checked_url
from offramp._core.checks import check_choice, check_class_names, check_positive_int
from offramp._core.errors import InputError
from offramp._core.open_inference import DATATYPES
from offramp._core.schema import omitted
from offramp._core.types import ON_ERROR, OnError
from offramp.adapters.http_metadata import TYPES, HttpForm
from offramp.adapters.limits import Limits


@final
@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """All that is known of such a stage, without its key; most fields are those of `from_http`.

    `inputs` and `outputs` hold the names and types of tensors, as the server has told them; `order`
    says for each class of the answer which of the server's it is, where the order is another.
    `binary` says whether tensors go as they lie in memory, not as JSON.
    """

    url: str
    model: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    form: HttpForm
    classes: int
    class_names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    binary: bool = omitted(False)
    key_env: str | None = None
    max_batch: int = 64
    on_error: OnError = "next"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        checked_url(self.url, self.key_env)
        if re.fullmatch(r"[\w.-]*\w[\w.-]*(/versions/\w[\w.-]*)?", str(self.model)) is None:
            raise InputError(
                "model must be the name of a model on the server, of letters, digits, '.', '_' and "
                f"'-', got {self.model!r}."
            )
        check_choice("form", self.form, TYPES)
        check_choice("on_error", self.on_error, ON_ERROR)
        check_positive_int("max_batch", self.max_batch)
        for name, kind in self.inputs:
            check_choice(f"the type of input {name!r}", kind, DATATYPES)
        wanted = len(TYPES[self.form])
        if not self.inputs or len(self.outputs) != wanted or self.classes < 2:
            raise InputError(
                f"A stage of {self.form} needs inputs, {wanted} outputs and at least 2 classes, "
                f"got {len(self.inputs)}, {list(self.outputs)} and {self.classes}."
            )
        check_class_names(self.class_names, self.classes)
        if self.order and sorted(self.order) != list(range(self.classes)):
            raise InputError(
                f"order must have each of 0 to {self.classes - 1} once, got {self.order[:20]}."
            )
