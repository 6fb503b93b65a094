"""Any Python function on rows as a stage.

Layer: adapters.  Source: docs/adr/0043.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from offramp._core.checks import check_choice, check_class_names
from offramp._core.errors import InputError
from offramp._core.types import STAGE_FORMS, StageForm
from offramp.models import ModelSpec, imported
from offramp.models.on_rows import OnRows
from offramp.stages import Stage


def from_function(
    call: Callable[[Any], Any] | str,
    *,
    outputs: StageForm = "logits",
    classes: int | None = None,
    class_names: Sequence[str] = (),
    name: str | None = None,
    strict: bool = False,
) -> Stage:
    """A stage that calls a function on the rows of a batch.

    The function gets the rows as `Adaptive` was given them: a list with one entry for each example
    (texts, bytes, dicts, images), a pandas table, or tensors where they are numbers, in any number.
    They are copies, with the arrays and pictures within, which it may write into. It must answer
    for each row alone, in order.

    Args:
        call: The function, or "module:name" of one, which is imported. Only what can be imported
            from a module can be part of a bundle.
        outputs: What it returns. "logits" or "probabilities": numbers `(m, c)`, as an array, a
            tensor, a table or lists. "confidence": a tuple of labels `(m,)` and of the
            probabilities `(m,)` that they are right. "labels": labels `(m,)`, or `(m, r)`, best
            first. Labels are numbers or, with `class_names`, names; None, or a negative number in
            a list or an array, stands for no answer, and its confidence is 0.
        classes: Number of classes; needed where it returns labels and there are no names.
        class_names: Names of the classes, in order.
        name: Of the stage; by default the function's. `Cascade.from_models` gives its own.
        strict: Whether a label that is no class is an error: another name, a number outside 0 to
            c - 1, or None. Otherwise it is an answer like any other, and wrong.

    Raises:
        InputError: If `call` is no function, there is no such form, or the classes are fewer than
            two, or told by names that are no text or, for labels, not different.
        UnsupportedError: If "module:name" cannot be imported.

    >>> def by_length(texts):
    ...     return ["long" if len(text) > 9 else "short" for text in texts]
    >>> from offramp import Adaptive, Cascade
    >>> stage = from_function(by_length, outputs="labels", class_names=["short", "long"])
    >>> cascade = Cascade.from_models({"length": stage})
    >>> Adaptive.single(cascade, "length")(["a word", "several words"]).labels.tolist()
    [0, 1]
    """
    check_choice("outputs", outputs, STAGE_FORMS)
    path = call if isinstance(call, str) else _path(call)
    function: Any = imported(call) if isinstance(call, str) else call
    names = check_class_names(class_names, None)
    if outputs in ("confidence", "labels") and len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise InputError(
            f"class_names must differ where labels are read by them, got {twice!r} several times."
        )
    module = OnRows(function, class_names=names, strict=strict, name=path)
    spec = None
    if path:
        spec = function_spec(path, class_names=names, strict=strict)
    if classes is not None and names and classes != len(names):
        raise InputError(f"classes must be the number of class_names, {len(names)}, got {classes}.")
    if name is None:
        name = path.rpartition(":")[2] or str(getattr(function, "__name__", "function"))
    return Stage(name, module, spec=spec, outputs=outputs, classes=classes)


def function_spec(path: str, *, class_names: Sequence[str] = (), strict: bool = False) -> ModelSpec:
    """How a bundle builds the module of a function again."""
    arguments: dict[str, Any] = {"call": path}
    if class_names:
        arguments["class_names"] = list(class_names)
    if strict:
        arguments["strict"] = True
    return ModelSpec(name="function", arguments=arguments)


def _path(call: object) -> str:
    """Where a function can be imported from; "" for what nobody else can find."""
    module, name = getattr(call, "__module__", None), getattr(call, "__qualname__", "")
    if not module or module == "__main__" or not name:
        return ""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is call else ""
