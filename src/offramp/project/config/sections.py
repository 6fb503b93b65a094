"""The sections of a configuration file as checked records.

Layer: project.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

SplitName = Literal["train", "fit", "calibrate", "test"]
DELTA = 0.1  # as of `Frontier.cheapest`, which would have to be loaded to be asked


#: The kind of a head that is chosen for what the layer gives, by `offramp.models.default_head`.
DEFAULT_HEAD = "default"


class HeadChoice(NamedTuple):
    """A head as a configuration names it: its kind, and arguments beside what the layer fixes."""

    kind: str
    options: dict[str, Any]


def _level(value: object) -> object:
    if value is None or value == "none":
        return None
    if isinstance(value, str):  # of the command line
        try:
            value = float(value)
        except ValueError as error:
            raise ValueError("must be a number in (0, 1), or none") from error
    from offramp._core.checks import check_probability  # here, so that --help needs no torch

    return check_probability("", value)


def _fraction(value: float) -> float:
    from offramp._core.checks import check_fraction

    return check_fraction("", value)


#: Largest chance of a wrong promise; "none" (TOML knows no null) promises nothing.
Level = Annotated[float | None, BeforeValidator(_level)]
#: In [0, 1]; percentages are explained.
Fraction = Annotated[float, AfterValidator(_fraction)]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError("must be a fraction such as 0.5 or a number of examples such as 500")
    return value


def _edges(value: object) -> object:
    if value in ("full", "chain"):
        return value
    pairs = isinstance(value, list) and all(
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(end, str) for end in edge)
        for edge in value
    )
    if not pairs:
        raise ValueError('must be "full", "chain" or pairs of stage names')
    return value


def _transform(value: object) -> object:
    """What `transform = { kind = ... }`, or a list of such, stands for."""
    from offramp._core.schema import from_json  # here: it loads torch
    from offramp.stages import Transform

    return None if value is None else from_json(Transform, value)


def _existing(value: str, info: Any) -> str:  # noqa: ANN401  (pydantic's own cannot be checked)
    path = _folder(info) / Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"there is no such file or folder: {path}")
    return str(path)


def _beside(value: str, info: Any) -> str:  # noqa: ANN401
    return str(_folder(info) / Path(value).expanduser())


def _folder(info: Any) -> Path:  # noqa: ANN401
    return Path((info.context or {}).get("folder", "."))


def _classes(value: object, info: Any) -> Any:  # noqa: ANN401  (pydantic's own cannot be checked)
    if isinstance(value, str):
        return Path(_existing(value, info))
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    numbers = value.values() if isinstance(value, Mapping) else [None]
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in numbers):
        raise ValueError(
            'must be a CSV file such as "classes.csv" (folder, index, name), the folders in the '
            'order of the classes such as ["cat", "dog"], or numbers such as { cat = 281 }'
        )
    return value


ClassNames = Annotated[list[str | int], BeforeValidator(_as_list)]
Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Range = Annotated[list[int], Field(min_length=2, max_length=2)]
Share = Annotated[Any, AfterValidator(_share)]
Edges = Annotated[Any, AfterValidator(_edges)]
ExistingPath = Annotated[str, AfterValidator(_existing)]
TransformModule = Annotated[Any, AfterValidator(_transform)]
NewPath = Annotated[str, AfterValidator(_beside)]
FolderClasses = Annotated[Any, AfterValidator(_classes)]


def _heads(value: object) -> dict[str, HeadChoice]:
    """Heads by label; one head for each point has no label."""
    if isinstance(value, str) or (isinstance(value, Mapping) and "kind" in value):
        return {"": _head(value)}
    if not isinstance(value, Mapping) or not value:
        raise ValueError(_HEADS)
    for label in value:
        if not label or "/" in label:
            raise ValueError(f"must have labels without '/' that are not empty; {label!r} is none")
    return {label: _head(head) for label, head in value.items()}


def _head(value: object) -> HeadChoice:
    if isinstance(value, str):
        return HeadChoice(value, {})
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ValueError(_HEADS)
    return HeadChoice(value["kind"], {k: v for k, v in value.items() if k != "kind"})


_HEADS = (
    'must be the kind of a head such as "conv_head", or { kind = "conv_head", filters = 32 }, or '
    'several of them by label such as { linear = "gap_linear", deep = "conv_head" }'
)

Heads = Annotated[Any, AfterValidator(_heads)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataSection(_Section):
    """`[data]`: which labeled examples, and how they are split."""

    kind: str
    path: ExistingPath | None = None
    classes: FolderClasses | None = None
    class_count: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    part: SplitName | None = None
    splits: dict[SplitName, Share] = Field(default_factory=dict)
    ranges: dict[SplitName, Range] = Field(default_factory=dict)
    seed: int = 0
    stratified: bool = True
    seen_in_training: bool = False

    def source_options(self) -> dict[str, Any]:
        """What the data set's own function is called with."""
        listed = {"classes": self.classes, "class_count": self.class_count}
        return {**self.options, **{k: v for k, v in listed.items() if v is not None}}


class BuiltSection(_Section):
    """What `[[stage]]` and `[network]` have in common: how to build a network."""

    model: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: ExistingPath | None = None
    weights_sha256: str | None = None
    transform: TransformModule = None


class StageSection(BuiltSection):
    """`[[stage]]`: one network of several."""

    name: str = Field(min_length=1)

    @property
    def untrained(self) -> bool:
        """True if its weights are drawn; an imported model may bring its own."""
        return self.weights is None and ":" not in self.model


class NetworkSection(BuiltSection):
    """`[network]`: the one network that gets exits, by the name of its own answer."""

    name: str = Field(default="last", min_length=1)


class ExitsSection(_Section):
    """`[exits]`: after which layers, and which heads there."""

    at: Names | None = None
    every: int | None = Field(default=None, ge=1)
    quantiles: int | None = Field(default=None, ge=1)
    match: str | None = Field(default=None, min_length=1)
    inside: bool = False
    heads: Heads = Field(default=DEFAULT_HEAD, validate_default=True)

    def names(self, layer: str) -> list[str]:
        """Names of the stages at a layer."""
        return [f"{layer}/{label}" if label else layer for label in self.heads]


class TrainSection(_Section):
    """`[train]`: how the heads are trained."""

    part: SplitName = "train"
    epochs: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=128, ge=1)
    patience: int = Field(default=10, ge=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    augment: Literal["crop_flip"] | None = None
    cache: bool = False
    seed: int = 0


CostWeights = Annotated[
    list[Annotated[float, Field(ge=0)]], BeforeValidator(_as_list), Field(min_length=1)
]


class JointSection(_Section):
    """`[joint]`: how networks are trained together with their stopping networks."""

    part: SplitName = "train"
    cost_weights: CostWeights = Field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3])
    epochs: int = Field(default=30, ge=1)
    epochs_next: int | None = Field(default=None, ge=1)
    warm_up: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=0.1, gt=0)
    learning_rate_next: float | None = Field(default=None, gt=0)
    policy_learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    batch_size: int = Field(default=128, ge=1)
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    estimator: Literal["supervised", "exact", "reinforce"] = "supervised"
    answers: Literal["best", "combined", "drawn"] = "best"
    rollouts: Literal["all", "visited"] = "all"
    detached: bool = False
    supervision: float = Field(default=1.0, ge=0)
    frozen: bool = False
    alone: bool | None = None
    width: int = Field(default=64, ge=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    augment: Literal["crop_flip"] | None = None
    bfloat16: bool = False
    seed: int = 0


class CascadeSection(_Section):
    """`[cascade]`: which stage may follow which."""

    edges: Edges = "full"


class CostSection(_Section):
    """`[cost]`: measured here, or given."""

    unit: str = Field(default="flops", min_length=1)
    also: list[str] = Field(default_factory=list)
    batch_size: int = Field(default=1, ge=1)
    given: dict[str, float] = Field(default_factory=dict)


class FitSection(_Section):
    """`[fit]`: which policies, and which point to choose."""

    policy: Names = Field(
        default_factory=lambda: ["learned"],
        description="learned, threshold, random, agreement, or several with commas.",
    )
    max_drop: Fraction | None = Field(
        default=None, description="Loss of accuracy you can bear: 0.02 is two points."
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        description="Or the mean cost you can pay: 0.5 is half of the reference's.",
    )
    delta: Level = Field(
        default=DELTA,
        description="Largest chance that new examples break the promise; 0.1 with --max-drop. none "
        "measures only and promises nothing.",
    )
    unlabeled: bool = Field(
        default=False,
        description="The examples that promises are tested on have no labels to trust: theirs are "
        "not read. With --delta; --risk disagreement and --max-cost can be promised then.",
    )
    margin: float | None = Field(
        default=None,
        ge=0,
        description="With --delta none: standard errors below --max-drop.",
    )
    reference: str | None = Field(
        default=None,
        description="The reference, the network to compare with; by default the most accurate.",
    )
    top: int = Field(
        default=1, ge=1, description="Right means among the so many best labels; 1 by default."
    )
    combines: Names | None = Field(
        default=None,
        description="How visited networks answer: last, mean, log_linear; several with commas.",
    )
    loss: Literal["negative_flips", "error"] | None = Field(
        default=None, description="What learned policies minimize."
    )
    risk: Literal["accuracy_drop", "negative_flips", "error", "disagreement", "recall"] = Field(
        default="accuracy_drop",
        description="accuracy_drop: accuracy lost; negative_flips: new errors only; where it is "
        "promised also error, disagreement, recall (of any class).",
    )
    seed: int = Field(default=0, description="Of the division of a trace without splits.")

    @property
    def level(self) -> float | None:
        """The delta that holds; None where nothing is promised.

        Where the cost alone is limited, that is so unless a delta is given.
        """
        unasked = self.max_drop is None and "delta" not in self.model_fields_set
        return None if unasked else self.delta


class ClassExitsSection(_Section):
    """`[class_exits]`: the classes that exits are to make faster, and what has to be kept."""

    classes: ClassNames = Field(default_factory=list)
    superclasses: dict[str, Names] = Field(default_factory=dict)
    constraints: Literal["strict", "paper"] = Field(
        default="strict", description="strict: everything keeps its accuracy."
    )
    tolerance: Fraction = Field(
        default=0.005,
        description="What accuracy and recalls may lose: 0.005 is half a point.",
    )
    thresholds: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.95, 1.0]
    precision_floor: float = Field(default=0.0, ge=0, le=1)
    select: Literal["ratio", "saved_over_inflicted", "saved"] | None = Field(
        default=None, description="What is to be largest."
    )
    exits: int = Field(default=1, ge=1, description="Most exits in a row; 1 by default.")
    together: bool = Field(default=False, description="Exits of all these classes in one cascade.")
    points: int | None = Field(default=None, ge=1)
    grid: int = Field(default=2, ge=1)
    kp: Literal["both", "on", "off"] = "both"
    prune: bool = False
    unit: Literal["flops", "seconds"] = Field(default="flops", description="What time is told in.")
    batch_size: int = Field(default=1, ge=1)
    epochs: int = Field(default=40, ge=1)
    class_weights: Literal["plain", "balanced"] = "plain"
    validation: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0


class OutputSection(_Section):
    """`[output]`: where a run's files go; by default a folder in `runs` named like the file."""

    dir: NewPath | None = None


class RecordSection(_Section):
    """`[record]`: what becomes of examples for which a network gives NaN or infinity."""

    on_nonfinite: Literal["error", "skip", "wrong"] = "error"


class RunConfig(_Section):
    """A whole configuration file; a command says which sections it needs."""

    _file: Path = PrivateAttr(default=Path("run.toml"))

    data: DataSection | None = None
    stage: list[StageSection] = Field(default_factory=list)
    network: NetworkSection | None = None
    exits: ExitsSection | None = None
    train: TrainSection = TrainSection()
    record: RecordSection = RecordSection()
    cascade: CascadeSection = CascadeSection()
    cost: CostSection = CostSection()
    fit: FitSection = FitSection()
    class_exits: ClassExitsSection = ClassExitsSection()
    joint: JointSection = JointSection()
    output: OutputSection = OutputSection()

    def read_from(self, file: Path) -> "RunConfig":
        """Remember which file this is."""
        self._file = file
        return self

    @property
    def file(self) -> Path:
        """The file that this was read from."""
        return self._file

    @property
    def folder(self) -> Path:
        """The folder of the run that this describes."""
        chosen = self.output.dir
        return Path("runs") / self.file.stem if chosen is None else Path(chosen)
