"""The handwritten digits that come with scikit-learn: real, small, and always at hand.

Layer: data.  Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository 1998 (its test part).
"""

import numpy as np
import torch

from offramp.data.dataset import Dataset


def digits() -> Dataset:
    """The 1,797 digits of scikit-learn: uint8 `(n, 1, 8, 8)`, values 0 to 16, ten classes.

    >>> digits().inputs.shape
    torch.Size([1797, 1, 8, 8])
    """
    # Here and not above: scikit-learn takes seconds to import.
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.uint8))[:, None]  # (n, 1, 8, 8)
    return Dataset(
        inputs=images,
        labels=torch.from_numpy(found.target.astype(np.int64)),
        class_names=tuple(str(k) for k in range(10)),
        ids=np.arange(len(images)),
        name="digits",
    )
