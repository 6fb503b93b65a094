"""Stages that answer with their classes in the order of a cascade.

Layer: adapters.
"""

from collections import Counter
from collections.abc import Sequence

from offramp._core.checks import check_class_names
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.models import InOrder, ModelSpec
from offramp.stages import Stage


def in_order(stage: Stage, class_names: Sequence[str] | None) -> Stage:
    """The same stage with its classes in the order of these names.

    Args:
        stage: A whole network or service.
        class_names: All its classes, as the cascade orders them. Where the stage does not tell
            theirs, these are taken for them, in its own order. None changes nothing; an empty
            list leaves out the names, so that no cascade compares them.

    Raises:
        InputError: If the stage has other names, or several classes of one name; or if it is a
            service or answers with labels alone, which its own adapter puts in order.

    >>> from torch import nn, tensor
    >>> stage = Stage("a", nn.Identity(), class_names=["cat", "dog", "eel"])
    >>> turned = in_order(stage, ["dog", "eel", "cat"])
    >>> turned.run(tensor([[0.1, 0.2, 0.3]]))[0].logits, turned.class_names
    (tensor([[0.2000, 0.3000, 0.1000]]), ('dog', 'eel', 'cat'))
    """
    if class_names is None:
        return stage
    wanted = check_class_names(class_names, None)
    if not stage.class_names or not wanted or wanted == stage.class_names:
        count = stage.classes
        if wanted and count not in (None, len(wanted)):
            raise InputError(f"class_names must have {count} entries, got {len(wanted)}.")
        return stage.replaced(class_names=wanted)
    if stage.on_error is not None or stage.form in ("labels", "features"):
        raise InputError(
            f"Stage {stage.name!r} answers with {stage.form}; give class_names to its adapter, in "
            "the order of the cascade."
        )
    order = order_of(stage.class_names, wanted)
    spec = stage.spec
    if isinstance(spec, ModelSpec):
        spec = ModelSpec(name="in_order", arguments={"model": to_json(spec), "order": order})
    return stage.replaced(module=InOrder(stage.module, order), spec=spec, class_names=wanted)


def order_of(own: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """For each of the wanted names, where it stands among the own ones.

    Raises:
        InputError: If they are not the same names, each once.

    >>> order_of(["cat", "dog", "eel"], ["dog", "eel", "cat"])
    [1, 2, 0]
    """
    twice = sorted(name for name, count in Counter(own).items() if count > 1)
    if sorted(own) != sorted(wanted):
        missing = [name for name in own if name not in wanted]
        foreign = [name for name in wanted if name not in own]
        raise InputError(
            f"class_names must be the {len(own)} names of the network in the order of the cascade: "
            f"{missing[:3]} are missing and {foreign[:3]} are none of its. Give class_names=[] to "
            "leave the names out, where the order is the same."
        )
    if twice:
        raise InputError(
            f"class_names cannot say an order where several classes have one name: {twice[:3]}. "
            "Give class_names=[] to leave the names out, where the order is the same."
        )
    places = {name: k for k, name in enumerate(own)}
    return [places[name] for name in wanted]
