"""What a certificate says, as frozen records; nothing is tested here.

Layer: evaluation.
"""

import hashlib
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp.evaluation.limits import Label, Limit
from offramp.evaluation.results import Evaluation, FrontierPoint
from offramp.policy import Candidate
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The examples that certificates may rest on, and what speaks against them.

    Args:
        n: Number of examples.
        fingerprint: SHA-256 of their ids, labels and recorded outputs.
        seen_in_training: True if the networks were trained on them.
        lossy: True if outputs were stored with less precision than computed.
        class_names: Names of the classes, `(c,)`; empty where an older version stored this.
        labeled: False if their labels are not to be trusted.
        split: Name of the part of a trace that they are.
    """

    n: int
    fingerprint: str
    seen_in_training: bool
    lossy: bool
    class_names: tuple[str, ...] = ()
    labeled: bool = True
    split: str = "calibrate"

    @classmethod
    def of(cls, *parts: Trace, labeled: bool = True, split: str = "calibrate") -> "Calibration":
        """Of a part of one trace, or of several traces of the same examples."""
        digest, first = hashlib.sha256(), parts[0]
        for part in parts:
            digest.update("\n".join(map(str, part.ids.tolist())).encode())
            for tensor in (part.labels, part.logits, part.ranked, part.confidence):
                if tensor is not None:
                    values = tensor.contiguous().numpy()
                    digest.update(f"{values.dtype} {values.shape}".encode())
                    digest.update(values.data)
        return cls(
            n=len(first),
            fingerprint=digest.hexdigest(),
            seen_in_training=any(part.seen_in_training for part in parts),
            lossy=any(part.lossy for part in parts),
            class_names=first.class_names or tuple(map(str, range(first.classes))),
            labeled=labeled,
            split=split,
        )

    def class_index(self, label: Label) -> int:
        """The index of a class that is given by name or index.

        Raises:
            UnknownNameError: If no class has this name.
            InputError: If there are not so many classes.
        """
        if isinstance(label, str):
            return self.class_names.index(check_known("class", label, self.class_names))
        if not 0 <= label < len(self.class_names):
            raise InputError(
                f"A class must be a name or an index in [0, {len(self.class_names)}), got {label}."
            )
        return label


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What both answers have: what was asked for, and the point to run."""

    point: FrontierPoint
    limits: tuple[Limit, ...]
    delta: float
    calibration: Calibration | None

    @property
    def candidate(self) -> Candidate:
        """What to run."""
        return self.point.candidate

    @property
    def cascade(self) -> bool:
        """False where one network is run alone."""
        return self.candidate.method != "single"

    @property
    def fit(self) -> Evaluation:
        """Its evaluation on `fit`."""
        return self.point.fit

    @property
    def calibrate(self) -> Evaluation | None:
        """Its evaluation on `calibrate`; None without that part, or without its labels."""
        return self.point.calibrate

    @property
    def judged_on_both(self) -> Evaluation | None:
        """Its evaluation on both together, where there are both; no promise rests on it."""
        return self.point.judged_on_both

    @property
    def judged(self) -> Evaluation:
        """The evaluation that the answer rests on, where it has labels."""
        return self.point.calibrate or self.point.fit

    @property
    def best_single(self) -> None:
        """Single networks are candidates like others; here for an `OperatingPoint`'s readers."""
        return

    @property
    def n(self) -> int:
        """Number of examples to test on."""
        return 0 if self.calibration is None else self.calibration.n

    @property
    def risk(self) -> str:
        """The risks that were limited, by name."""
        return ", ".join(dict.fromkeys(limit.risk for limit in self.limits))

    @property
    def max_drop(self) -> float | None:
        """The first limit of a risk that is no cost, or None."""
        return next((limit.at_most for limit in self.limits if limit.risk != "cost"), None)

    @property
    def max_cost(self) -> float | None:
        """The limit of the mean cost ratio, or None."""
        return next((limit.at_most for limit in self.limits if limit.risk == "cost"), None)

    @property
    def limits_text(self) -> str:
        """All limits: "difference <= 0.01; cost <= 0.5"."""
        return "; ".join(limit.text for limit in self.limits)


@final
@dataclass(frozen=True, kw_only=True)
class Certificate(_Answer):
    """A candidate with a promise: on new examples no limit is exceeded.

    The promise is wrong with probability `delta` at most, over the draw of the examples. It is that
    of `limits` and of nothing tighter: a limit computed for the candidate alone would not hold for
    one that was chosen among many.

    Args:
        point: What to run, and what it does on `fit` and `calibrate`.
        limits: The largest value of each risk that is promised; all hold at once.
        delta: Largest chance that the promise is wrong, in (0, 1).
        calibration: The examples that were tested on.
        p_value: The smallest delta with which this candidate would have been reached.
        tested: How many candidates were tested, the one that failed included.
        class_weights: Share of each class in future over its share in these examples, `(c,)`; None
            where the shares stay.
        assumptions: Under what the promise holds, one sentence each.
        sentence: The promise in one plain sentence.
    """

    calibration: Calibration
    p_value: float
    tested: int
    class_weights: tuple[float, ...] | None
    assumptions: tuple[str, ...]
    sentence: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the examples that it was tested on."""
        return self.calibration.fingerprint

    @property
    def bound(self) -> float:
        """What is promised of the first risk."""
        return self.limits[0].at_most

    @property
    def numbers(self) -> dict[str, float | int | str | None]:
        """The figures of the promise and of its candidate on the examples, by name."""
        found = self.point.tested or self.judged
        labeled = ("accuracy", "reference_accuracy", "accuracy_drop", "negative_flips")
        weights = "" if self.class_weights is None else " ".join(map(str, self.class_weights))
        return {
            "limits": self.limits_text,
            "delta": self.delta,
            "p_value": self.p_value,
            "n": self.n,
            "tested": self.tested,
            "fingerprint": self.fingerprint,
            "assumptions": " ".join(self.assumptions),
            "split": self.calibration.split,
            "cost_ratio": found.cost_ratio,
            "disagreement": found.disagreement,
            **({"class_weights": weights} if weights else {}),
            **{name: getattr(found, name) for name in labeled if self.calibration.labeled},
        }

    def __json__(self) -> dict[str, object]:
        return {
            "outcome": "certified",
            "sentence": self.sentence,
            "risk": self.risk,
            "max_drop": self.max_drop,
            "max_cost": self.max_cost,
            **self.numbers,
            "limits": self.limits,
            "class_weights": self.class_weights,
            "assumptions": self.assumptions,
            "candidate": self.candidate,
            "fit": self.fit.numbers(),
            "calibrate": None if self.calibrate is None else self.calibrate.numbers(),
        }


@final
@dataclass(frozen=True, kw_only=True)
class NotCertified(_Answer):
    """No candidate may be promised: the reference runs alone, which loses nothing against itself.

    Args:
        point: the reference alone, to run instead, and what it does on `fit` and `calibrate`.
        limits: What was to be promised.
        delta: The largest chance of a wrong promise.
        calibration: The examples that were there to test on, or None.
        why: What stands against it, without a full stop.
        examples_needed: About how many would have sufficed for the safest candidate at the shares
            that were seen; None where no number would, or nothing was seen.
    """

    why: str
    examples_needed: int | None

    @property
    def reason(self) -> str:
        """Why, and what to run, in plain sentences."""
        enough, split = "", "calibrate" if self.calibration is None else self.calibration.split
        if self.examples_needed is not None and self.examples_needed > self.n:
            have = "" if f"there are {self.n}" in self.why else f"; there are {self.n}"
            enough = f" About {self.examples_needed} examples in {split} would have sufficed{have}."
        return f"Not certified: {self.why}.{enough} Run {self.candidate.label}."

    @property
    def sentence(self) -> str:
        """The reason, under the name that a certificate has for its sentence."""
        return self.reason

    @property
    def numbers(self) -> dict[str, float | int | str | None]:
        """The figures behind the reason, by name."""
        return {
            "limits": self.limits_text,
            "delta": self.delta,
            "n": self.n,
            "examples_needed": self.examples_needed,
        }

    def __json__(self) -> dict[str, object]:
        return {
            "outcome": "not certified",
            "sentence": self.sentence,
            "risk": self.risk,
            "max_drop": self.max_drop,
            "max_cost": self.max_cost,
            **self.numbers,
            "limits": self.limits,
            "candidate": self.candidate,
        }
