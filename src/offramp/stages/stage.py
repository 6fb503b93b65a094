"""A stage: what turns a carry (the raw input, or what an earlier stage computed) into logits.

Networks may write into their input (`x -= mean`); batches stay what they were.

Layer: stages.  Source: docs/adr/0030.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.checks import check_choice
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.outputs import StageOutput, labels_with_confidence
from offramp._core.types import Batch, OutputForm
from offramp.models import ModelSpec, SeveralLogitsError, extract_logits
from offramp.stages.cutting.spec import SegmentSpec


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
            that `offramp.models.extract_logits` understands.
        head: Reads what `module` gives, the carry, and gives logits.
        preprocess: Applied to the raw input first; belongs to stages that read it.
        source: Name of the earlier stage whose carry it reads, or None for the raw input.
        group: Stages of one group are alternative heads on one `module`, run and charged once.
            By default a stage is alone in the group of its own name.
        spec: How to build `module` again, or None if nobody knows.
        head_spec: How to build `head` again, or None if nobody knows.
        outputs: "logits"; or "confidence": the stage, a whole network or a service, answers with
            labels `(m,)` and the probabilities `(m,)` that they are right, in a tuple or under
            "labels" and "confidence"; of logits the best label and its probability are taken. As
            in a trace of `from_predictions` they amount to scores `(m, c + 1)`.
        classes: Number of classes `c`. It picks the logits where a network returns several tensors,
            and is needed where one gives labels. A cascade says it where it has class names.

    Raises:
        InputError: If the name is empty, a stage with a source has preprocessing, or one with a
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
        preprocess: nn.Module | None = None,
        source: str | None = None,
        group: str | None = None,
        spec: ModelSpec | SegmentSpec | None = None,
        head_spec: ModelSpec | None = None,
        outputs: OutputForm = "logits",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if not name:
            raise InputError(f"name must be a text that is not empty, got {name!r}.")
        if preprocess is not None and source is not None:
            raise InputError(
                f"Stage {name!r} reads the carry of {source!r}; preprocessing belongs to stages "
                "that read the raw input."
            )
        check_choice("outputs", outputs, ("logits", "confidence"))
        if outputs != "logits" and (head is not None or source is not None):
            raise InputError(
                f"Stage {name!r} is an exit, which answers with logits; outputs={outputs!r} is for "
                "whole networks and services."
            )
        self.outputs, self.classes = outputs, classes
        self.name = name
        self.module = module
        self.head = head
        self.preprocess = preprocess
        self.source = source
        self.group = name if group is None else group
        self.spec = spec
        self.head_spec = head_spec
        self.keeps_company = False  # True once `check_company` has found it so
        self._reads = Reading(f"Stage {name!r}")
        self._head_reads = Reading(f"The head of stage {name!r}")

    @property
    def gives_carry(self) -> bool:
        """True if later stages can continue from here."""
        return self.head is not None

    def segment(self, carry: Batch) -> Any:  # noqa: ANN401  (a carry is whatever the next module reads)
        """Run the segment alone; the carry stays what it was, even if the segment writes into it.

        Args:
            carry: The raw batch, or what the source's segment gave.

        Returns:
            What `answer` reads: the carry of this stage, or a whole network's output.
        """
        return self._reads(self._computed, carry)

    def _computed(self, carry: Batch) -> Any:  # noqa: ANN401
        return apply(self.module, carry if self.preprocess is None else self.preprocess(carry))

    def answer(self, result: Any) -> StageOutput:  # noqa: ANN401
        """What the stage says, given what `segment` gave.

        Returns:
            Logits `(m, c)`, float32; or, as declared, labels and confidences `(m,)`.

        Raises:
            InputError: If there are no logits `(m, c)` with c >= 2 in it.
        """
        if self.outputs == "confidence":
            return self._labeled(result)
        logits = self._logits(result)
        return StageOutput(classes=logits.shape[1], logits=logits)

    def _labeled(self, result: Any) -> StageOutput:  # noqa: ANN401
        """Labels with confidences, or those of logits."""
        if isinstance(result, Mapping) and "labels" in result and "confidence" in result:
            result = (result["labels"], result["confidence"])
        pair = isinstance(result, tuple | list) and len(result) == 2
        if pair and all(isinstance(part, Tensor) and part.dim() == 1 for part in result):
            if self.classes is None:
                raise InputError(
                    f"Stage {self.name!r} answers with labels, so the number of classes must be "
                    "given: classes=10, or class_names."
                )
            labels, confidence = result
            return labels_with_confidence(labels, confidence, self.classes)
        logits = self._logits(result)
        confidence, labels = logits.softmax(dim=1).max(dim=1)
        return labels_with_confidence(labels, confidence.clamp(max=1.0), logits.shape[1])

    def _logits(self, result: Any) -> Float[Tensor, "m c"]:  # noqa: ANN401
        try:
            said = result if self.head is None else self._head_reads(self.head, result)
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
        return logits.to(torch.float32)

    def run(self, carry: Batch) -> tuple[StageOutput, Any]:
        """Run segment and head.

        Args:
            carry: The raw batch of `m` examples, or the carry of the source.

        Returns:
            What the stage says of them; and the carry, None for a whole network.
        """
        result = self.segment(carry)
        return self.answer(result), result if self.gives_carry else None


@final
class Reading:
    """Has something read a batch, which is afterwards what it was.

    The first batch is handed out as a copy and looked at afterwards: what writes into its input
    gets copies from then on, what does not gets the batch itself. Should it write later all the
    same, torch's version counter tells; tensors made in inference mode have none.

    Args:
        what: Who reads, for the message.

    >>> x = torch.ones(2)
    >>> reading = Reading("Stage 'a'")
    >>> reading(lambda given: given.sub_(1), x).tolist(), x.tolist(), reading.writes
    ([0.0, 0.0], [1.0, 1.0], True)
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.writes: bool | None = None  # None until the first batch has been read

    def __call__(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        """What `read` gives for a batch or a carry."""
        if self.writes is False:
            return self._watched(read, batch)
        if torch.compiler.is_compiling():  # a graph has no state to look at
            return read(batch)
        return read(copied(batch)) if self.writes else self._first(read, batch)

    def _watched(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        """The batch itself; costs less than a microsecond, as it happens to every batch."""
        if type(batch) is Tensor:
            if batch.is_inference():
                return read(batch)
            version = batch._version
            result = read(batch)
            if batch._version != version:
                self._check_again(read, batch)
            return result
        kind = type(batch)
        if kind is not dict and kind is not tuple:
            return read(batch)
        parts = batch.values() if kind is dict else batch
        versions = [p._version for p in parts if type(p) is Tensor and not p.is_inference()]
        result = read(batch)
        if versions and versions != [
            p._version for p in parts if type(p) is Tensor and not p.is_inference()
        ]:
            self._check_again(read, batch)
        return result

    def _first(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        given = copied(batch)
        versions = _versions(given)
        result = read(given)
        self.writes = _versions(given) != versions or not _same(given, batch)
        return result

    def _check_again(self, read: Callable[[Any], Any], batch: Any) -> None:  # noqa: ANN401
        """Raise if it writes into a copy as well; else somebody else wrote meanwhile."""
        given = copied(batch)
        versions = _versions(given)
        read(given)
        if _versions(given) == versions:
            return
        self.writes = True
        raise UnsupportedError(
            f"{self._what} has written into its input, which it did not do on the first batch, so "
            "this batch is spoiled for whoever reads it next. From now on it is given copies: give "
            "the batch again, from its source. Better, let the network compute x = x - mean "
            "instead of x -= mean."
        )


def copied(batch: Any) -> Any:  # noqa: ANN401  (a batch or a carry)
    """A batch or carry whose tensors are copies, with a version counter even in inference mode.

    >>> copied({"x": torch.ones(1)})
    {'x': tensor([1.])}
    """
    if not torch.is_inference_mode_enabled():
        return _mapped(batch)
    with torch.inference_mode(False), torch.no_grad():
        return _mapped(batch)


def _mapped(batch: Any) -> Any:  # noqa: ANN401
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        made: Any = copy.copy(batch)  # of its own kind: a head may read attributes of it
        for name, part in batch.items():
            if isinstance(part, Tensor):
                made[name] = part.clone()
        return made
    if isinstance(batch, tuple | list):
        parts = [_mapped(part) for part in batch]
        make: Any = type(batch)
        return make(*parts) if hasattr(batch, "_fields") else make(parts)
    return batch


def _tensors(batch: Any) -> list[Tensor]:  # noqa: ANN401
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, Mapping | tuple | list):
        return []
    return [part for part in parts if isinstance(part, Tensor)]


def _versions(batch: Any) -> list[int]:  # noqa: ANN401
    return [t._version for t in _tensors(batch) if not t.is_inference()]


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(_equal(a, b) for a, b in pairs if a.layout == torch.strided and not a.is_meta)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
