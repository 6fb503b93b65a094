"""What an adaptive model may be made of: a policy, a candidate, or whatever holds one.

Layer: runtime.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from offramp._core.errors import InputError
from offramp.policy.candidate import Candidate
from offramp.policy.policy import Policy


@runtime_checkable
class Chosen(Protocol):
    """What a choice of operating point gives: it holds a candidate."""

    @property
    def candidate(self) -> Candidate:
        """What to run."""
        ...


@runtime_checkable
class Explained(Chosen, Protocol):
    """A choice that says why: what was limited, the figures, and a sentence."""

    risk: str
    max_drop: float | None
    max_cost: float | None

    @property
    def sentence(self) -> str:
        """The choice in one plain sentence."""
        ...

    @property
    def numbers(self) -> Mapping[str, object]:
        """The figures behind it, by name."""
        ...


AnyChoice = Candidate | Policy | Chosen


def policy_of(choice: AnyChoice) -> Policy:
    """The policy of a candidate, of an operating point, or itself."""
    return choice if isinstance(choice, Policy) else candidate_of(choice).policy


def candidate_of(choice: object) -> Candidate:
    """The candidate of an operating point, or itself.

    Raises:
        InputError: If there is none, as for a policy alone.
    """
    found = choice if isinstance(choice, Candidate) else getattr(choice, "candidate", None)
    if isinstance(found, Candidate):
        return found
    alone = (
        " A policy alone does not say what it is compared with: give Candidate(policy=policy, "
        "method='mine', reference='name of the reference')."
        if isinstance(choice, Policy)
        else ""
    )
    raise InputError(
        "choice must be a candidate, or what Frontier.cheapest, best or certify gives, got "
        f"{type(choice).__name__}.{alone}"
    )
