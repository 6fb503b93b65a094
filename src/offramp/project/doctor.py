"""What is installed, what this machine has, and whether a tiny cascade works here from end to end.

Layer: project.
"""

import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, TypeVar, final

import torch

from offramp._core.errors import UnsupportedError
from offramp._core.threads import one_thread
from offramp.backends import BACKENDS, with_backend
from offramp.bundle import load, save
from offramp.evaluation import Choice, fit, replay
from offramp.project.report import machine, versions
from offramp.project.worlds.digits import DIGITS, Network, pictures, recorded, trained
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.trace import Trace

_PACKAGES = ("torch", "numpy", "scipy", "safetensors", "pydantic", "typer", "matplotlib", "pillow")
_SIZES = {"train": 200, "fit": 100, "calibrate": 100, "test": 64}
_NETWORKS = (
    Network(name="small", width=2, depth=2, epochs=4, learning_rate=0.05),
    Network(name="large", width=8, depth=3, epochs=4, learning_rate=0.02),
)
_WORLD = replace(DIGITS, batch_sizes=(1, 64), rounds=3)
_CHANCE = 0.1  # of ten digits
T = TypeVar("T")
_SAME = 1e-3  # log-probabilities of another runtime


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of the self test.

    Args:
        name: What was tried.
        ok: Whether it works.
        seconds: It took.
        said: What came of it, or the error.
    """

    name: str
    ok: bool
    seconds: float
    said: str


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """What the doctor found.

    Args:
        versions: Of Python, offramp and what it always needs.
        machine: Facts that matter for speed.
        gpu: Names of the devices that torch can use.
        extras: For each extra its packages with their versions; None for what is missing.
        backends: What runs networks, and whether it can run here.
        checks: The self test.
    """

    versions: dict[str, str]
    machine: dict[str, str]
    gpu: tuple[str, ...]
    extras: dict[str, dict[str, str | None]]
    backends: dict[str, bool]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that was tried works."""
        return all(check.ok for check in self.checks)


def examined(*, tell: Callable[[str], None] = lambda _: None) -> Found:
    """Look at everything; a self test of a few seconds, on one thread.

    Args:
        tell: Called with a few words before each part of the test.
    """
    with one_thread():
        checks = tuple(_checks(tell))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Found(
        versions={"python": platform.python_version(), **versions(("offramp", *_PACKAGES))},
        machine=machine(),
        gpu=tuple(torch.cuda.get_device_name(k) for k in range(count)),
        extras=extras(),
        backends={name: backend.is_there() for name, backend in BACKENDS.items()},
        checks=checks,
    )


def extras() -> dict[str, dict[str, str | None]]:
    """For each extra its packages with their versions, None for what is missing; not `dev`.

    >>> sorted(extras()["onnx"])
    ['onnx', 'onnxruntime', 'onnxscript']
    """
    found: dict[str, dict[str, str | None]] = {}
    for line in requires("offramp") or ():
        needed = re.match(r"([\w.-]+)(?:\[([\w,.-]+)\])?", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if needed is None or extra is None or extra[1] == "dev":
            continue
        of = found.setdefault(extra[1], {})
        if needed[1] != "offramp":  # an extra that is made of others says so itself
            of[needed[1]] = _version(needed[1])
    return {name: of for name, of in found.items() if of}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@final
@dataclass
class _Trial:
    """A cascade on its way through the self test; each part takes what the one before has made."""

    folder: Path
    cascade: Cascade | None = None
    trace: Trace | None = None
    choice: Choice | None = None
    inputs: Any = None
    answers: Any = field(default=None)

    def train(self) -> str:
        """Two networks learn something."""
        examples = pictures().split_into(_SIZES, seed=0, stratified=True)  # type: ignore[arg-type]
        self.cascade = trained(examples, _NETWORKS, progress=False)
        self.trace = recorded(self.cascade, examples, _WORLD, progress=False)
        self.inputs = examples.subset("test").inputs
        reached = self.trace.accuracy(1)
        if reached < 3 * _CHANCE:
            raise UnsupportedError(f"the network is right in {reached:.0%} of the cases only")
        return f"two networks, {reached:.0%} right"

    def fit(self) -> str:
        """Policies are fitted and one is chosen."""
        frontier = fit(_there(self.trace), ["threshold"], progress=False)
        self.choice = frontier.cheapest(max_drop=0.05, delta=None)
        return f"{len(frontier.points)} candidates"

    def forward(self) -> str:
        """The runtime does what replay says."""
        cascade, choice, trace = _there(self.cascade), _there(self.choice), _there(self.trace)
        self.answers = Adaptive(cascade, choice, costs=trace.costs)(self.inputs)
        said = replay(trace.subset("test"), choice.candidate.policy)
        differ = int((self.answers.labels.numpy() != said.labels[:, 0]).sum())
        if differ > 1:  # one may lie within rounding of a threshold
            raise UnsupportedError(
                f"{differ} of {len(self.inputs)} answers are not those of replay"
            )
        return f"{len(self.inputs)} answers, as replay says"

    def bundle(self) -> str:
        """A bundle answers as the model that was saved."""
        cascade, choice = _there(self.cascade), _there(self.choice)
        model = Adaptive(cascade, choice, costs=_there(self.trace).costs)
        save(model, self.folder / "bundle", input_shape=tuple(self.inputs.shape[1:]))
        answers = load(self.folder / "bundle")(self.inputs)
        if not torch.equal(answers.labels, self.answers.labels):
            raise UnsupportedError("a bundle that was loaded answers otherwise")
        return "saved, loaded, the same answers"

    def onnxruntime(self) -> str:
        """ONNX Runtime answers as PyTorch."""
        model = Adaptive.single(_there(self.cascade), "large")
        wanted = model(self.inputs).log_probs
        runs = Adaptive.single(
            with_backend(_there(self.cascade), "onnxruntime", example=self.inputs[:1]), "large"
        )
        found = runs(self.inputs).log_probs
        if wanted is None or found is None:
            raise UnsupportedError("there are no log-probabilities")
        apart = float((wanted - found).abs().max())
        if apart > _SAME:
            raise UnsupportedError(f"its log-probabilities are up to {apart:.2g} apart")
        return f"at most {apart:.1g} apart from PyTorch"


def _there(value: T | None) -> T:
    if value is None:
        raise UnsupportedError("what comes before did not work")
    return value


def _checks(tell: Callable[[str], None]) -> Iterator[Check]:
    with tempfile.TemporaryDirectory(prefix="offramp-") as place:
        trial = _Trial(Path(place))
        parts = [trial.train, trial.fit, trial.forward, trial.bundle]
        if BACKENDS["onnxruntime"].is_there():
            parts.append(trial.onnxruntime)
        for part in parts:
            tell(f"trying {part.__name__}")
            start = time.perf_counter()
            try:
                ok, said = True, part()
            except Exception as error:  # noqa: BLE001  (a self test says what went wrong)
                ok, said = False, f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - start
            yield Check(name=part.__name__, ok=ok, seconds=seconds, said=said)
