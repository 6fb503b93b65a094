"""The sections of a configuration file as checked records.

Layer: project.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from offramp.project.config.fields import (
    DEFAULT_HEAD,
    DELTA,
    ClassNames,
    CostWeights,
    Edges,
    Estimators,
    ExistingPath,
    FolderClasses,
    Fraction,
    Heads,
    Level,
    Names,
    NewPath,
    Price,
    Range,
    Share,
    SplitName,
    TransformModule,
)


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


class AnswersSection(_Section):
    """`[answers]`: what stages said elsewhere, in the place of data and networks.

    Names of arrays (npz) or columns (parquet), by stage, the cheapest first.
    """

    path: ExistingPath
    labels: str = "labels"
    ids: str | None = None
    split: str | None = None
    logits: dict[str, str] | None = None
    probabilities: dict[str, str] | None = None
    predictions: dict[str, str] | None = None
    confidences: dict[str, str] | None = None
    costs: dict[str, Price]
    unit: str = Field(min_length=1)
    class_names: list[str] = Field(default_factory=list)
    splits: dict[SplitName, Share] = Field(default_factory=dict)
    seed: int = 0
    seen_in_training: bool = False


class BuiltSection(_Section):
    """What `[[stage]]` and `[network]` have in common: how to build a network."""

    model: str = Field(default="", min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: ExistingPath | None = None
    weights_sha256: str | None = None
    transform: TransformModule = None


class StageSection(BuiltSection):
    """`[[stage]]`: one network, classifier, service, or function on rows, of several."""

    name: str = Field(min_length=1)
    function: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$")
    openai: dict[str, Any] | None = None
    http: dict[str, Any] | None = None
    sklearn: Estimators = None
    labels: list[str] = Field(default_factory=list)
    allow_types: list[str] = Field(default_factory=list)
    outputs: Literal["logits", "probabilities", "confidence", "labels"] = "logits"

    @property
    def instead(self) -> str | None:
        """What stands in the place of a model: "function", "openai", "http" or "sklearn"."""
        kinds = ("function", "openai", "http", "sklearn")
        return next((kind for kind in kinds if getattr(self, kind) is not None), None)

    @property
    def to_fit(self) -> bool:
        """True for a classifier of scikit-learn that `offramp train` fits."""
        return isinstance(self.sklearn, list)

    @property
    def untrained(self) -> bool:
        """True if its weights are drawn; an imported model may bring its own."""
        return self.instead is None and self.weights is None and ":" not in self.model


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
    max_request_cost: float | None = Field(
        default=None,
        ge=0,
        description="With --max-drop and --delta: what one example may cost, in the unit of the "
        "trace; promised as well.",
    )
    over_budget: Fraction = Field(
        default=0.05, description="Share of the examples that may cost more than that."
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
    """`[record]`: what becomes of examples without an answer, and how services are asked."""

    on_nonfinite: Literal["error", "skip", "wrong"] = "error"
    max_spend: float | None = Field(default=None, ge=0)
    concurrency: int | None = Field(default=None, ge=1)


class RunConfig(_Section):
    """A whole configuration file; a command says which sections it needs."""

    _file: Path = PrivateAttr(default=Path("run.toml"))

    data: DataSection | None = None
    answers: AnswersSection | None = None
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
