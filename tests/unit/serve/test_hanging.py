"""A worker that hangs: its stage comes to no end, or it says nothing."""

import asyncio
import socket
import threading

import pytest
import torch
from torch import nn

from offramp.runtime import Adaptive, Executor
from offramp.serve.settings import Settings
from offramp.serve.workers import Workers
from offramp.stages import Cascade

SECONDS = 30


class Hanging(nn.Module):
    """Comes to no end until it is let go."""

    def __init__(self):
        super().__init__()
        self.layer, self.begun, self.go = nn.Linear(4, 3), threading.Event(), threading.Event()

    def forward(self, x):
        self.begun.set()
        self.go.wait(SECONDS)
        return self.layer(x)


def test_an_executor_says_for_how_long_a_stage_has_run():
    stage, now = Hanging(), [0.0]
    model = Adaptive.single(Cascade.from_models({"a": stage}), "a")
    with Executor(model, workers=1, clock=lambda: now[0]) as executor:
        assert executor.busy() == 0
        first = executor.future(torch.zeros(1, 4))
        assert stage.begun.wait(SECONDS)
        now[0] = 7.0
        assert executor.busy() == 7.0
        stage.go.set()
        first.result(SECONDS)
        assert executor.busy() == 0


class Parent:
    """The parent of one worker, which says what is written here."""

    def __init__(self, *said):
        self.said, self.asked = list(said), 0
        self.workers = Workers(
            {},
            Settings(hang_seconds=0.04),
            socket.socket(),
            threads=1,
            log=False,
            told=lambda: None,
        )
        self.workers._ready.add(0)
        self.killed = []
        self.workers._kill = self.killed.append

    async def ask(self, verb, within):
        assert (verb, within) == ("busy", 0.04)
        self.asked += 1
        said = self.said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def watch(self):
        asyncio.run(asyncio.wait_for(self.workers._watch(0, self), SECONDS))
        self.workers._held.close()
        why = self.workers._why.get(0)
        return self.killed, why and str(why)


@pytest.mark.parametrize(
    ("said", "why"),
    [(TimeoutError(), "it has said nothing for 0.04 s"), (0.05, "it has run one batch for 0.04 s")],
)
def test_who_says_nothing_or_runs_one_batch_too_long_is_killed(said, why):
    parent = Parent(0.0, 0.03, said, 0.0)
    assert parent.watch() == ([0], why)
    assert parent.asked == 3


def test_who_has_gone_is_not_watched_any_more():
    assert Parent(0.0, ConnectionError()).watch() == ([], None)


def test_who_loads_still_is_not_asked():
    parent = Parent(TimeoutError())
    parent.workers._ready.clear()

    async def run():
        watching = asyncio.create_task(parent.workers._watch(0, parent))
        await asyncio.sleep(0.1)
        assert (parent.asked, parent.killed) == (0, [])
        parent.workers._ready.add(0)
        await asyncio.wait_for(watching, SECONDS)

    asyncio.run(run())
    parent.workers._held.close()
    assert parent.killed == [0]
