"""Problems between values of a configuration that are each well formed.

Layer: project.
"""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches

from offramp.project.config.fields import DEFAULT_HEAD, HeadChoice
from offramp.project.config.pairs import mismatches
from offramp.project.config.sections import CostSection, ExitsSection, FitSection, RunConfig

Problem = tuple[Sequence[str | int], str]  # where, what

#: What stands beside the kind of a stage; None is a network.
_BESIDE: dict[str | None, tuple[str, ...]] = {
    None: ("model", "arguments", "weights", "weights_sha256", "transform", "outputs"),
    "function": ("transform", "outputs"),
    "openai": (),
    "http": ("transform",),
    "sklearn": ("transform",),
}
_FIXED = ("channels", "features", "classes", "axes")  # arguments of heads that the layer decides


def contradictions(config: RunConfig) -> list[Problem]:
    """All of them, each with its place."""
    names = [stage.name for stage in config.stage]
    found: list[Problem] = [
        (("stage", k, "name"), f"{name!r} is the name of an earlier stage")
        for k, name in enumerate(names)
        if name in names[:k]
    ]
    if config.data is not None and config.data.splits and config.data.ranges:
        found.append((("data", "ranges"), "give either splits, at random, or ranges, by position"))
    if config.data is not None:
        found += [
            (("data", "options", name), f"stands in [data] itself: {name} = ...")
            for name in ("classes", "class_count")
            if name in config.data.options
        ]
    found += _of_answers(config)
    found += _of_models(config)
    found += _of_fit(config.fit)
    found += _of_cost(config.cost)
    found += _of_classifiers(config)
    found += mismatches(config)
    found += _of_network(config)
    found += _of_joint(config)
    if config.exits is not None:
        found += _of_exits(config.exits)
    known = names or _exit_names(config)
    return found + (_unknown_stages(config, known) if known else [])


def _of_answers(config: RunConfig) -> list[Problem]:
    """Recorded answers stand in the place of what would be recorded."""
    if config.answers is None:
        return []
    kinds = ("logits", "probabilities", "predictions")
    given = [name for name in kinds if getattr(config.answers, name) is not None]
    found: list[Problem] = [
        (("answers",), f"stands in the place of [{name}]; leave one of them out")
        for name in ("data", "stage", "network")
        if name in config.model_fields_set
    ]
    if len(given) != 1:
        text = f"needs one of {', '.join(kinds)}, got {', '.join(given) or 'none'}"
        return [*found, (("answers",), text)]
    named = getattr(config.answers, given[0])
    if list(named) != list(config.answers.costs):
        text = f"must name the stages {', '.join(named)}, got {', '.join(config.answers.costs)}"
        found.append((("answers", "costs"), text))
    return found


def _of_models(config: RunConfig) -> list[Problem]:
    """What is built: a model everywhere, or in its place a function in a `[[stage]]`."""
    found: list[Problem] = []
    if config.network is not None and not config.network.model:
        found.append((("network", "model"), "is missing"))
    for k, stage in enumerate(config.stage):
        kind = stage.instead
        if kind is None and not stage.model:
            text = (
                'is missing; or function = "module:name", sklearn = ..., openai = {...}, '
                "http = {...}"
            )
            found.append((("stage", k, "model"), text))
        fitted = ("labels", "allow_types") if kind == "sklearn" and not stage.to_fit else ()
        given = ("arguments",) if stage.to_fit else ()
        found += [
            (("stage", k, name), f"does not belong to a stage with {kind or 'model'} = ...")
            for name in sorted(stage.model_fields_set)
            if name not in ("name", kind, *_BESIDE[kind], *fitted, *given)
        ]
        if kind is not None:
            found += _of_service(("stage", k, kind), kind, getattr(stage, kind))
    return found


def _of_service(place: Sequence[str | int], kind: str, given: object) -> list[Problem]:
    """Arguments that the adapter does not have, or that are missing."""
    if not isinstance(given, dict):
        return []
    from offramp.adapters.http import from_http  # as METERS below
    from offramp.adapters.openai import from_openai

    known = inspect.signature(from_openai if kind == "openai" else from_http).parameters
    needed = ("url", "model", "prompt") if kind == "openai" else ("url", "model")
    return [
        *(
            ((*place, name), f"there is no such key. Known: {', '.join(known)}.")
            for name in given
            if name not in known
        ),
        *(((*place, name), "is missing") for name in needed if name not in given),
    ]


def _of_cost(cost: CostSection) -> list[Problem]:
    from offramp.stages import METERS  # it takes a second, so whoever only asks for help is spared

    measured = ", ".join(METERS)
    found: list[Problem] = [
        (("cost", "also"), f"{unit!r} cannot be measured ({measured} can)")
        for unit in cost.also
        if unit not in METERS
    ]
    if not cost.given and cost.unit not in METERS:
        text = f"{cost.unit!r} cannot be measured ({measured} can); use cost.given"
        found.append((("cost", "unit"), text))
    return found


def _of_classifiers(config: RunConfig) -> list[Problem]:
    """Classifiers of scikit-learn have no operations to count, and are fitted alone."""
    names = [stage.name for stage in config.stage if stage.sklearn is not None]
    if not names:
        return []
    found: list[Problem] = []
    who = ", ".join(map(repr, names))
    if config.cost.unit == "flops" and not config.cost.given:
        text = f'flops of {who} cannot be counted; say "seconds", or give the costs: cost.given'
        found.append((("cost", "unit"), text))
    if "flops" in config.cost.also:
        found.append((("cost", "also"), f"flops of {who} cannot be counted"))
    if "joint" in config.model_fields_set:
        found.append((("joint",), f"trains networks, and {who} are classifiers"))
    return found


def _of_fit(fit: FitSection) -> list[Problem]:
    found: list[Problem] = []
    if fit.level is None:
        if fit.max_drop is not None and fit.max_cost is not None:
            text = "give either max_drop or max_cost, not both; with delta both can be promised"
            found.append((("fit", "max_cost"), text))
        if fit.risk not in ("accuracy_drop", "negative_flips"):
            text = f"{fit.risk!r} can only be certified; give delta as well, such as 0.05"
            found.append((("fit", "risk"), text))
        if fit.unlabeled:
            text = "without labels nothing can be measured; give delta as well, such as 0.05"
            found.append((("fit", "unlabeled"), text))
        return found
    if fit.unlabeled and fit.max_drop is not None and fit.risk != "disagreement":
        text = f"leaves no labels for risk = {fit.risk!r}; 'disagreement' takes none"
        found.append((("fit", "unlabeled"), text))
    if fit.margin is not None:
        text = 'guards a measured risk, a certificate needs no guard; delta = "none" measures only'
        found.append((("fit", "margin"), text))
    for name in ("max_drop", "max_cost"):
        value = getattr(fit, name)
        if value is not None and not 0 < value < 1:
            text = f'must be in (0, 1) to be certified, got {value:g}; delta = "none" measures only'
            found.append((("fit", name), text))
    return found


def _of_network(config: RunConfig) -> list[Problem]:
    found: list[Problem] = []
    if config.network is not None and config.stage:
        text = "give either [[stage]], several networks, or [network], one network with exits"
        found.append((("network",), text))
    for name in ("exits", "train", "class_exits"):
        if name in config.model_fields_set and config.network is None:
            found.append(((name,), "belongs to a [network], and there is none"))
    full = config.cascade.edges == "full" and "edges" in config.cascade.model_fields_set
    if config.network is not None and full:
        text = 'exits run one after the other; leave edges out, or say "chain" or pairs'
        found.append((("cascade", "edges"), text))
    if config.network is not None and config.network.name in _exit_names(config)[:-1]:
        text = f"{config.network.name!r} is the name of an exit; give the network another"
        found.append((("network", "name"), text))
    if config.train.augment is not None and config.train.cache:
        text = "augmented examples differ in each epoch; give either augment or cache"
        found.append((("train", "cache"), text))
    low, high = config.class_exits.thresholds
    if not 0 < low <= high <= 1:
        text = f"must be a range [low, high] within (0, 1], got {[low, high]}"
        found.append((("class_exits", "thresholds"), text))
    if config.class_exits.together and config.class_exits.constraints == "paper":
        text = "the paper's constraints are about one class; together needs constraints = 'strict'"
        found.append((("class_exits", "together"), text))
    return found


def _of_joint(config: RunConfig) -> list[Problem]:
    if "joint" not in config.model_fields_set:
        return []
    joint = config.joint
    found: list[Problem] = []
    if config.network is not None:
        found.append((("joint",), "belongs to several networks, [[stage]], not to a [network]"))
    elif len(config.stage) < 2:
        text = "needs at least two [[stage]]; with one there is nothing to stop at"
        found.append((("joint",), f"{text}, got {len(config.stage)}"))
    found += [
        (("joint", "cost_weights", k), f"{cost_weight!r} stands there twice")
        for k, cost_weight in enumerate(joint.cost_weights)
        if cost_weight in joint.cost_weights[:k]
    ]
    if config.fit.level is not None and {config.fit.max_drop, config.fit.max_cost} == {None}:
        text = "needs a limit to certify: give max_drop or max_cost as well"
        found.append((("fit", "delta"), text))
    if config.fit.unlabeled:
        text = "does not go with [joint], whose training is compared on the labels of all parts"
        found.append((("fit", "unlabeled"), text))
    if joint.warm_up > joint.epochs:
        text = f"must be at most epochs = {joint.epochs}, got {joint.warm_up}"
        found.append((("joint", "warm_up"), text))
    if joint.frozen:
        bare = [stage.name for stage in config.stage if stage.untrained]
        if bare or joint.alone:
            text = "keeps the networks as they are, so leave alone out and give each stage weights"
            found.append((("joint", "frozen"), f"{text}, also {', '.join(bare)}" if bare else text))
    if joint.rollouts == "visited" and joint.estimator != "reinforce":
        text = f"'visited' goes with estimator = 'reinforce', not {joint.estimator!r}"
        found.append((("joint", "rollouts"), text))
    return found


def _of_exits(exits: ExitsSection) -> list[Problem]:
    found: list[Problem] = []
    if exits.at is not None:
        for name in ("every", "quantiles", "match", "inside"):
            if name in exits.model_fields_set:
                text = "at names the layers; this chooses them, so give one or the other"
                found.append((("exits", name), text))
        found += [
            (("exits", "at", k), f"{layer!r} stands there twice")
            for k, layer in enumerate(exits.at)
            if layer in exits.at[:k]
        ]
    if exits.every is not None and exits.quantiles is not None:
        found.append((("exits", "quantiles"), "give either every or quantiles, not both"))
    for label, head in exits.heads.items():
        found += _of_head(("exits", "heads", *([label] if label else [])), head)
    return found


def _of_head(place: Sequence[str | int], head: HeadChoice) -> list[Problem]:
    from offramp.models import HEADS

    if head.kind == DEFAULT_HEAD:
        text = f"{DEFAULT_HEAD!r} has no options; name the kind of head that shall have it."
        return [((*place, name), text) for name in head.options]
    if head.kind not in HEADS:
        near = get_close_matches(head.kind, list(HEADS), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return [(place, f"there is no head {head.kind!r}.{hint} Known: {', '.join(HEADS)}.")]
    own = inspect.signature(HEADS[head.kind]).parameters
    known = [*(name for name in own if name not in _FIXED), "layout"]
    return [
        ((*place, name), f"{head.kind!r} has no such option. Known: {', '.join(known)}.")
        for name in head.options
        if name not in known
    ]


def _exit_names(config: RunConfig) -> list[str]:
    """Names of the stages of a network with exits, where the configuration names the layers."""
    if config.network is None or config.exits is None or config.exits.at is None:
        return []
    exits = [name for layer in config.exits.at for name in config.exits.names(layer)]
    return [*exits, config.network.name]


def _unknown_stages(config: RunConfig, names: Sequence[str]) -> list[Problem]:
    mentioned: list[tuple[Sequence[str | int], str]] = [
        (("cost", "given", name), name) for name in config.cost.given
    ]
    if isinstance(config.cascade.edges, list):
        mentioned += [
            (("cascade", "edges", k), end) for k, e in enumerate(config.cascade.edges) for end in e
        ]
    if config.fit.reference is not None:
        mentioned.append((("fit", "reference"), config.fit.reference))
    found: list[Problem] = [
        (loc, f"there is no stage {name!r}; there are {', '.join(names)}")
        for loc, name in mentioned
        if name not in names
    ]
    missing = [n for n in names if config.cost.given and n not in config.cost.given]
    found += [(("cost", "given"), f"stage {name!r} has no cost") for name in missing]
    return found
