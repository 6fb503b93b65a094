"""Answers as the columns of a table.

Layer: batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from offramp._core.errors import MissingExtraError

if TYPE_CHECKING:
    from offramp.runtime import Prediction

Value = int | float | str | None
Columns = Mapping[str, Sequence[Value]]


def columns_of(
    names: Sequence[int | str], answer: "Prediction", class_names: Sequence[str]
) -> Columns:
    """The rows of a batch, by column."""
    labels = answer.labels.tolist()
    nothing: list[float | str] = [""] * len(names)
    return {
        "id": list(names),
        "label": labels,
        "class_name": [_class_name(label, class_names) for label in labels],
        "confidence": nothing if answer.confidence is None else answer.confidence.tolist(),
        "stage": [answer.stage_names[k] for k in answer.stage.tolist()],
        "cost": nothing if answer.cost is None else answer.cost.tolist(),
    }


def _class_name(label: int, class_names: Sequence[str]) -> str:
    if label < 0 or (class_names and label >= len(class_names)):  # a service's "none of these"
        return ""
    return class_names[label] if class_names else str(label)


def with_numbers(columns: Columns) -> Columns:
    """The same where a cost and a confidence that nobody knows are NaN, not an empty text."""
    return {
        **columns,
        **{
            name: [math.nan if value == "" else value for value in columns[name]]
            for name in ("cost", "confidence")
        },
    }


def arrow_table(columns: Columns) -> Any:  # noqa: ANN401  (pyarrow is optional)
    """The columns as a table of pyarrow, with one type for each, whatever is in them.

    Raises:
        MissingExtraError: If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    # Ids of several files may be numbers and names; a column has one type.
    fixed = {**with_numbers(columns), "id": [str(name) for name in columns["id"]]}
    types = {"confidence": pa.float64(), "cost": pa.float64(), "error": pa.string()}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in fixed.items()})
