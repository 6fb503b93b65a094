"""What a certificate says, as frozen records; nothing is tested here.

Layer: evaluate.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from offramp._core.errors import FileFormatError
from offramp.evaluate.results import Evaluation, Risk
from offramp.policy import Setting
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
    """

    n: int
    fingerprint: str
    seen_in_training: bool
    lossy: bool

    @classmethod
    def of(cls, *parts: Trace) -> "Calibration":
        """Of the `calibrate` part of one trace, or of several of the same examples."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update("\n".join(map(str, part.ids.tolist())).encode())
            for tensor in (part.labels, part.logits, part.ranked, part.confidence):
                if tensor is not None:
                    values = tensor.contiguous().numpy()
                    digest.update(f"{values.dtype} {values.shape}".encode())
                    digest.update(values.data)
        return cls(
            n=len(parts[0]),
            fingerprint=digest.hexdigest(),
            seen_in_training=any(part.seen_in_training for part in parts),
            lossy=any(part.lossy for part in parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote.

        Raises:
            FileFormatError: If a field is missing or has the wrong form.
        """
        try:
            return cls(
                n=int(value["n"]),
                fingerprint=str(value["fingerprint"]),
                seen_in_training=bool(value["seen_in_training"]),
                lossy=bool(value["lossy"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"This does not describe a calibration: {error!r}.") from error


@final
@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A setting with a promise: its risk on new examples is at most `max_loss`.

    The promise is wrong with probability `delta` at most, over the draw of the `calibrate`
    examples. It is that of `max_loss` and of nothing tighter: a limit computed for the setting
    alone would not hold for one that was chosen among many.

    Args:
        setting: What to run.
        fit: Its evaluation on `fit`.
        calibrate: Its evaluation on `calibrate`, which the promise rests on.
        risk: The risk that is promised, "difference" or "excess".
        max_loss: B, the largest risk, in (0, 1).
        delta: Largest chance that the promise is wrong, in (0, 1).
        p_value: The smallest delta with which this setting would have been reached.
        calibration: The examples that were tested on.
        tested: How many settings were tested, the one that failed included.
        assumptions: Under what the promise holds, one sentence each.
        sentence: The promise in one plain sentence.
    """

    setting: Setting
    fit: Evaluation
    calibrate: Evaluation
    risk: Risk
    max_loss: float
    delta: float
    p_value: float
    calibration: Calibration
    tested: int
    assumptions: tuple[str, ...]
    sentence: str

    @property
    def n(self) -> int:
        """Number of examples that it was tested on."""
        return self.calibration.n

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the examples that it was tested on."""
        return self.calibration.fingerprint

    @property
    def bound(self) -> float:
        """What is promised: `max_loss`."""
        return self.max_loss

    @property
    def max_cost(self) -> None:
        """No cost was limited; here for the sake of an `OperatingPoint`'s readers."""
        return

    @property
    def judged(self) -> Evaluation:
        """The evaluation that the promise rests on."""
        return self.calibrate

    @property
    def numbers(self) -> dict[str, float | int | str]:
        """The figures of the promise and of its setting on `calibrate`, by name."""
        found = self.calibrate
        return {
            "delta": self.delta,
            "p_value": self.p_value,
            "n": self.n,
            "tested": self.tested,
            "fingerprint": self.fingerprint,
            "assumptions": " ".join(self.assumptions),
            "split": found.split,
            "cost_ratio": found.cost_ratio,
            "accuracy": found.accuracy,
            "reference_accuracy": found.reference_accuracy,
            "difference": found.difference,
            "excess": found.excess,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "outcome": "certified",
            "sentence": self.sentence,
            "risk": self.risk,
            "max_loss": self.max_loss,
            **self.numbers,
            "assumptions": list(self.assumptions),
            "setting": self.setting.to_dict(),
            "fit": self.fit.numbers(),
            "calibrate": self.calibrate.numbers(),
        }


@final
@dataclass(frozen=True, kw_only=True)
class NotCertified:
    """No setting may be promised: F runs alone, which loses nothing against itself.

    Args:
        setting: F alone, to run instead.
        risk: The risk that was to be promised.
        max_loss: The largest risk that was to be allowed.
        delta: The largest chance of a wrong promise.
        why: What stands against it, without a full stop.
        n: Number of `calibrate` examples, 0 where there are none.
        examples_needed: About how many would have sufficed for the safest setting at the shares
            that were seen; None where no number would, or nothing was seen.
    """

    setting: Setting
    risk: Risk
    max_loss: float
    delta: float
    why: str
    n: int
    examples_needed: int | None

    @property
    def reason(self) -> str:
        """Why, and what to run, in plain sentences."""
        enough = ""
        if self.examples_needed is not None and self.examples_needed > self.n:
            enough = (
                f" About {self.examples_needed} examples in calibrate would have sufficed; "
                f"there are {self.n}."
            )
        return f"Not certified: {self.why}.{enough} Run {self.setting.label}."

    @property
    def sentence(self) -> str:
        """The reason, under the name that a certificate has for its sentence."""
        return self.reason

    @property
    def max_cost(self) -> None:
        """No cost was limited; here for the sake of an `OperatingPoint`'s readers."""
        return

    @property
    def numbers(self) -> dict[str, float | int | str | None]:
        """The figures behind the reason, by name."""
        return {"delta": self.delta, "n": self.n, "examples_needed": self.examples_needed}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "outcome": "not certified",
            "sentence": self.sentence,
            "risk": self.risk,
            "max_loss": self.max_loss,
            **self.numbers,
            "setting": self.setting.to_dict(),
        }


def points_text(share: float) -> str:
    """A share as points of accuracy: 0.015 is "1.5"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".")
