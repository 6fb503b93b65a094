"""The policy: after each stage, leave or go on, and where to; and what the answer is.

One module serves replay, runtime, bundle and export, so they agree by construction. Its rules
stand on the tree of visit paths: what is known at a stage, and what an answer combines, depends on
the way there.

Layer: policy.  Source: methods.md 1 and 5; Bolukbasi et al., ICML 2017, sections 3 and 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_shape
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.schema import stored
from offramp._core.topology import EXIT, Path, Topology
from offramp._core.types import OUTPUT_FORMS, OutputForm
from offramp.policy.combination import BY_STOPPING, Combination, Combine, stops_of
from offramp.policy.features import COMBINED, Distribution
from offramp.policy.of_labels import distribution_of
from offramp.policy.rules import AnyRule, Linear, Rule

_FORMS = {
    "logits": "logits",
    "confidence": "labels with confidences",
    "labels": "labels alone",
    "features": "features",
}


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
        feature_counts: For each stage how many features it gave when the policy was fitted: which
            number is which is known by its place alone, so another count is refused. None for a
            stage, or empty, where nobody said.

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
        feature_counts: Sequence[int | None] = (),
    ) -> None:
        super().__init__()
        if outputs is not None:
            check_choice("outputs", outputs, OUTPUT_FORMS)
        self.topology, self.outputs = topology, outputs
        self.feature_counts = tuple(feature_counts)
        if self.feature_counts:
            check_shape("feature_counts", (len(self.feature_counts),), (len(topology),))
        if any(not (c is None or (type(c) is int and c >= 0)) for c in self.feature_counts):
            raise InputError(
                f"feature_counts must hold None or a number >= 0 for each stage, got "
                f"{self.feature_counts}."
            )
        self._check_nodes(nodes)
        leaves = {path: node.leave for path, node in nodes.items()}
        stops = stops_of(topology, leaves) if combine == BY_STOPPING else None
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
        self._each_of: Tensor | None = None
        self._each: tuple[Tensor, ...] = ()
        self._rules = dict(nodes)  # the same modules, found without making names
        self._children = {k: topology.children(k) for k in topology.active}  # in one look-up

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

    def check_reads(self, given: OutputForm, whose: str, counts: Sequence[int | None] = ()) -> None:
        """Raise `InputError` unless this policy may look at outputs of a form.

        Thresholds and weights mean something else on another form: a confidence that a service
        states is not the largest probability of a network's scores.

        Args:
            given: The form.
            whose: Who gives it, for the message: "the trace".
            counts: How many features each stage gives there, where that is known.
        """
        for stage in self.topology.active if counts else ():
            self.check_count(stage, counts[stage])
        if given == "features" and self.combine != "last":
            raise InputError(
                f"combine must be 'last' where {whose} gives features and no classes, got "
                f"{self.combine!r}: such answers cannot be combined."
            )
        if self.outputs in (None, "labels", given):
            return
        fitted, here = _FORMS[self.outputs], _FORMS[given]
        raise InputError(
            f"This policy was fitted on {fitted}, but {whose} gives {here}, on which it would "
            f"decide otherwise. Fit it on a trace of {here}, or let the stages give {fitted}: "
            f"Cascade.from_models(..., outputs={self.outputs!r})."
        )

    def check_count(self, stage: int, given: int | None) -> None:
        """Raise `InputError` unless a stage gives as many features as this policy was fitted on."""
        fitted = self.feature_counts[stage] if self.feature_counts else None
        if fitted is not None and given is not None and fitted != given:
            raise InputError(
                f"features must be those that the policy was fitted on, {fitted} of stage "
                f"{self.topology.names[stage]!r}, got {given}. Each is known by its place "
                "alone: fit the policy on what the stage gives now, or let it give what it gave."
            )

    @property
    def combine(self) -> Combine:
        """How an answer is made from the visited stages."""
        return self.combination.kind

    def node(self, path: Path) -> Node:
        """The rules at a path that has children."""
        return self._rules[path]

    @property
    def deciding_rules(self) -> int:
        """How many rules look at something to decide."""
        return sum(not rule.free for node in self._rules.values() for rule in node.rules)

    def decided(self, path: Path) -> tuple[int, ...]:
        """Stages on `path` after which something was looked at to decide: they are charged."""
        visited = (path[: i + 1] for i in range(len(path)))
        return tuple(
            p[-1] for p in visited if self.topology.children(p[-1]) and not self.node(p).free
        )

    def decide(self, at: "Evidence") -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """What each example does at the end of the path that all of them came by.

        Args:
            at: What is known there.

        Returns:
            Action `(m,)`: -1 to leave, else the stage to visit next; and the score of leaving
            `(m,)`: an example leaves where it is at least 0 (infinity where nothing follows).
        """
        children = self._children[at.path[-1]]
        if not children:
            action = torch.full((len(at),), EXIT, device=at.ids.device)
            return action, torch.full((len(at),), torch.inf, device=at.ids.device)
        node = self._rules[at.path]
        action = torch.full_like(at.ids, children[-1])  # len(at) would fix the size of a graph
        for child, rule in zip(children[-2::-1], node.rules[:0:-1], strict=True):
            action = torch.where(rule.score(at) >= 0, child, action)
        score = node.leave.score(at)
        return torch.where(score >= 0, EXIT, action), score

    def step(self, at: "Evidence") -> int:
        """What the only example does at the end of its path, by plain ifs.

        A rule that is asked may make the host wait for the device, so this is for the CPU.

        Args:
            at: What is known of it.

        Returns:
            -1 to leave, else the stage to visit next.
        """
        children = self._children[at.path[-1]]
        if not children:
            return EXIT
        for way, rule in enumerate(self._rules[at.path].rules):
            if rule.takes(at) if isinstance(rule, Linear) else rule.score(at).item() >= 0:
                return EXIT if way == 0 else children[way - 1]
        return children[-1]

    def temperature(self, stage: int) -> Float[Tensor, ""]:
        """That of one stage, found without making a view of it each time."""
        held = self._buffers["temperatures"]
        if self._each_of is not held:
            if torch.compiler.is_compiling():
                return self.temperatures[stage]
            self._each_of, self._each = held, self.temperatures.unbind()
        return self._each[stage]

    def answer(self, at: "Evidence") -> Float[Tensor, "m c"]:
        """Combined log-probabilities of examples that leave at the end of their path, `(m, c)`.

        The predicted label is the argmax; ties go to the lowest index.

        Raises:
            InputError: If the outputs are rankings without scores; use `predict`.
        """
        return at.distribution(COMBINED).log_probs

    def says(self, at: "Evidence") -> StageOutput:
        """What examples are told that leave at the end of their path.

        The combined log-probabilities, as logits; or, where stages give none and nothing is
        combined, what the last of them has said, word for word.
        """
        if self.combination.kind == "last" and not at.has_logits():
            return at.output(at.path[-1])
        log_probs = self.answer(at)
        return StageOutput(classes=log_probs.shape[1], logits=log_probs)

    def predict(self, at: "Evidence", *, top: int = 1) -> Int[Tensor, "m top"]:
        """The best labels of the answer, best first; also for rankings without scores."""
        return self.says(at).top(top)

    def __json__(self) -> dict[str, object]:
        weights = self.combination.weights.items()
        deciding = [path for path in self.topology.paths() if self.topology.children(path[-1])]
        return {
            "topology": self.topology,
            "temperatures": self.temperatures,
            "combine": self.combine,
            "weights": [_StoredWeights(path, given) for path, given in weights],
            **({} if self.outputs is None else {"outputs": self.outputs}),
            **({"feature_counts": self.feature_counts} if self.feature_counts else {}),
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
        feature_counts: tuple[int | None, ...] = (),  # nor these
    ) -> "Policy":
        return cls(
            topology,
            {node.path: Node(node.leave, node.routes) for node in nodes},
            temperatures=temperatures,
            combine=combine,
            weights={each.path: each.weights for each in weights} or None,
            outputs=outputs,
            feature_counts=feature_counts,
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
class Evidence:
    """What a policy may look at: what the stages on one path said of `m` examples.

    All of them came by that path, and stand at its end. There is no label here and no other
    example's output, so a policy cannot peek at either. It is what rules see, a `Situation`;
    distributions are computed on first use.

    Args:
        policy: Whose temperatures and combination count.
        path: Stages visited, in order.
        outputs: For each stage the outputs held, or None where no example has visited it.
        ids: Keys of the examples, `(m,)`, int64: they key the random numbers of random policies.
        rows: Positions of the `m` examples within `outputs`, or None if they are all, in order.
        known: Class probabilities of single stages that were computed before, for the same
            examples and policy; it is added to.
    """

    def __init__(
        self,
        policy: Policy,
        path: Path,
        outputs: Sequence[StageOutput | None],
        ids: Int[Tensor, " m"],
        rows: Int[Tensor, " m"] | None = None,
        known: dict[int, Distribution] | None = None,
    ) -> None:
        self.path, self.ids = path, ids
        self._policy, self._outputs, self._rows = policy, outputs, rows
        self._known = {} if known is None else known
        self._combined: Distribution | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def follow(self, stage: int) -> None:
        """Go on to another stage, where a combination is another one."""
        self.path, self._combined = (*self.path, stage), None

    def has_logits(self) -> bool:
        """Whether the last stage on the path gives logits."""
        held = self._outputs[self.path[-1]]
        return held is not None and held.logits is not None

    def output(self, stage: int) -> StageOutput:
        """Outputs of a visited stage; what unvisited rows hold is void."""
        held = self._outputs[stage]
        if held is None:
            raise InputError(f"Stage {stage} has not been visited by any of these examples.")
        if held.features is not None:
            self._policy.check_count(stage, held.features.shape[1])
        return held if self._rows is None else held.take(self._rows)

    def distribution(self, stage: int) -> Distribution:
        """Scaled class probabilities of a visited stage, or of the combination of the path."""
        if stage == COMBINED:
            return self._combination()
        found = self._known.get(stage)
        if found is None:
            found = distribution_of(self.output(stage), self._policy.temperature(stage))
            self._known[stage] = found
        return found

    def _combination(self) -> Distribution:
        combination = self._policy.combination
        if combination.kind == "last":
            return self.distribution(self.path[-1])
        if self._combined is None:
            each = [self.distribution(j) for j in combination.inputs(self.path)]
            self._combined = combination.of(self.path, each)
        return self._combined

    def ranked(self, stage: int, count: int) -> Int[Tensor, "m count"]:
        """The best labels of a visited stage, best first."""
        return self.output(stage).top(count)


def _key(path: Path) -> str:
    return "_".join(str(k) for k in path)
