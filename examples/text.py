"""Texts: two small transformers that read letters, trained here, and their cascade.

    python examples/text.py [FOLDER]

Which of ten languages is a text of one to four words in? The picture goes into the folder: what
every candidate costs and how often it is right, and the one that was chosen.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import offramp
from offramp.data import arrays
from offramp.project.worlds.languages import CODES, drawn_texts
from offramp.stages import given_costs
from offramp.train import train_classifier

LENGTH = 24  # letters that are read


class Reader(nn.Module):
    """Letters, their places, some layers of attention, and the mean of what is no padding."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(512, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.last = nn.Linear(width, len(CODES))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        x = self.letters(letters) + self.places.weight  # (n, LENGTH, width)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=letters == 0)
        real = (letters != 0)[..., None]
        return self.last((x * real).sum(dim=1) / real.sum(dim=1))


def main(folder: Path) -> None:
    texts = drawn_texts(seed=0)
    letters = [[ord(c) % 512 for c in text[:LENGTH].ljust(LENGTH, "\0")] for _, text in texts]
    labels = [CODES.index(language) for language, _ in texts]
    examples = arrays(torch.tensor(letters), labels, class_names=CODES)
    sizes = {"train": 1000, "fit": 350, "calibrate": 400, "test": 250}
    examples = examples.split_into(sizes, seed=0, stratified=True)

    networks = {"small": Reader(16, 1), "large": Reader(64, 2)}
    train = examples.subset("train")
    for network in networks.values():
        train_classifier(network, train, epochs=15, seed=0, learning_rate=0.003, batch_size=32)
    cascade = offramp.Cascade.from_models(networks, class_names=CODES)
    weights = {k: sum(p.numel() for p in n.layers.parameters()) for k, n in networks.items()}
    costs = given_costs(cascade, "flops", {name: 2.0 * LENGTH * n for name, n in weights.items()})
    trace = offramp.record(cascade, examples.take(examples.split != 0), costs=costs)
    frontier = offramp.fit(trace, policy=["threshold", "learned"])
    chosen = frontier.cheapest(max_drop=0.05)
    print(chosen.sentence)

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    judged = [point.judged for point in frontier.points]
    axes.plot([e.cost_ratio for e in judged], [e.accuracy for e in judged], ".", color="0.7")
    axes.plot(chosen.point.judged.cost_ratio, chosen.point.judged.accuracy, "o", label="chosen")
    axes.set(xlabel=f"cost against {frontier.reference}", ylabel="accuracy", title="Languages")
    axes.legend()
    figure.savefig(folder / "text.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
