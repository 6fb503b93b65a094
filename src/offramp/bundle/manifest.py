"""The manifest: what a bundle holds.

Format 1: `manifest.json` (this), `policy.json` (a setting), one safetensors file for each network,
and any further JSON files. Every file is listed with its size and checksum.

Format 2 adds networks that are cut: one safetensors file for each, one for each exit head, and one
with an example and what the exits answer to it. A bundle without them is written in format 1.

Format 3 adds stages in another runtime: the files of a model for a segment, and for its head, each
with what it answered where it was made; and measurements of backends.

Format 4 adds the digest of the manifest itself, "sha256": of a change of one bit in a scale, a cost
or a certificate's sentence no other checksum would tell. It is what is written; the older formats
are read, and promise about the manifest what they always did: that it makes sense.

A stage that answers with labels and confidences says so in "outputs"; without it it gives logits.
Versions that do not know the field refuse the bundle.

Layer: bundle.
"""

from math import prod
from typing import Annotated, Any, Literal, final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    Tag,
)

from offramp._core.costs import Costs
from offramp._core.topology import Topology
from offramp.backends import BackendTable

FORMAT: Literal["offramp-bundle"] = "offramp-bundle"
FORMAT_VERSION = 4
SEALED_VERSION = 4  # the first whose manifest has a digest
BACKENDS_VERSION = 3  # the first with stages in another runtime, and measurements
CUT_VERSION = 2  # the first with networks that are cut

MOST_ELEMENTS = 2**26  # of the tensors of one example that a manifest speaks of, all together

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _possible(*shapes: tuple[int, ...]) -> None:
    if sum(map(prod, shapes)) > MOST_ELEMENTS:
        raise ValueError(f"one example must have at most {MOST_ELEMENTS} numbers, got {shapes}")


def _possible_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    _possible(shape)
    return shape


def _possible_shapes(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    _possible(*shapes)
    return shapes


Size = Annotated[int, Field(ge=1, le=MOST_ELEMENTS)]


class FileEntry(BaseModel):
    """Size and checksum of a file."""

    model_config = _STRICT
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelEntry(BaseModel):
    """How a network is built: a registered name or "module:callable", and its arguments."""

    model_config = _STRICT
    name: str
    arguments: dict[str, Any]


class WholeEntry(BaseModel):
    """A stage that is a whole network."""

    model_config = _STRICT
    name: str
    model: ModelEntry
    preprocessing: dict[str, Any] | None
    weights: str
    outputs: Literal["logits", "confidence"] = "logits"
    classes: int | None = Field(default=None, ge=2)


class SegmentEntry(BaseModel):
    """Which segment of which of the `networks`."""

    model_config = _STRICT
    network: int = Field(ge=0)
    index: int = Field(ge=0)


class HeadEntry(BaseModel):
    """How an exit head is built, and the file of its weights."""

    model_config = _STRICT
    model: ModelEntry
    weights: str


class ExitEntry(BaseModel):
    """A stage that is a segment of a cut network; without a head if only the segment is run."""

    model_config = _STRICT
    name: str
    segment: SegmentEntry
    head: HeadEntry | None
    preprocessing: dict[str, Any] | None


class ExampleEntry(BaseModel):
    """An input to follow a network with, and the file that holds it and the exits' answers.

    The file holds "input.0", "input.1", ...; `names` says what a mapping calls them.
    """

    model_config = _STRICT
    kind: Literal["tensor", "tuple", "mapping"]
    names: tuple[str, ...]
    file: str


class NetworkEntry(BaseModel):
    """A network that is cut after the layers `at`."""

    model_config = _STRICT
    model: ModelEntry
    weights: str
    at: tuple[str, ...] = Field(min_length=1)
    keep: tuple[str, ...] = ()  # inputs that heads read
    classes: int | None = Field(default=None, ge=2)  # where it returns more than its logits
    example: ExampleEntry


class FormEntry(BaseModel):
    """The form of a batch, a carry or an output, as `offramp.backends.Form` has it."""

    model_config = _STRICT
    kind: Literal["tensor", "tuple", "mapping"]
    names: tuple[str, ...]
    shapes: Annotated[
        tuple[tuple[Size, ...], ...], Field(min_length=1), AfterValidator(_possible_shapes)
    ]
    dtypes: tuple[str, ...]
    free: tuple[tuple[int, ...], ...] = ()


class ModelPart(BaseModel):
    """A model of another runtime, what it takes and gives, and the file of what it answered once.

    Its files are those that `backend` makes: of ONNX Runtime one, of OpenVINO two.
    """

    model_config = _STRICT
    kind: Literal["model"]
    backend: str
    files: tuple[str, ...] = Field(min_length=1)
    inputs: FormEntry
    outputs: FormEntry
    answers: str


class ReadingPart(BaseModel):
    """A model that reads the first tensors of what comes, in one argument or as many."""

    model_config = _STRICT
    kind: Literal["reading"]
    count: int = Field(ge=1)
    single: bool
    model: ModelPart


class FirstPart(BaseModel):
    """A head that reads the first tensor of a carry, and perhaps others by position."""

    model_config = _STRICT
    kind: Literal["first"]
    model: ModelPart
    also: tuple[NonNegativeInt, ...] = ()


class LogitsPart(BaseModel):
    """A head that ran with its segment: which tensor of what that gave."""

    model_config = _STRICT
    kind: Literal["logits"]
    position: int


class AheadPart(BaseModel):
    """The answer of a stage that ran in one piece with others: which column of the last tensor."""

    model_config = _STRICT
    kind: Literal["ahead"]
    column: int = Field(ge=0)


class SamePart(BaseModel):
    """The segment of a stage that an earlier one ran."""

    model_config = _STRICT
    kind: Literal["same"]


Part = Annotated[
    ModelPart | ReadingPart | FirstPart | LogitsPart | AheadPart | SamePart, Discriminator("kind")
]


class CompiledEntry(BaseModel):
    """A stage in another runtime; `head` is None for a network's own answer."""

    model_config = _STRICT
    name: str
    runs: Part
    head: Part | None
    preprocessing: dict[str, Any] | None
    outputs: Literal["logits", "confidence"] = "logits"
    classes: int | None = Field(default=None, ge=2)

    def models(self) -> list[ModelPart]:
        """All that have files."""
        parts = [self.runs] if self.head is None else [self.runs, self.head]
        inner = [p.model if isinstance(p, ReadingPart | FirstPart) else p for p in parts]
        return [p for p in inner if isinstance(p, ModelPart)]


KINDS = ("<whole>", "<exit>", "<compiled>")  # no names of fields, so messages can leave them out


def _kind(value: Any) -> str:  # noqa: ANN401  (whatever stands in the file)
    fields = value if isinstance(value, dict) else type(value).model_fields
    return KINDS[1 if "segment" in fields else 2 if "runs" in fields else 0]


StageEntry = Annotated[
    Annotated[WholeEntry, Tag(KINDS[0])]
    | Annotated[ExitEntry, Tag(KINDS[1])]
    | Annotated[CompiledEntry, Tag(KINDS[2])],
    Discriminator(_kind),
]


class TopologyEntry(BaseModel):
    """The whole cascade's topology; stages that the bundle does not hold are named as well."""

    model_config = _STRICT
    names: tuple[str, ...]
    sources: tuple[int, ...]
    groups: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int


class CostsEntry(BaseModel):
    """Cost of each stage."""

    model_config = _STRICT
    unit: str
    segment: tuple[float, ...]
    head: tuple[float, ...]
    decision: tuple[float, ...]
    note: str


class ChoiceEntry(BaseModel):
    """Why this policy: the choice in one sentence, and its numbers."""

    model_config = _STRICT
    label: str
    sentence: str | None
    numbers: dict[str, float | int | str | None]


class BackendsEntry(BaseModel):
    """What the stages take in each backend, as `offramp.backends.BackendTable` has it."""

    model_config = _STRICT
    batch_sizes: tuple[int, ...]
    seconds: dict[str, dict[str, tuple[float, ...]]]
    refused: dict[str, dict[str, str]]
    where: str
    inputs: FormEntry


@final
class Manifest(BaseModel):
    """Formats 1 to 4 of `manifest.json`."""

    model_config = _STRICT
    format: Literal["offramp-bundle"]
    version: int = Field(ge=1)
    software: dict[str, str]
    created: str
    reference: str
    class_names: tuple[str, ...]
    input_shape: Annotated[tuple[Size, ...], AfterValidator(_possible_shape)] | None
    topology: TopologyEntry
    costs: CostsEntry | None
    choice: ChoiceEntry
    stages: tuple[StageEntry, ...]
    networks: tuple[NetworkEntry, ...] = ()
    backends: BackendsEntry | None = None
    files: dict[str, FileEntry]
    sha256: str | None = None

    def cascade_topology(self) -> Topology:
        """The topology as an object."""
        return Topology.from_dict(self.topology.model_dump())

    def backend_table(self) -> BackendTable | None:
        """The measurements of backends as an object, or None where the bundle has none."""
        return None if self.backends is None else BackendTable.from_dict(self.backends.model_dump())

    def stage_costs(self) -> Costs | None:
        """The costs as an object, or None where the bundle has none."""
        return None if self.costs is None else Costs.from_dict(self.costs.model_dump())
