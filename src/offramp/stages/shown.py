"""How a cascade looks in a notebook.

Layer: stages.
"""

from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

from offramp._core import notebook
from offramp._core.units import Unit

if TYPE_CHECKING:
    from offramp.stages.cascade import Cascade
    from offramp.stages.stage import Stage

_MOST_ROWS = 24  # stages
_MOST_CLASSES = 8
_SIZE = Unit(words="parameters", prefixes=((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))


def cascade_card(cascade: "Cascade") -> str:
    """What each stage reads and how large it is; the classes."""
    stages = list(cascade)
    sizes = [_size(stage) for stage in stages]
    largest = max(sizes) or 1
    rows = [
        [
            stage.name,
            _module(stage),
            stage.source or "the input",
            notebook.bar(size / largest, _SIZE.text(size)) if size else "\u2013",
        ]
        for stage, size in zip(stages[:_MOST_ROWS], sizes, strict=False)
    ]
    left_out = len(stages) - _MOST_ROWS
    return notebook.card(
        "Cascade",
        cascade.topology.describe() if left_out <= 0 else f"{len(stages)} stages",
        notebook.table(["stage", "network", "reads", "parameters"], rows),
        notebook.paragraph(f"and {left_out} more stages", faint=True) if left_out > 0 else "",
        notebook.paragraph(_classes(cascade.class_names), faint=True),
        notebook.code("trace = offramp.record(cascade, dataset)"),
    )


def _size(stage: "Stage") -> int:
    """Its parameters, without those whose shape is not known before something runs."""
    return sum(p.numel() for p in stage.parameters() if not is_lazy(p))


def _module(stage: "Stage") -> str:
    name = type(stage.module).__name__
    return name if stage.head is None else f"{name} + {type(stage.head).__name__}"


def _classes(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    more = len(names) - _MOST_CLASSES
    shown = ", ".join(names[:_MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} classes: {shown}."
