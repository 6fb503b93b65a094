"""Names of splits, units and array shapes.

Shape letters (docs/glossary.md): `n` examples, `m` examples of a batch or a part, `s` stages,
`c` classes, `r` ranks of a ranked prediction, `d` features, `p` path nodes.

Layer: _core.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Split = Literal["train", "fit", "calibrate", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

#: What stages answer with: scores of all classes; a label with the probability that it is right;
#: labels alone; or, of tasks without classes, numbers that say how well the answer may be.
OutputForm = Literal["logits", "confidence", "labels", "features"]
OUTPUT_FORMS: tuple[OutputForm, ...] = get_args(OutputForm)

#: What it means that a service has failed for good: the next stage is asked, or the reference, or
#: the example is not answered.
OnError = Literal["next", "reference", "refuse"]
ON_ERROR: tuple[OnError, ...] = get_args(OnError)

#: What a stage may be declared to answer with; of probabilities the logarithm is taken, and signals
#: are features without an answer.
StageForm = Literal["logits", "probabilities", "confidence", "labels", "features", "signals"]
STAGE_FORMS: tuple[StageForm, ...] = get_args(StageForm)
FORM_OF: dict[StageForm, OutputForm] = {
    "logits": "logits",
    "probabilities": "logits",
    "confidence": "confidence",
    "labels": "labels",
    "features": "features",
    "signals": "features",
}

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Ids = NDArray[Any]  # (n,), int64 or str

#: Anything that holds numbers in an order: tensor, numpy array, pandas column or table, lists.
#: What comes through a public door is checked there; annotations would only name the likely ones.
AnyArray = object

#: What `as_batch` makes a `Batch` of: such arrays, or a tuple or mapping of them.
AnyBatch = object

#: What a network takes: a tensor, or a tuple or mapping of tensors, batch first.
Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

#: A `Batch`, or rows of any type: what a transform may read (`_core.batch.as_rows`).
Raw = Any
