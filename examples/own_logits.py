"""Logits that you have already: import them, fit, and read what would be saved.

    python examples/own_logits.py [logits.npz]

The file holds `labels` (n,) and for each network an array of logits (n, c). Without a file the
example makes one.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import offramp
from offramp.evaluation import evaluate, overlap
from offramp.trace import from_npz

GFLOPS = {"small": 0.08, "large": 0.8}  # cost of each network per example, cheapest first


def make_file(path: Path) -> Path:
    """Logits of two networks, the large one less noisy."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 4000)
    clean = 4.0 * np.eye(10)[labels]
    noise = rng.normal(size=clean.shape)
    logits = {
        "small": clean + 1.6 * noise + 0.8 * rng.normal(size=clean.shape),
        "large": clean + 1.3 * noise,
    }
    np.savez(path, labels=labels, **logits)
    return path


def main(path: Path) -> None:
    trace = from_npz(
        path, logits={name: name for name in GFLOPS}, labels="labels", costs=GFLOPS, unit="gflops"
    ).split_into({"fit": 0.4, "calibrate": 0.3, "test": 0.3}, seed=0)
    offramp.save_trace(trace, path.with_suffix(".trace"), overwrite=True)

    test = trace.subset("test")
    print("Both right, only one, none:", [round(share, 3) for share in overlap(test).shares])
    frontier = offramp.fit(trace, policy="learned")
    for points in (0, 1, 2):
        chosen = frontier.cheapest(max_drop=points / 100, delta=None)  # measured
        found = evaluate(test, chosen.candidate)
        low, high = found.accuracy_drop_ci
        print(
            f"{points} points allowed: cost {found.cost_ratio:.2f} of {frontier.reference}, "
            f"{100 * found.accuracy_drop:+.2f} lost ({100 * low:+.2f} to {100 * high:+.2f})"
        )
    print("The candidates were chosen by what was measured; nothing is promised.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given = Path(sys.argv[1])
        if not given.is_file():
            sys.exit(f"logits.npz must be a file that is there, got {given}. Or leave it out.")
        main(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(make_file(Path(folder) / "logits.npz"))
