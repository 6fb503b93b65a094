"""Stages of a task without classes that bundles of tests can import."""

import torch
from torch import nn


class Length(nn.Module):
    """Answers nothing; a number that says how hard a row is."""

    def forward(self, x):
        return x.abs().mean(dim=1)


class Regression(nn.Module):
    """How sure it is, and its answer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(2, 8, generator=generator))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x)
