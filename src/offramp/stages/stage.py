"""A stage: what turns a carry (the raw input, or what an earlier stage computed) into logits.

Networks may write into their input (`x -= mean`); batches stay what they were.

Layer: stages.  Source: docs/adr/0030.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.arrays import kind_of, tensor_of
from offramp._core.batch import RowList, apply, as_batch, as_rows, to_device
from offramp._core.carry import Carry, RawInput
from offramp._core.checks import (
    check_choice,
    check_class_count,
    check_class_names,
    check_shape,
    check_text,
)
from offramp._core.device import device_of
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput, log_probabilities
from offramp._core.types import FORM_OF, STAGE_FORMS, OnError, OutputForm, Raw, StageForm
from offramp.models import ModelSpec, SeveralLogitsError, extract_logits
from offramp.stages.answers import Labels, labeled, scores_of
from offramp.stages.cutting.spec import SegmentSpec
from offramp.stages.fusing.piece import ALONE, InPiece
from offramp.stages.reading import Reading
from offramp.stages.transforms import Domain, Look, Transforms, chained, domain_of, key_of


@final
class Stage(nn.Module):
    """A segment of computation and what makes class scores of its result.

    A whole network is one module without a head: it gives the scores and no carry. In early exit
    the module is a segment of a network; what it gives is the carry for the stages that continue
    it, and the head makes scores of it. So a segment can run without its head.

    Args:
        name: Unique within a cascade.
        module: Reads the raw input or the carry of `source`. A tuple is passed as positional, a
            mapping as named arguments. Without a head it gives the logits `(m, c)`, in any form
            that `offramp.models.extract_logits` understands. A module with `reads_rows = True` is
            a function on rows: it gets them as one argument, as `offramp._core.batch.as_rows`
            takes them.
        head: Reads what `module` gives, the carry, and gives logits.
        transform: Applied to the raw input first, one module or several in order; belongs to stages
            that read it. With `reads_rows = True` it takes rows of any type, else tensors.
        source: Name of the earlier stage whose carry it reads, or None for the raw input.
        group: Stages of one group are alternative heads on one `module`, run and charged once.
            By default a stage is alone in the group of its own name.
        spec: How to build `module` again, or None if nobody knows.
        head_spec: How to build `head` again, or None if nobody knows.
        outputs: What a whole network, function or service answers with. "logits". "probabilities":
            `(m, c)`, whose logarithms are the logits. "confidence": labels `(m,)` and the
            probabilities `(m,)` that they are right, in a tuple or under "labels" and "confidence",
            with "prices" `(m,)` where answers cost something; of logits the best label and its
            probability are taken. "labels": `(m,)`, or ranked
            `(m, r)`, best first, for policies that compare labels alone; of logits the best.
            Labels are whole numbers, or names where there are `class_names`; one that is no class
            is a wrong answer, and so is None, for no answer. "features": of tasks without classes,
            numbers `(m,)` or `(m, d)` that a policy decides by; the answer may be among them.
            "signals": the same of a stage that answers nothing, such as the length of a prompt.
        classes: Number of classes `c`. It picks the logits where a network returns several tensors,
            and is needed where one gives labels. A cascade says it where it has class names.
        class_names: Names of the classes in the order of the logits, where the network tells them;
            by default the module's attribute of this name, if it has one.
        part: What runs in one piece with others, and where its answer comes from then.

    Raises:
        InputError: If the name is empty, a stage with a source has a transform, or one with a
            head or source declares other outputs than logits.

    >>> stage = Stage("tiny", nn.Linear(2, 3))
    >>> said, carry = stage.run(torch.zeros(5, 2))
    >>> said.logits.shape, carry
    (torch.Size([5, 3]), None)
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        head: nn.Module | None = None,
        transform: Transforms = None,
        source: str | None = None,
        group: str | None = None,
        spec: ModelSpec | SegmentSpec | None = None,
        head_spec: ModelSpec | None = None,
        outputs: StageForm = "logits",
        classes: int | None = None,
        class_names: Sequence[str] = (),
        part: InPiece = ALONE,
    ) -> None:
        super().__init__()
        check_text("name", name)
        if transform is not None and source is not None:
            raise InputError(
                f"Stage {name!r} reads the carry of {source!r}; a transform belongs to stages "
                "that read the raw input."
            )
        check_choice("outputs", outputs, STAGE_FORMS)
        if outputs != "logits" and (head is not None or source is not None):
            raise InputError(
                f"Stage {name!r} is an exit, which answers with logits; outputs={outputs!r} is for "
                "whole networks and services."
            )
        names = check_class_names(class_names, None)
        self.class_names = names or tuple(getattr(module, "class_names", ()))
        classes = check_class_count("classes", classes) or len(self.class_names) or None
        self.outputs, self.classes = outputs, check_class_count("The number of classes", classes)
        strict = getattr(module, "strict", False)
        service = getattr(module, "on_error", None) is not None
        self._labels = Labels(name, self.class_names, strict=strict, service=service)
        self.name = name
        self.module = module
        self.head = head
        self.transform = chained(transform)
        self.source = source
        self.group = name if group is None else group
        self.spec = spec
        self.head_spec = head_spec
        self.part = part
        self.asks_alone = bool(getattr(module, "asks_alone", False))  # each row by itself
        self.keeps_company = self.asks_alone  # True once `check_company` has found it so
        # A function on rows may change lists and tables, which no counter of torch tells.
        self.calls_on_rows = getattr(module, "reads_rows", False)
        self._look = Look(f"stage {name!r}", part.domain)
        self._reads_tensors = not self.calls_on_rows and not part.ran and part.domain is None
        self._reads = Reading(f"Stage {name!r}", copies=self.calls_on_rows)
        self._head_reads = Reading(f"The head of stage {name!r}")
        self._prepares = Reading(f"The transform of stage {name!r}")
        self._reads_shared = Reading(f"Stage {name!r}", copies=self.calls_on_rows)
        self._keyed: tuple[nn.Module | None, str | None] = (None, None)

    def named(self, name: str) -> "Stage":
        """The same stage under another name, alone in its group.

        >>> Stage("a", nn.Linear(2, 3)).named("b").name
        'b'
        """
        return self.replaced(name=name, group=None)

    def replaced(self, **changes: Any) -> "Stage":  # noqa: ANN401  (arguments of a stage)
        """The same stage with other arguments in place of its own.

        >>> Stage("a", nn.Linear(2, 3)).replaced(classes=3).classes
        3
        """
        return Stage(**{name: getattr(self, name) for name in _ARGUMENTS} | changes)

    @property
    def form(self) -> OutputForm:
        """The form of what it says; probabilities come as logits."""
        return FORM_OF[self.outputs]

    @property
    def silent(self) -> bool:
        """True of a stage that answers nothing: it must not be the last that an example visits."""
        return self.outputs == "signals"

    @property
    def gives_carry(self) -> bool:
        """True if later stages can continue from here."""
        return self.head is not None or bool(self.part)

    @property
    def waits(self) -> int:
        """Of a service how many calls it takes at a time, while others may compute; else 0."""
        return getattr(self.module, "waits", 0)

    @property
    def on_error(self) -> OnError | None:
        """What it means that a service has failed for good; None for what is no service."""
        return getattr(self.module, "on_error", None)

    @property
    def unit(self) -> str | None:
        """Unit of the prices that its answers tell; None where they tell none."""
        return getattr(self.module, "unit", None)

    @property
    def domain(self) -> Domain | None:
        """Lowest and highest number of the raw input that it reads; None if nobody knows."""
        return domain_of(self.transform) if self.part.domain is None else self.part.domain

    @property
    def reads_rows(self) -> bool:
        """True if it reads raw input that is no tensor."""
        first = self.module if self.transform is None else self.transform
        return self.source is None and getattr(first, "reads_rows", False)

    def segment(self, carry: Raw) -> Any:  # noqa: ANN401  (a carry is whatever the next module reads)
        """Run the segment alone; the carry stays what it was, even if the segment writes into it.

        Args:
            carry: The raw batch, which may come as `RawInput`, or what the source's segment gave.

        Returns:
            What `answer` reads: the carry of this stage, or a whole network's output.
        """
        kind, part = type(carry), self.part
        if kind is Tensor and self._reads_tensors and self._modules.get("transform") is None:
            result = self._reads(self.__dict__["_modules"]["module"], carry)  # no slow look-up
            return Carry.of(result) if part.gives_logits else result
        if part.domain is not None:
            self._look(None, carry.rows if kind is RawInput else carry)
        if kind is Carry:
            if part.ran:
                return carry
            carry = carry.tensors
        elif part.ran:
            raise InputError(f"Stage {self.name!r} runs in one piece with others; none has run.")
        if kind is RawInput and (key := self.transform_key) in carry.shared:
            result = self._reads_shared(self._computed_of, carry.of(key, self._prepared))
        else:
            result = self._reads(self._computed, carry.rows if kind is RawInput else carry)
        return Carry.of(result) if part.gives_logits else result

    @property
    def transform_key(self) -> str | None:
        """The same for stages whose transforms are equal; None where that cannot be said."""
        transform = self.transform
        if self._keyed[0] is not transform:
            self._keyed = (transform, key_of(transform))
        return self._keyed[1]

    def prepare(self, raw: Raw) -> Any:  # noqa: ANN401  (whatever the module reads)
        """What the module reads of the raw input."""
        given = raw if type(raw) is Tensor or self.reads_rows else as_batch(raw)
        if self.transform is None:
            return given
        self._look(self.transform, given)
        made = self.transform(given)
        if type(given) is Tensor or not self.reads_rows:
            return made
        return to_device(made, device_of(self.module))

    def _computed(self, carry: Raw) -> Any:  # noqa: ANN401
        modules = self.__dict__["_modules"]  # no slow look-up
        if type(carry) is RowList and self.calls_on_rows and modules.get("transform") is None:
            return self._computed_of(carry)  # nothing is made of rows for a function
        if self.source is None and (self.transform is not None or type(carry) is not Tensor):
            carry = self.prepare(carry)
        return self._computed_of(carry)

    def _prepared(self, raw: Raw) -> Any:  # noqa: ANN401
        return self._prepares(self.prepare, raw)

    def _computed_of(self, given: Any) -> Any:  # noqa: ANN401
        if not self.calls_on_rows:
            return apply(self.module, given)
        try:
            return self.__dict__["_modules"]["module"](given)
        except Exception as error:
            error.add_note(f"Raised by the function of stage {self.name!r}.")
            raise

    def answer(self, result: Any) -> StageOutput:  # noqa: ANN401
        """What the stage says, given what `segment` gave.

        Returns:
            Logits `(m, c)`, float32; or, as declared, labels and confidences `(m,)`.

        Raises:
            InputError: If there are no logits `(m, c)` with c >= 2 in it.
        """
        form = FORM_OF[self.outputs]
        if form == "features":
            return self._featured(result)
        if form != "logits":
            return self._labeled(result)
        logits = self._logits(result)
        if self.outputs == "probabilities":
            logits = self._logs_of(logits)
        return StageOutput(classes=logits.shape[1], logits=logits)

    def _logs_of(self, given: Tensor) -> Tensor:
        """Logarithms of probabilities; NaN for those whom a service has not answered."""
        whose = f"The probabilities of stage {self.name!r}"
        if self.on_error is None:
            return log_probabilities(whose, given)
        silent = given.isnan().all(dim=-1, keepdim=True)
        said = log_probabilities(whose, torch.where(silent, 1 / given.shape[-1], given))
        return said.masked_fill(silent, torch.nan)

    def _featured(self, result: Any) -> StageOutput:  # noqa: ANN401
        """Numbers to decide by, of tasks without classes."""
        values = tensor_of(f"features of stage {self.name!r}", result).float()
        values = values[:, None] if values.dim() == 1 else values
        check_shape(f"features of stage {self.name!r}", values.shape, (None, None))
        return StageOutput(classes=1, features=values)

    def _labeled(self, result: Any) -> StageOutput:  # noqa: ANN401
        """Labels, with confidences if these are declared; or those of logits."""
        found, classes = self._labels_in(result), self.classes
        if found is None:
            logits = self._logits(result)
            sure, best = logits.softmax(dim=1).max(dim=1)
            found, classes = (best, sure), logits.shape[1]
        labels, confidence = found
        given = confidence if self.outputs == "confidence" else None
        said = labeled(self.name, self._labels, classes, labels, given)
        prices = result.get("prices") if isinstance(result, Mapping) else None
        return said if prices is None else said.priced(tensor_of("prices", prices))

    def _labels_in(self, result: Any) -> tuple[Any, Any] | None:  # noqa: ANN401
        """Labels and confidences where they were given, None where a network gave logits."""
        alone = self.outputs == "labels"
        if isinstance(result, Mapping) and "labels" in result and (alone or "confidence" in result):
            return result["labels"], result.get("confidence")
        if self.calls_on_rows and alone:
            return result, None
        pair = isinstance(result, tuple | list) and len(result) == 2
        if self.calls_on_rows:
            if pair and isinstance(result, tuple) and result[1] is not None:
                return result
            raise InputError(
                f"Stage {self.name!r} must give labels and confidences, (m,) each, in a tuple, got "
                f"{kind_of(result)}. What gives labels alone is outputs='labels'."
            )
        if pair and all(isinstance(part, Tensor) and part.dim() == 1 for part in result):
            return result[0], result[1]
        integers = isinstance(result, Tensor) and not result.is_floating_point()
        return (result, None) if alone and integers else None

    def _logits(self, result: Any) -> Float[Tensor, "m c"]:  # noqa: ANN401
        if self.calls_on_rows and not isinstance(result, Tensor):
            result = scores_of(self.name, result, self.class_names)
        try:
            if type(result) is Carry:
                said = self._of_piece(result)
            else:
                head = self._modules.get("head")
                said = result if head is None else self._head_reads(head, result)
            plain = type(said) is Tensor and said.ndim == 2
            logits = said if plain else extract_logits(said, self.classes)
        except SeveralLogitsError as error:
            raise SeveralLogitsError(f"Stage {self.name!r}: {error}", error.widths) from error
        except InputError as error:
            raise InputError(f"Stage {self.name!r} gives no logits. {error}") from error
        if logits.shape[1] < 2:
            raise InputError(
                f"Stage {self.name!r} must give logits for at least 2 classes, got shape "
                f"{tuple(logits.shape)}; a single score has to become two, such as (0, score)."
            )
        return logits if logits.dtype is torch.float32 else logits.to(torch.float32)

    def _of_piece(self, carry: Carry) -> Any:  # noqa: ANN401  (what a head gives)
        """The logits that came along, or what the head makes of what came with them."""
        if self.part.column is not None:
            return carry.logits[:, self.part.column]
        if self.head is None:
            raise InputError(unasked_text(self.name))
        return self._head_reads(self.head, carry.tensors)

    def run(self, carry: Raw) -> tuple[StageOutput, Any]:
        """Run segment and head.

        Args:
            carry: The raw batch of `m` examples, or the carry of the source.

        Returns:
            What the stage says of them; and the carry, None for a whole network.
        """
        result = self.segment(carry)
        return self.answer(result), result if self.gives_carry else None


_ARGUMENTS = tuple(inspect.signature(Stage).parameters)


def unasked_text(stage: str) -> str:
    """What is wrong where the answer of a stage is needed that nobody wanted when it was joined."""
    return (
        f"Stage {stage!r} was joined with others, and its answers were not among those asked for. "
        "Join them anew: fuse(cascade, blocks, asked=[...])."
    )


def take_in(stages: Iterable[Stage]) -> Callable[[object], Raw]:
    """What makes raw input a batch for some stages: rows of any type only where one reads them.

    >>> take_in([Stage("a", nn.Linear(2, 3))])([[1.0, 2.0]])
    tensor([[1., 2.]])
    """
    return as_rows if any(stage.reads_rows for stage in stages) else as_batch


def shared_transforms(stages: Iterable[Stage]) -> frozenset[str]:
    """Keys of the transforms that segments of several stages begin with.

    >>> from offramp.stages.transforms import Normalize
    >>> stages = [Stage(name, nn.Flatten(), transform=Normalize(0.5)) for name in "ab"]
    >>> len(shared_transforms(stages)), len(shared_transforms(stages[:1]))
    (1, 0)
    """
    groups: dict[str, set[str]] = {}
    for stage in stages:
        if stage.source is None and stage.transform_key is not None:
            groups.setdefault(stage.transform_key, set()).add(stage.group)
    return frozenset(key for key, readers in groups.items() if len(readers) > 1)


def with_shared(stages: Iterable[Stage], batch: Raw) -> Raw:
    """Raw input whose equal transforms run once for some stages."""
    shared = shared_transforms(stages)
    return RawInput(batch, shared) if shared else batch


def read_by(module: nn.Module, transform: Transforms, raw: object) -> Any:  # noqa: ANN401
    """What a network reads of some raw input.

    >>> from offramp.stages.transforms import Pad
    >>> read_by(nn.Embedding(9, 2), Pad(mask=None), [[1, 2], [3]])
    tensor([[1, 2],
            [3, 0]])
    """
    stage = Stage("network", module, transform=transform)
    return stage.prepare(take_in([stage])(raw))
