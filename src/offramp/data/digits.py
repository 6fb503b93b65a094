"""The handwritten digits that come with the package: real, small, and always at hand.

Layer: data.  Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository 1998 (its test part), under CC BY 4.0; `files/README.md` says more.
"""

from pathlib import Path

import numpy as np
import torch

from offramp.data.dataset import Dataset

#: Folder of the data that come with the package.
FILES = Path(__file__).with_name("files")


def digits() -> Dataset:
    """The 1,797 digits: uint8 `(n, 1, 8, 8)`, values 0 to 16, ten classes.

    >>> digits().inputs.shape
    torch.Size([1797, 1, 8, 8])
    """
    with np.load(FILES / "digits.npz", allow_pickle=False) as found:
        images = torch.from_numpy(found["images"])[:, None]  # (n, 1, 8, 8)
        labels = torch.from_numpy(found["labels"].astype(np.int64))
    return Dataset(
        inputs=images,
        labels=labels,
        class_names=tuple(str(k) for k in range(10)),
        ids=np.arange(len(images)),
        name="digits",
    )
