"""Stages that give more or fewer features: the answers are those of each, whoever is near."""

import pytest
import torch
from torch import Tensor, nn

from offramp import Adaptive, Cascade, Policy
from offramp.policy import Feature, Linear, Node
from offramp.runtime import Executor

NAN = float("nan")


class Small(nn.Module):
    """Three numbers; the first is what is given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], x[:, 0] + 10, x[:, 0] + 20], dim=1)


class Large(nn.Module):
    """One number."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1]


def model() -> Adaptive:
    """Leaves at the small one where its first number is above 0.5."""
    cascade = Cascade.from_models({"small": Small(), "large": Large()}, outputs="features")
    leave = Node(Linear.threshold(Feature("value_0", 0), 0.5))
    return Adaptive(cascade, Policy(cascade.topology, {(0,): leave}))


ROWS = {  # what is given, and the answer
    "leaves": ([1.0, 7.0], [1.0, 11.0, 21.0]),
    "goes on": ([0.0, 2.0], [2.0, NAN, NAN]),
    "the large one fails": ([0.25, NAN], [0.25, 10.25, 20.25]),
    "the small one fails": ([NAN, 3.0], [3.0, NAN, NAN]),
    "both fail": ([NAN, NAN], [NAN, NAN, NAN]),
}
COMPANIES = [
    ["leaves", "goes on"],
    ["goes on", "leaves"],
    ["goes on", "the large one fails"],
    ["goes on", "the small one fails", "leaves"],
    ["both fail", "goes on", "leaves", "the large one fails"],
    [*ROWS, *reversed(ROWS)],
]


def forward(batch):
    return model()(batch).values


def submit(batch):
    with Executor(model()) as executor:
        return executor.future(batch).result(timeout=60).values


def stream(batch):
    values = torch.full((len(batch), 3), NAN)
    for ids, answer in model().stream([batch[:1], batch[1:]], batch_size=2):
        values[torch.from_numpy(ids), : answer.values.shape[1]] = answer.values
    return values


@pytest.mark.parametrize("company", COMPANIES, ids=" + ".join)
@pytest.mark.parametrize("ask", [forward, submit, stream])
def test_values_are_those_of_the_stage_that_answers(ask, company):
    given, wanted = (torch.tensor([ROWS[name][k] for name in company]) for k in (0, 1))
    torch.testing.assert_close(ask(given), wanted, equal_nan=True)
