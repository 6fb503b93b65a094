"""The cascade: stages and the decision edges between them.

Layer: stages.  Source: methods.md 1 (network selection and early exit as one DAG).
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.batch import batch_size
from offramp._core.checks import check_class_names
from offramp._core.errors import InputError, TopologyError
from offramp._core.outputs import StageOutput
from offramp._core.topology import RAW_INPUT, Topology
from offramp._core.types import AnyBatch, OutputForm, Raw, StageForm
from offramp.models import ModelSpec, SeveralLogitsError
from offramp.stages.classes import check_same_classes, same_names, settle_classes, tell_classes
from offramp.stages.exits import AtOne, Exits, Kind, chain_edges, exit_stages
from offramp.stages.segments import run_segments
from offramp.stages.stage import Stage, take_in
from offramp.stages.transforms import Transforms, chained
from offramp.stages.wrong_type import naming_types

_CHANGES_IN_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@final
class Cascade(nn.Module):
    """Stages in topological order, cheapest first, with the edges a policy may take.

    All modules are put into evaluation mode; there is a warning if that changes what one computes.

    Args:
        stages: At least one, in topological order; the first is the root.
        edges: "full" (from each stage to every later one of another group), "chain" (to the next
            one), or pairs of names.
        class_names: Names of the classes, for people; by default those that the stages tell.

    Raises:
        TopologyError: If names repeat, a stage cannot be reached, an edge leads backwards or to a
            stage whose source need not have run, a source gives no carry, or stages of one group
            do not share their module.
        InputError: If stages answer in different forms, or name their classes otherwise.

    >>> cascade = Cascade.from_models({"small": nn.Linear(4, 3), "large": nn.Linear(4, 3)})
    >>> cascade.topology.describe(), cascade(torch.zeros(2, 4)).shape
    ('small -> large', torch.Size([2, 2, 3]))
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        edges: str | Iterable[tuple[str, str]] = "full",
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        names = [stage.name for stage in stages]
        self.topology = Topology.of(
            names,
            edges=edges,
            sources=[_source(stage, names) for stage in stages],
            groups=[stage.group for stage in stages],
        )
        self.topology.check_cascade()
        _check_sharing(stages, self.topology)
        self.outputs = _form_of(stages)
        self.class_names = same_names(stages, check_class_names(class_names, None))
        _warn_if_training(stages)
        self.stages = nn.ModuleList(stages)
        if self.class_names:
            tell_classes(stages, len(self.class_names))
        self.eval()

    @classmethod
    def from_models(
        cls,
        models: Mapping[str, nn.Module | Stage],
        *,
        edges: str | Iterable[tuple[str, str]] = "full",
        transform: Transforms | Mapping[str, Transforms] = None,
        specs: Mapping[str, ModelSpec] | None = None,
        class_names: Sequence[str] = (),
        outputs: StageForm | Mapping[str, StageForm] = "logits",
        classes: int | None = None,
    ) -> "Cascade":
        """Network selection: every stage is a whole network that reads the raw input.

        Args:
            models: Networks by name, cheapest first; or stages, as `offramp.adapters` makes them of
                what people have, which bring their own transform and class names.
            edges: As in the class.
            transform: Applied to the raw input first: for all networks, or for each by name, one
                module or a list of them in order (`offramp.stages.transforms`).
            specs: How to build each network again, by name.
            class_names: As in the class.
            outputs: What the networks or services answer with, all alike as in a trace, as one
                text or by name (`Stage`): "logits" or "probabilities"; "confidence" for a label
                with the probability that it is right; "labels" for labels alone.
            classes: Number of classes, for services that give labels; by default that of
                `class_names`.

        Raises:
            InputError: If `transform`, `specs` or `outputs` name a network that is not there, or
                networks answer in different forms.
        """
        each: Mapping[str, Transforms] = (
            transform
            if isinstance(transform, Mapping)
            else dict.fromkeys(models, chained(transform))
        )
        class_names = check_class_names(class_names, classes)
        forms = outputs if isinstance(outputs, Mapping) else dict.fromkeys(models, outputs)
        named: tuple[tuple[str, object, Mapping[str, object]], ...] = (
            ("transform", transform, each),
            ("specs", specs, specs or {}),
            ("outputs", outputs, forms),
        )
        ready = {name for name, model in models.items() if isinstance(model, Stage)}
        for argument, given, by_name in named:
            unknown = sorted(set(by_name) - set(models))
            if unknown:
                raise InputError(
                    f"{argument} must name only networks of the cascade {sorted(models)}, "
                    f"got {unknown}."
                )
            said = sorted(ready & set(by_name)) if isinstance(given, Mapping) else []
            if said:
                raise InputError(
                    f"{argument} must not name {said}: they are stages and bring their own."
                )
        stages = [
            model.named(name)
            if isinstance(model, Stage)
            else Stage(
                name,
                model,
                transform=each.get(name),
                spec=(specs or {}).get(name),
                outputs=forms.get(name, "logits"),
                classes=classes or len(class_names) or None,
            )
            for name, model in models.items()
        ]
        return cls(stages, edges=edges, class_names=class_names)

    @classmethod
    def from_network(
        cls,
        net: nn.Module,
        exits: Exits,
        *,
        head: Kind | Mapping[str, AtOne] | None = None,
        example: AnyBatch,
        last: str = "last",
        edges: str | Iterable[tuple[str, str]] = "chain",
        transform: Transforms = None,
        class_names: Sequence[str] = (),
        spec: ModelSpec | None = None,
        classes: int | None = None,
    ) -> "Cascade":
        """Early exit: a trained network, untouched, with exits after some of its layers.

        The stages share the network's weights. An exit has the name of its layer, or, where there
        are alternative heads, "layer/label" with the layer as their group.

        Args:
            net: In evaluation mode.
            exits: How many, spread evenly over the computation; or layers in the order they run, by
                name or as points, which `cut_points` lists and `choose_points` chooses among.
            head: What reads what a layer gives, `(m, ...)`, and gives logits `(m, c)`: a name of
                `offramp.models.HEADS`, such as "conv_head"; or a function of the layer's shape and
                the number of classes that returns a module, or a spec of how to build one, so that
                a bundle can build it again. Or by exit such a name or function, a module, a spec,
                or several by label. None: for each exit the one of `offramp.models.default_head`.
                A module's attribute `keeps` names inputs of the network that it gets as further
                arguments. New heads are not trained: `offramp.train_heads` does that.
            example: Some raw input; one example is enough.
            last: Name of the last stage, the network's own answer.
            edges: "chain" (from each head to those of the next point), or as in the class.
            transform: Applied to the raw input first, one module or several in order.
            class_names: As in the class.
            spec: How to build `net` again; a bundle needs to know. With it goes one example, made
                up where its values are not whole numbers (`offramp.stages.synthetic_example`).
            classes: Number of classes, for a network that returns several tensors: its logits are
                the one with so many columns. By default that of `class_names`.

        Raises:
            UnknownNameError: If there is no such layer or head, or a head belongs to no exit.
            InputError, UnsupportedError: As `cut`, `choose_points` and `offramp.models.build`; or
                if an exit has no head, or one that is made for another shape.

        Warns:
            UserWarning: If a head of ours takes padding for tokens, looks for the features in the
                wrong axis, or reads a first token that sees nothing of the others.

        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> cascade = Cascade.from_network(
        ...     net, exits=1, head="vector_linear", example=torch.zeros(1, 4)
        ... )
        >>> cascade.topology.describe(), cascade(torch.zeros(2, 4)).shape
        ('1 -> last', torch.Size([2, 2, 3]))
        """
        class_names = check_class_names(class_names, classes)
        stages = exit_stages(
            net,
            exits,
            head,
            example,
            last=last,
            transform=transform,
            spec=spec,
            classes=classes or len(class_names) or None,
        )
        pairs = chain_edges(stages) if edges == "chain" else edges
        return cls(stages, edges=pairs, class_names=class_names)

    def __len__(self) -> int:
        return len(self.topology)

    def _repr_html_(self) -> str:
        from offramp.stages.shown import cascade_card  # for a notebook only

        return cascade_card(self)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)  # type: ignore[arg-type]

    def stage(self, which: int | str) -> Stage:
        """A stage by position or name; raises `UnknownNameError` with the nearest name."""
        position = self.topology.index(which) if isinstance(which, str) else which
        return self.stages[position]  # type: ignore[return-value]

    def forward(self, batch: AnyBatch) -> Float[Tensor, "m s c"]:
        """Logits of every stage on every example; a segment that stages share runs once.

        Args:
            batch: Raw input of `m` examples.

        Returns:
            `(m, s, c)`, float32; `(m, s, c + 1)` of stages that answer with a confidence.

        Raises:
            InputError: If the stages have different numbers of classes, or answer with labels
                alone.
        """
        return torch.stack([said.scores() for said in self.answers(batch)], dim=1)

    def answers(self, batch: AnyBatch) -> list[StageOutput]:
        """What every stage says about every example; a segment that stages share runs once.

        Args:
            batch: Raw input of `m` examples.

        Raises:
            InputError: If the stages have different numbers of classes, or one does not answer for
                each example.
        """
        found: list[StageOutput] = []
        batch = take_in(self)(batch)
        with naming_types(self, batch):
            for stage, result in run_segments(list(self), batch):
                try:
                    said = stage.answer(result)
                    said.check_answers(stage.name, batch_size(batch))
                    found.append(said)
                except SeveralLogitsError:
                    if settle_classes(self, batch):
                        return self.answers(batch)
                    raise
        self._check_classes([said.classes for said in found])
        return found

    def with_stages(self, stages: Sequence[Stage]) -> "Cascade":
        """The same cascade with other stages in the place of its own, in order."""
        names = [stage.name for stage in stages]
        edges = [(names[a], names[b]) for a, b in self.topology.edges]
        return Cascade(stages, edges=edges, class_names=self.class_names)

    def check(self, example_batch: Raw) -> int:
        """Run every stage once on a small batch and return the number of classes.

        Raises:
            InputError: If the stages have different numbers of classes, or there are not as many
                class names.
        """
        with evaluating(self), torch.inference_mode():
            return self.answers(example_batch)[0].classes

    def _check_classes(self, counts: Sequence[int]) -> None:
        check_same_classes(dict(zip(self.topology.names, counts, strict=True)))
        if self.class_names and len(self.class_names) != counts[0]:
            raise InputError(
                f"class_names must have {counts[0]} entries, as the stages' outputs have, got "
                f"{len(self.class_names)}."
            )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _source(stage: Stage, names: Sequence[str]) -> int:
    if stage.source is None:
        return RAW_INPUT
    if stage.source not in names:
        raise TopologyError(
            f"The source of stage {stage.name!r} must be a stage of the cascade, one of "
            f"{list(names)}, got {stage.source!r}."
        )
    return names.index(stage.source)


def _form_of(stages: Sequence[Stage]) -> OutputForm:
    """What all stages answer with."""
    forms = {stage.name: stage.form for stage in stages}
    if len(set(forms.values())) > 1:
        raise InputError(
            f"outputs must be one form for all stages, as in a trace, got {forms}. Of logits the "
            "best label with its probability can be taken (outputs='confidence'), or without it "
            "(outputs='labels')."
        )
    return stages[0].form


def _check_sharing(stages: Sequence[Stage], topology: Topology) -> None:
    first: dict[str, Stage] = {}
    for stage, source in zip(stages, topology.sources, strict=True):
        if source != RAW_INPUT and not stages[source].gives_carry:
            raise TopologyError(
                f"Stage {stage.name!r} continues {stages[source].name!r}, which is a whole "
                "network and gives no carry; give it a head of its own."
            )
        other = first.setdefault(stage.group, stage)
        if other.module is not stage.module or other.source != stage.source:
            raise TopologyError(
                f"Stages {other.name!r} and {stage.name!r} of group {stage.group!r} must share "
                "one module and one source."
            )


def _warn_if_training(stages: Sequence[Stage]) -> None:
    for stage in stages:
        layers = [m for m in stage.modules() if isinstance(m, _CHANGES_IN_TRAINING) and m.training]
        if layers:
            warnings.warn(
                f"Stage {stage.name!r} was in training mode and has been put into evaluation "
                f"mode ({type(layers[0]).__name__} computes something else there).",
                stacklevel=3,
            )
