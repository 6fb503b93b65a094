"""What every transform promises, those of others included."""

from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.schema import stored
from offramp.stages import TRANSFORMS, Columns, Decode, Normalize, Pad, Resize, Tokenize
from offramp.testing import check_transform
from support.zoo import tokenizer_json


def pixels(n=4, size=(5, 6)):
    values = np.random.default_rng(0).integers(0, 256, (n, 3, *size), dtype=np.uint8)
    return torch.from_numpy(values)


def pictures(sizes=((4, 5), (6, 3), (5, 5))):
    image = pytest.importorskip("PIL.Image")
    found = []
    for k, size in enumerate(sizes):
        file = BytesIO()
        image.fromarray(pixels(k + 1, size)[k].permute(1, 2, 0).numpy()).save(file, "PNG")
        found.append(file.getvalue())
    return found


IDS = [[1, 2, 3], [4], [5, 6]]
DICTS = [{"a": k, "b": k / 2, "text": f"t{k}"} for k in range(3)]


def table():
    return pytest.importorskip("pandas").DataFrame(DICTS)


EXAMPLES = {
    "columns": [
        (lambda: Columns(["b", "a"]), lambda: DICTS),
        (lambda: Columns("text"), lambda: DICTS),
        (
            lambda: Columns(["a", "text"], stack=False),
            table,
        ),
    ],
    "decode": [
        (lambda: Decode("L"), pictures),
        (lambda: Decode(orient=False), lambda: pictures(((4, 5),) * 3)),
    ],
    "normalize": [(lambda: Normalize(1 / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), pixels)],
    "pad": [
        (lambda: Pad(7, length=2), lambda: IDS),
        (lambda: Pad(0, mask=None), lambda: [{"input_ids": row} for row in IDS]),
    ],
    "tokenize": [
        (
            lambda: Tokenize(tokenizer_json(), 5, ("input_ids", "token_type_ids"), cut="left"),
            lambda: ["Good film", "bad", "A very very bad plot of films."],
        ),
    ],
    "resize": [
        (lambda: Resize(4, crop_pct=0.8, interpolation="bicubic"), pixels),
        (lambda: Resize((8, 7), antialias=False), pictures),
    ],
}
CASES = [(kind, k) for kind, cases in EXAMPLES.items() for k in range(len(cases))]


def test_every_registered_transform_has_an_example():
    assert set(EXAMPLES) == set(TRANSFORMS)


@pytest.mark.parametrize(("kind", "k"), CASES)
def test_every_transform_keeps_what_it_promises(kind, k):
    make, rows = EXAMPLES[kind][k]
    assert isinstance(make(), TRANSFORMS[kind])
    check_transform(make(), rows())


def broken(change):
    @stored("broken", brief=True)
    class Broken(nn.Module):
        """Broken in one way."""

        def __init__(self, by: float = 2.0) -> None:
            super().__init__()
            self.by = by

        def forward(self, x):
            return change(x)

    return Broken


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x - x.float().mean(), "does not depend on the others"),
        (lambda x: x[:2], "no example is lost"),
        (lambda x: x.mul_(2), "what it reads stays"),
        (lambda x: x + torch.rand(1), "it repeats itself"),
    ],
)
def test_the_contract_tells_who_breaks_it(change, told):
    kind = broken(change)
    with TRANSFORMS.lent("broken", kind), pytest.raises(AssertionError, match=told):
        check_transform(kind(3.0), pixels().float())
