"""Any functions: two ways to tell a language, one of them slow, as a live cascade.

    python examples/languages.py [FOLDER]

`offramp demo --languages` does this with four packages that are really used for it. The picture
goes into the folder: texts of how many words each of the two answers.
"""

import sys
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

import offramp
from offramp.adapters import from_function
from offramp.data import rows
from offramp.project.worlds.languages import CODES, drawn_texts
from offramp.stages import given_costs

SEEN, FRESH = drawn_texts(seed=0)[::2], drawn_texts(seed=1)[1::2]  # of each language


def by_endings(letters: int, seconds: float):
    """A function that goes by the last letters of words, and takes its time."""
    known = Counter((code, word[-letters:]) for code, text in SEEN for word in text.split())

    def call(texts: list[str]) -> tuple[list[str], list[float]]:
        time.sleep(seconds)
        labels, sure = [], []
        for text in texts:
            seen = [sum(known[code, word[-letters:]] for word in text.split()) for code in CODES]
            labels.append(CODES[seen.index(max(seen))])
            sure.append(max(seen) / max(1, sum(seen)))
        return labels, sure

    return call


def main(folder: Path) -> None:
    detectors = {"two letters": by_endings(2, 0.0), "whole words": by_endings(40, 0.01)}
    stages = {
        name: from_function(detect, outputs="confidence", class_names=CODES)
        for name, detect in detectors.items()
    }
    cascade = offramp.Cascade.from_models(stages)
    data = rows([t for _, t in FRESH], [code for code, _ in FRESH], class_names=CODES)
    costs = given_costs(cascade, "us", {"two letters": 1.0, "whole words": 20.0})
    trace = offramp.record(cascade, data, costs=costs, progress=False)
    trace = trace.split_into({"fit": 0.4, "calibrate": 0.4, "test": 0.2}, seed=0)
    chosen = offramp.fit(trace, "threshold", progress=False).cheapest(max_drop=0.05)
    print(chosen.sentence)

    answer = offramp.Adaptive(cascade, chosen)(data.inputs)
    words = [len(text.split()) for text in data.inputs]
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    left = [[n for n, s in zip(words, answer.stage, strict=True) if s == k] for k in range(2)]
    axes.hist(left, bins=[0.5, 1.5, 2.5, 3.5, 4.5], stacked=True, label=answer.stage_names)
    axes.set(xlabel="words", ylabel="texts", xticks=[1, 2, 3, 4])
    axes.legend(title="answered by", loc="lower right")
    figure.savefig(folder / "languages.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
