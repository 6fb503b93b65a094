"""The manifest: what a bundle holds.

Format 1: `manifest.json` (this), `policy.json` (a candidate), one safetensors file for each
network, and any further JSON files. Every file is listed with its size and checksum.

Format 2 adds networks that are cut: one safetensors file for each, one for each exit head, and one
with an example and what the exits answer to it. A bundle without them is written in format 1.

Format 3 adds stages in another runtime: the files of a model for a segment, and for its head, each
with what it answered where it was made; and measurements of backends.

Format 4 adds the digest of the manifest itself, "sha256": of a change of one bit in a scale, a cost
or a certificate's sentence no other checksum would tell. It is what is written; the older formats
are read, and promise about the manifest what they always did: that it makes sense.

A bundle with gears says so in "gears", with what its promises together are wrong with at most; they
stand in `gears.json`.

A stage that answers with probabilities, labels and confidences, or labels alone says so in
"outputs"; without it it gives logits.
Versions that do not know one of these fields refuse the bundle.

Layer: bundle.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Discriminator, Field, NonNegativeInt, Tag

from offramp._core.costs import Costs
from offramp._core.schema import omitted
from offramp._core.topology import Topology
from offramp._core.types import StageForm
from offramp.backends import BackendTable, TensorSpec
from offramp.backends.form import Kind
from offramp.bundle.services import HttpEntry, OpenAIEntry
from offramp.models import ModelSpec
from offramp.policy.promise import Guarantee, Numbers
from offramp.stages import Transform
from offramp.stages.fusing.piece import ALONE, InPiece

FORMAT: Literal["offramp-bundle"] = "offramp-bundle"
FORMAT_VERSION = 4
SEALED_VERSION = 4  # the first whose manifest has a digest
BACKENDS_VERSION = 3  # the first with stages in another runtime, and measurements
CUT_VERSION = 2  # the first with networks that are cut

MOST_ELEMENTS = 2**26  # of the tensors of one example that a manifest speaks of, all together


def _possible(*shapes: tuple[int, ...]) -> None:
    if any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"sizes must be at least 1, got {shapes}")
    if sum(map(prod, shapes)) > MOST_ELEMENTS:
        raise ValueError(f"one example must have at most {MOST_ELEMENTS} numbers, got {shapes}")


def _possible_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    _possible(shape)
    return shape


def _possible_form(form: TensorSpec) -> TensorSpec:
    _possible(*form.shapes)
    return form


def _possible_table(table: BackendTable) -> BackendTable:
    _possible(*table.inputs.shapes)
    return table


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Classes = Annotated[int, Field(ge=2)]
Size = Annotated[int, Field(ge=1, le=MOST_ELEMENTS)]
Shape = Annotated[tuple[Size, ...], AfterValidator(_possible_shape)]
BoundedForm = Annotated[TensorSpec, AfterValidator(_possible_form)]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and checksum of a file."""

    bytes: NonNegativeInt
    sha256: Digest


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """How a network is built: a registered name or "module:callable", and its arguments.

    It names no file of weights: that is the stage's, in the folder of the bundle.
    """

    name: str
    arguments: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """The same for whoever builds it."""
        return ModelSpec(name=self.name, arguments=self.arguments)


@dataclass(frozen=True, kw_only=True)
class WholeEntry:
    """A stage that is a whole network."""

    name: str
    transform: Transform | None
    outputs: StageForm = omitted("logits")
    classes: Classes | None = omitted(None)
    model: ModelEntry
    weights: str


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """Which segment of which of the `networks`."""

    network: NonNegativeInt
    index: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class HeadEntry:
    """How an exit head is built, and the file of its weights."""

    model: ModelEntry
    weights: str


@dataclass(frozen=True, kw_only=True)
class ExitEntry:
    """A stage that is a segment of a cut network; without a head if only the segment is run."""

    name: str
    transform: Transform | None
    segment: SegmentEntry
    head: HeadEntry | None


@dataclass(frozen=True, kw_only=True)
class ExampleEntry:
    """An input to follow a network with, and the file that holds it and the exits' answers.

    The file holds "input.0", "input.1", ...; `names` says what a mapping calls them.
    """

    kind: Kind
    names: tuple[str, ...]
    file: str


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """A network that is cut after the layers `at`."""

    model: ModelEntry
    weights: str
    at: Annotated[tuple[str, ...], Field(min_length=1)]
    keep: tuple[str, ...] = omitted(())  # inputs that heads read
    classes: Annotated[int, Field(ge=2)] | None = omitted(None)  # where more than logits come
    example: ExampleEntry


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """A segment or a head as a model of another runtime, and the file of what it answered once.

    Its files are those that `backend` makes: of ONNX Runtime one, of OpenVINO two. A head that
    reads the first tensor of a carry has `also`, the positions of what else it reads.
    """

    backend: str
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    inputs: BoundedForm
    outputs: BoundedForm
    answers: str
    also: tuple[NonNegativeInt, ...] | None = omitted(None)


@dataclass(frozen=True, kw_only=True)
class CompiledEntry:
    """A stage in another runtime.

    `runs` is None for a segment that ran with an earlier one, `head` for a network's own answer and
    for one that comes along, as `part` says.
    """

    name: str
    transform: Transform | None
    outputs: StageForm = omitted("logits")
    classes: Classes | None = omitted(None)
    runs: PartEntry | None
    head: PartEntry | None
    part: InPiece = omitted(ALONE)

    def models(self) -> list[PartEntry]:
        """All that have files."""
        return [part for part in (self.runs, self.head) if part is not None]


def _kind(value: Any) -> str:  # noqa: ANN401  (whatever stands in the file)
    fields = value if isinstance(value, dict) else ()
    known = {"segment": "<exit>", "runs": "<compiled>", "openai": "<openai>", "http": "<http>"}
    return next((kind for field, kind in known.items() if field in fields), "<whole>")


StageEntry = Annotated[
    Annotated[WholeEntry, Tag("<whole>")]
    | Annotated[ExitEntry, Tag("<exit>")]
    | Annotated[CompiledEntry, Tag("<compiled>")]
    | Annotated[OpenAIEntry, Tag("<openai>")]
    | Annotated[HttpEntry, Tag("<http>")],
    Discriminator(_kind),
]


@dataclass(frozen=True, kw_only=True)
class ChoiceEntry:
    """Why this policy: the choice in one sentence, its numbers, and what is promised of it."""

    label: str
    sentence: str | None
    numbers: Numbers
    guarantee: Guarantee | None = omitted(None)


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Formats 1 to 4 of `manifest.json`.

    The topology is that of the whole cascade, with the stages that the bundle does not hold.
    """

    format: Literal["offramp-bundle"]
    version: Count
    software: dict[str, str]
    created: str
    reference: str
    class_names: tuple[str, ...]
    input_shape: Shape | None
    topology: Topology
    costs: Costs | None
    choice: ChoiceEntry
    gears: float | None = omitted(None)
    stages: tuple[StageEntry, ...]
    networks: tuple[NetworkEntry, ...] = omitted(())
    backends: Annotated[BackendTable, AfterValidator(_possible_table)] | None = omitted(None)
    files: dict[str, FileEntry]
    sha256: str | None = omitted(None)
