"""The policy: after each stage, leave or go on, and where to; and what the answer is.

One module serves replay, runtime, bundle and export, so they agree by construction. Its rules
stand on the tree of visit paths: what is known at a stage, and what an answer combines, depends on
the way there.

Layer: policy.  Source: methods.md 1 and 5; Bolukbasi et al., ICML 2017, sections 3 and 4.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_shape
from offramp._core.errors import InputError
from offramp._core.outputs import best_labels
from offramp._core.schema import stored
from offramp._core.topology import EXIT, Path, Topology
from offramp._core.types import OUTPUT_FORMS, OutputForm
from offramp.policy.combination import BY_STOPPING, Combination, Combine, Stops
from offramp.policy.evidence import Evidence
from offramp.policy.features import COMBINED, Distribution
from offramp.policy.rules import AnyRule, Rule, takes_action
from offramp.policy.stopping import Stopping

_FORMS = {"logits": "logits", "confidence": "labels with confidences", "labels": "labels alone"}


@final
class Node(nn.Module):
    """Rules at one node of the tree of visit paths.

    Args:
        leave: Where it says so, the example leaves.
        routes: For the children in topological order but the last: a rule that prefers the child
            to every later one. They are asked from the last child backwards.
    """

    def __init__(self, leave: Rule, routes: Sequence[Rule] = ()) -> None:
        super().__init__()
        self.leave = leave
        self.routes = nn.ModuleList(routes)  # type: ignore[arg-type]
        self.rules = (leave, *routes)  # the same, found without the module's look-up

    @property
    def free(self) -> bool:
        """True if no rule looks at anything, so that no decision cost is charged."""
        return self.leave.free and all(rule.free for rule in self.routes)


@final
@stored()
class Policy(nn.Module):
    """Rules on the tree of visit paths, temperatures, and the combination of visited stages.

    Args:
        topology: The part of the cascade's topology that this policy uses.
        nodes: Rules for each path that has children; paths as tuples of stage indices.
        temperatures: For each stage what its scores are divided by, `(s,)`, > 0; default 1.
        combine: "last", "mean", "log_linear" or, where every rule is a stopping network,
            "stopping", as in `Combination`.
        weights: For "learned": for each path one weight >= 0 per stage on it.
        outputs: The form of the outputs that it was fitted on, and that it refuses others than:
            "logits"; "confidence", a label with one; "labels", which every form has. None where
            nobody said, as in files of before there were forms.

    Raises:
        InputError: If a path has no rules or too many, a temperature is not positive, weights are
            negative or missing, or there is no such form.
    """

    temperatures: Tensor

    def __init__(
        self,
        topology: Topology,
        nodes: Mapping[Path, Node],
        *,
        temperatures: Sequence[float] | None = None,
        combine: Combine = "last",
        weights: Mapping[Path, Sequence[float]] | None = None,
        outputs: OutputForm | None = None,
    ) -> None:
        super().__init__()
        if outputs is not None:
            check_choice("outputs", outputs, OUTPUT_FORMS)
        self.topology, self.outputs = topology, outputs
        self._check_nodes(nodes)
        stops = stops_of(topology, nodes) if combine == BY_STOPPING else None
        self.combination = Combination(combine, weights, stops)
        self.combination.require(topology.paths())
        values = torch.tensor(
            [1.0] * len(topology) if temperatures is None else list(temperatures),
            dtype=torch.float32,
        )
        check_shape("temperatures", values.shape, (len(topology),))
        if not bool((values > 0).all()):
            raise InputError(f"temperatures must be greater than 0, got {values.tolist()}.")
        self.register_buffer("temperatures", values)
        self.nodes = nn.ModuleDict({_key(path): node for path, node in nodes.items()})
        self._rules = dict(nodes)  # the same modules, found without making names
        self._deciding = frozenset(path[-1] for path in nodes)
        self._ends = {k: tuple(p for p in topology.paths() if p[-1] == k) for k in topology.active}

    def _check_nodes(self, nodes: Mapping[Path, Node]) -> None:
        wanted = {p for p in self.topology.paths() if self.topology.children(p[-1])}
        if set(nodes) != wanted:
            raise InputError(
                f"nodes must hold one entry for each path with children {sorted(wanted)}, "
                f"got {sorted(nodes)}."
            )
        for path, node in nodes.items():
            count = len(self.topology.children(path[-1])) - 1
            if len(node.routes) != count:
                raise InputError(
                    f"The node {path} needs {count} routing rules, got {len(node.routes)}."
                )

    def check_reads(self, given: OutputForm, whose: str) -> None:
        """Raise `InputError` unless this policy may look at outputs of a form.

        Thresholds and weights mean something else on another form: a confidence that a service
        states is not the largest probability of a network's scores.

        Args:
            given: The form.
            whose: Who gives it, for the message: "the trace".
        """
        if self.outputs in (None, "labels", given):
            return
        fitted, here = _FORMS[self.outputs], _FORMS[given]
        raise InputError(
            f"This policy was fitted on {fitted}, but {whose} gives {here}, on which it would "
            f"decide otherwise. Fit it on a trace of {here}, or let the stages give {fitted}: "
            f"Cascade.from_models(..., outputs={self.outputs!r})."
        )

    @property
    def combine(self) -> Combine:
        """How an answer is made from the visited stages."""
        return self.combination.kind

    def node(self, path: Path) -> Node:
        """The rules at a path that has children."""
        return self._rules[path]

    def decided(self, path: Path) -> tuple[int, ...]:
        """Stages on `path` after which something was looked at to decide: they are charged."""
        visited = (path[: i + 1] for i in range(len(path)))
        return tuple(
            p[-1] for p in visited if self.topology.children(p[-1]) and not self.node(p).free
        )

    def decide(self, view: Evidence, stage: int) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """What each example does after `stage`.

        Args:
            view: Outputs of the stages that the examples have visited, `stage` among them.
            stage: The stage that has just answered.

        Returns:
            Action `(m,)`: -1 to leave, else the stage to visit next; and the score of leaving
            `(m,)`: an example leaves where it is at least 0 (infinity where nothing follows).
        """
        if not self.topology.children(stage):
            action = torch.full((len(view),), EXIT, device=view.ids.device)
            return action, torch.full((len(view),), torch.inf, device=view.ids.device)
        return self._by_path(view, stage, self.decide_at)  # type: ignore[return-value]

    def decide_at(
        self, path: Path, view: Evidence
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """As `decide`, for examples that have all come by `path`, which has children."""
        node, at = self.node(path), _At(self, path, view)
        children = self.topology.children(path[-1])
        action = torch.full_like(view.ids, children[-1])  # len(view) would fix the size of a graph
        pairs = list(zip(children[:-1], node.routes, strict=True))
        for child, rule in reversed(pairs):
            action = torch.where(rule.score(at) >= 0, child, action)  # type: ignore[operator]
        score = node.leave.score(at)
        return torch.where(score >= 0, EXIT, action), score

    def step_at(self, path: Path, view: Evidence) -> int:
        """The action of the only example of a view that has come by `path`, by plain ifs.

        Each rule that is asked makes the host wait for the device, so this is for the CPU.
        """
        return self._step(_At(self, path, view))

    def walk_at(self, path: Path, view: Evidence, known: Collection[int]) -> tuple[Path, int]:
        """As `step_at`, as far as the way leads through stages that have answered already.

        Args:
            path: Where the only example of the view stands.
            view: Also of what it may come to.
            known: Stages whose outputs are there before they are visited.

        Returns:
            The path at whose end something has to be done, and what: the action there.
        """
        at = _At(self, path, view)
        action = self._step(at)
        while action in known and action in self._deciding:
            at.follow(action)
            action = self._step(at)
        return at.path, action

    def _step(self, at: "_At") -> int:
        path = at.path
        for way, rule in enumerate(self._rules[path].rules):
            if takes_action(rule, at):
                return EXIT if way == 0 else self.topology.children(path[-1])[way - 1]
        return self.topology.children(path[-1])[-1]

    def distributions(
        self, stages: Sequence[int], logits: Float[Tensor, "k c"]
    ) -> dict[int, Distribution]:
        """What several stages say about one example, computed together, for `Evidence.known`.

        Args:
            stages: `k` of them.
            logits: Of each.
        """
        first, count = stages[0], len(stages)
        follow = stages[-1] - first + 1 == count  # then nothing has to be gathered
        own = self.temperatures[first : first + count] if follow else self.temperatures[[*stages]]
        log_probs = scaled_log_probs(logits, own[:, None])
        return dict(zip(stages, Distribution.each_of(log_probs), strict=True))

    def answer(self, view: Evidence, stage: int) -> Float[Tensor, "m c"]:
        """Combined log-probabilities of examples that leave after `stage`, `(m, c)`.

        The predicted label is the argmax; ties go to the lowest index.

        Raises:
            InputError: If the outputs are rankings without scores; use `predict`.
        """
        (answer,) = self._by_path(view, stage, lambda path, v: (self.answer_at(path, v),))
        return answer

    def answer_at(self, path: Path, view: Evidence) -> Float[Tensor, "m c"]:
        """As `answer`, for examples that have all come by `path`."""
        return _At(self, path, view).distribution(COMBINED).log_probs

    def predict(self, view: Evidence, stage: int, *, top: int = 1) -> Int[Tensor, "m top"]:
        """The best labels of the answer, best first; also for rankings without scores."""
        last = view.output(stage)
        if not last.scored:
            return last.top(top)
        return best_labels(self.answer(view, stage), top)

    def _by_path(
        self, view: Evidence, stage: int, compute: Callable[[Path, Evidence], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Compute for each way to `stage` and take for each example that of its own way."""
        ways = self._ends[stage]
        if len(ways) == 1:
            return tuple(compute(ways[0], view))
        found: tuple[Tensor, ...] = ()
        for path in ways:
            on = view.on(path)
            if not bool(on.any()):
                continue
            here = tuple(compute(path, view))
            if not found:
                found = here
            else:
                found = tuple(
                    torch.where(on.reshape(-1, *[1] * (new.dim() - 1)), new, old)
                    for new, old in zip(here, found, strict=True)
                )
        if not found:  # no example at all: compute on the empty view of any way
            return tuple(compute(ways[0], view))
        return found

    def __json__(self) -> dict[str, object]:
        weights = self.combination.weights.items()
        deciding = [path for path in self.topology.paths() if self.topology.children(path[-1])]
        return {
            "topology": self.topology,
            "temperatures": self.temperatures,
            "combine": self.combine,
            "weights": [_StoredWeights(path, given) for path, given in weights],
            **({} if self.outputs is None else {"outputs": self.outputs}),
            "nodes": [_StoredNode.of(path, self.node(path)) for path in deciding],
        }

    @classmethod
    def __from_json__(
        cls,
        *,
        topology: Topology,
        temperatures: tuple[float, ...],
        combine: str,
        weights: tuple["_StoredWeights", ...],
        nodes: tuple["_StoredNode", ...],
        outputs: OutputForm | None = None,  # older files have none
    ) -> "Policy":
        return cls(
            topology,
            {node.path: Node(node.leave, node.routes) for node in nodes},
            temperatures=temperatures,
            combine=combine,
            weights={each.path: each.weights for each in weights} or None,
            outputs=outputs,
        )


@final
@dataclass(frozen=True)
class _StoredWeights:
    path: Path
    weights: tuple[float, ...]


@final
@dataclass(frozen=True)
class _StoredNode:
    path: Path
    leave: AnyRule
    routes: tuple[AnyRule, ...]

    @classmethod
    def of(cls, path: Path, node: Node) -> "_StoredNode":
        return cls(path, node.leave, node.rules[1:])


@final
class _At:
    """What the rules see of a view on one path; a `Situation`. Computed on first use."""

    def __init__(self, policy: Policy, path: Path, view: Evidence) -> None:
        self._policy, self.path, self._view = policy, path, view
        self.ids = view.ids
        self._known = {} if view.known is None else view.known
        self._combined: Distribution | None = None

    def follow(self, stage: int) -> None:
        """Go on to another stage, where a combination is another one."""
        self.path, self._combined = (*self.path, stage), None

    def distribution(self, stage: int) -> Distribution:
        if stage == COMBINED:
            if self._combined is None:
                combination = self._policy.combination
                each = [self.distribution(j) for j in combination.inputs(self.path)]
                self._combined = combination.of(self.path, each)
            return self._combined
        found = self._known.get(stage)
        if found is None:
            scores = self._view.output(stage).scores()
            found = Distribution(scaled_log_probs(scores, self._policy.temperatures[stage]))
            self._known[stage] = found
        return found

    def ranked(self, stage: int, count: int) -> Int[Tensor, "m count"]:
        return self._view.output(stage).top(count)


def stops_of(topology: Topology, nodes: Mapping[Path, Node]) -> dict[Path, Stops]:
    """For each path the stopping network after each of its stages, None where nothing follows.

    Raises:
        InputError: If another rule decides somewhere.
    """
    after: dict[Path, Stopping | None] = {path: None for path in topology.paths()}
    for path, node in nodes.items():
        if not isinstance(node.leave, Stopping) or node.leave.stage != path[-1]:
            raise InputError(
                f"combine={BY_STOPPING!r} needs at every node a stopping network of its own stage, "
                f"got {type(node.leave).__name__} at {path}."
            )
        after[path] = node.leave
    return {path: tuple(after[path[: k + 1]] for k in range(len(path))) for path in after}


def scaled_log_probs(
    scores: Float[Tensor, "m c"], temperature: Float[Tensor, "#m 1"] | Float[Tensor, ""]
) -> Float[Tensor, "m c"]:
    """Log-probabilities of scores divided by a temperature, or by one for each row."""
    return (scores / temperature).log_softmax(dim=1)


def _key(path: Path) -> str:
    return "_".join(str(k) for k in path)
