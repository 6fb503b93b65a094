"""What was chosen, and what is promised of it: one record, whatever the outcome.

Layer: evaluation.  Nothing is tested or chosen here.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.errors import InputError
from offramp._core.schema import omitted, stored
from offramp.evaluation.limits import OF_COSTS
from offramp.evaluation.results import Evaluation, FrontierPoint, Risk
from offramp.evaluation.shown import choice_card
from offramp.policy import Candidate
from offramp.policy.promise import Guarantee, Limit, Numbers, points_text

MEASURED = "measured, not promised"
_FIGURES = ("split", "n", "cost_ratio")
_COMPARED = ("cost_ratio", "disagreement", "accuracy_drop")
_OF_LABELS = ("accuracy", "reference_accuracy", "accuracy_drop", "negative_flips")


@final
@stored(derived=("outcome",))
@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate to run, why, and what is promised of it.

    Args:
        point: What to run, and what it does on `fit` and `calibrate`.
        limits: What was asked for.
        minimized: "cost", or the risk that was minimized within a cost.
        delta: Largest chance of a wrong promise that was asked for; None if it is only measured.
        guarantee: What is promised, or None.
        refused: Why one network runs alone in place of what was asked for, without a full stop;
            None where it does not.
        alternative: What it was weighed against. Of a cascade that was measured the best single
            network within the limit; of a refusal the best candidate, as measured. None where
            there is none.
        examples_needed: Where a promise was refused: about how many examples would have sufficed
            for the safest candidate at the shares that were seen; None where no number would.
        sentence: The choice in plain words.

    Raises:
        InputError: If it is promised and refused, or promised without a delta.
    """

    point: FrontierPoint
    limits: tuple[Limit, ...]
    minimized: str = omitted("cost")
    delta: float | None = None
    guarantee: Guarantee | None = None
    refused: str | None = None
    alternative: FrontierPoint | None = None
    examples_needed: int | None = omitted(None)
    sentence: str

    def __post_init__(self) -> None:
        if self.guarantee is not None and (self.refused is not None or self.delta is None):
            raise InputError(
                "A choice with a guarantee must have a delta and cannot be refused, got delta = "
                f"{self.delta!r} and refused = {self.refused!r}."
            )

    @property
    def candidate(self) -> Candidate:
        """What to run."""
        return self.point.candidate

    @property
    def cascade(self) -> bool:
        """False where one network is run alone."""
        return self.candidate.method != "single"

    @property
    def outcome(self) -> str:
        """What kind of answer it is, in a few words."""
        if self.refused is not None:
            return "do not cascade" if self.delta is None else "not certified"
        return MEASURED if self.guarantee is None else "certified"

    @property
    def fit(self) -> Evaluation:
        """Its evaluation on `fit`."""
        return self.point.fit

    @property
    def calibrate(self) -> Evaluation | None:
        """Its evaluation on `calibrate`; None without that part, or without its labels."""
        return self.point.calibrate

    @property
    def judged(self) -> Evaluation:
        """The evaluation that it rests on, where it has labels; a promise rests on one part."""
        return self.point.judged if self.delta is None else self.calibrate or self.fit

    @property
    def n(self) -> int:
        """Number of examples that it rests on; 0 where a promise had none."""
        if self.delta is None:
            return self.judged.n
        return 0 if self.point.tested is None else self.point.tested.n

    @property
    def risk(self) -> str:
        """The risks that were limited, or the one that was minimized, by name."""
        limited = ", ".join(dict.fromkeys(limit.risk for limit in self.limits))
        return limited if self.minimized == "cost" else self.minimized

    @property
    def max_drop(self) -> float | None:
        """The first limit of a risk that is no cost, or None."""
        return next((lim.at_most for lim in self.limits if lim.risk not in OF_COSTS), None)

    @property
    def max_cost(self) -> float | None:
        """The limit of the mean cost ratio, or None."""
        return next((limit.at_most for limit in self.limits if limit.risk == "cost"), None)

    @property
    def numbers(self) -> Numbers:
        """The figures behind it as plain values, by name."""
        told: Numbers = {
            "limits": "; ".join(limit.text for limit in self.limits),
            "delta": self.delta,
        }
        if self.delta is None or self.guarantee is not None:
            told |= _figures(self.point, promise=self.delta is not None)
        else:
            told |= {"n": self.n, "examples_needed": self.examples_needed}
        if self.guarantee is not None:
            told |= self.guarantee.numbers
        if self.alternative is not None:
            other = _figures(self.alternative, promise=self.delta is not None)
            told |= {"alternative": self.alternative.candidate.label}
            told |= {f"alternative_{name}": other[name] for name in _COMPARED if name in other}
        return told

    def _repr_html_(self) -> str:
        return choice_card(self)


def _figures(point: FrontierPoint, *, promise: bool) -> Numbers:
    found = (point.tested or point.fit) if promise else point.judged
    names = [*_FIGURES, "disagreement"] if promise else [*_FIGURES]
    names += [] if found is point.unlabeled else _OF_LABELS
    return {name: getattr(found, name) for name in names}


def described(candidate: Candidate, found: Evaluation, risk: Risk) -> str:
    """What a candidate costs and loses on examples, in words.

    Args:
        candidate: Which it is.
        found: What it does on them.
        risk: Which loss: "accuracy_drop", "negative_flips" or "disagreement".
    """
    if risk == "disagreement":
        loss = f"differing in {points_text(found.disagreement or 0.0)} % of its answers"
    elif found.of_losses:
        value = found.negative_flips if risk == "negative_flips" else found.accuracy_drop
        more, gains = ("less" if value < 0 else "more"), ", gains not counted"
        loss = f"losing {abs(value):.4g} {more}{gains if risk == 'negative_flips' else ''}"
    elif risk == "negative_flips":
        loss = f"making {points_text(found.negative_flips)} points of new errors"
    else:
        value = found.accuracy_drop
        verb = "gaining" if value < 0 else "losing"
        loss = f"{verb} {points_text(abs(value))} points of accuracy"
    return (
        f"{candidate.label}, costing {found.cost_ratio:.3f} of {candidate.reference} alone and "
        f"{loss} on {found.n} examples ({found.split})"
    )
