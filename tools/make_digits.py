"""Makes `src/offramp/data/files/digits.npz` from scikit-learn's copy of the data set.

    python tools/make_digits.py

The same bytes come out whenever it is run, with the extra `sklearn`.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

FILE = Path(__file__).parents[1] / "src" / "offramp" / "data" / "files" / "digits.npz"


def main() -> None:
    """Write the images `(n, 8, 8)` and labels `(n,)`, bytes both."""
    found = load_digits()
    images, labels = found.images.astype(np.uint8), found.target.astype(np.uint8)
    np.savez_compressed(FILE, images=images, labels=labels)


if __name__ == "__main__":
    main()
