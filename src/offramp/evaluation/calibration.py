"""The examples that promises rest on.

Layer: evaluation.
"""

import hashlib
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.schema import omitted
from offramp.policy.promise import Label
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The examples that certificates may rest on, and what speaks against them.

    Args:
        n: Number of examples.
        fingerprint: SHA-256 of their ids, labels and recorded outputs.
        seen_in_training: True if the networks were trained on them.
        lossy: True if outputs were stored with less precision than computed.
        class_names: Names of the classes, `(c,)`; empty where an older version stored this.
        labeled: False if their labels are not to be trusted.
        split: Name of the part of a trace that they are.
        of_losses: True where losses were recorded and not labels.
        graded: True where these may lie between 0 and 1.
        priced: True where examples have prices of their own.
    """

    n: int
    fingerprint: str
    seen_in_training: bool
    lossy: bool
    class_names: tuple[str, ...] = ()
    labeled: bool = True
    split: str = "calibrate"
    of_losses: bool = omitted(False)
    graded: bool = omitted(False)
    priced: bool = omitted(False)

    @classmethod
    def of(cls, *parts: Trace, labeled: bool = True, split: str = "calibrate") -> "Calibration":
        """Of a part of one trace, or of several traces of the same examples."""
        digest, first = hashlib.sha256(), parts[0]
        for part in parts:
            digest.update("\n".join(map(str, part.ids.tolist())).encode())
            held = (part.labels, part.logits, part.ranked, part.confidence)
            for tensor in (*held, part.losses, part.features, part.prices):
                if tensor is not None:
                    values = tensor.contiguous().numpy()
                    digest.update(f"{values.dtype} {values.shape}".encode())
                    digest.update(values.data)
        return cls(
            n=len(first),
            fingerprint=digest.hexdigest(),
            seen_in_training=any(part.seen_in_training for part in parts),
            lossy=any(part.lossy for part in parts),
            class_names=first.class_names or tuple(map(str, range(first.classes))),
            labeled=labeled,
            split=split,
            of_losses=not first.labeled,
            graded=first.graded,
            priced=any(part.prices is not None for part in parts),
        )

    def class_index(self, label: Label) -> int:
        """The index of a class that is given by name or index.

        Raises:
            UnknownNameError: If no class has this name.
            InputError: If there are not so many classes.
        """
        if isinstance(label, str):
            return self.class_names.index(check_known("class", label, self.class_names))
        if not (0 <= label < len(self.class_names) and label == int(label)):
            raise InputError(
                f"A class must be a name or an index in [0, {len(self.class_names)}), got {label}."
            )
        return int(label)
