"""A worker that hangs: its stage comes to no end, or it says nothing."""

import asyncio
import signal
import socket
import threading

import pytest
import torch
from torch import nn

from offramp._core.errors import OfframpError
from offramp.runtime import Adaptive, Executor
from offramp.serve.settings import Settings
from offramp.serve.workers import Workers
from offramp.stages import Cascade
from support import blocked

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

    def __init__(self, *said, load_seconds=SECONDS):
        self.said, self.asked = list(said), 0
        self.workers = Workers(
            {},
            Settings(hang_seconds=0.04, load_seconds=load_seconds),
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


def test_who_has_not_said_that_it_loads_is_not_asked():
    parent = Parent(TimeoutError())
    parent.workers._ready.clear()

    async def run():
        watching = asyncio.create_task(parent.workers._watch(0, parent))
        await asyncio.sleep(0.1)
        assert (parent.asked, parent.killed) == (0, [])
        assert await parent.workers._asked(0, "loading", {}) is None
        await asyncio.wait_for(watching, SECONDS)

    asyncio.run(run())
    parent.workers._held.close()
    assert parent.killed == [0]


@pytest.mark.parametrize("said", [[0.0, TimeoutError()], []])
def test_who_hangs_while_it_loads_is_killed_and_known_for_it(said):
    parent = Parent(*said, load_seconds=SECONDS if said else 0.05)
    parent.workers._ready.clear()
    parent.workers._loading.update([0] if said else [])
    killed, why = parent.watch()
    assert killed == [0]
    how = "said nothing for 0.04 s" if said else "not come to an end in 0.05 s"
    assert why.startswith(f"it has {how} while it loads (--load-seconds")
    assert parent.workers._hung == {0}


def test_who_holds_the_interpreter_is_killed_started_anew_and_ended(monkeypatch):
    monkeypatch.setattr("offramp.serve.workers._work", blocked.work)
    monkeypatch.setattr("offramp.serve.workers._LATE", 0.2)
    settings = Settings(workers=1, hang_seconds=0.4, load_seconds=SECONDS)
    begun, exits = [], []

    def told():
        begun.append(workers)

    workers = Workers({}, settings, socket.socket(), threads=1, log=False, told=told)
    run_one = workers._one

    async def one(worker):
        running = asyncio.create_task(run_one(worker))
        if exits:  # the second time; it hangs again, and hears of nothing
            while worker not in workers._ready:
                await asyncio.sleep(0.01)
            workers.stop()
        exits.append(await running)
        return exits[-1]

    monkeypatch.setattr(workers, "_one", one)
    asyncio.run(asyncio.wait_for(workers.run(), SECONDS))
    assert exits == [-signal.SIGKILL, -signal.SIGKILL]
    assert begun


class Ends:
    """Stands for a worker that ends, again and again, each time as is written here."""

    def __init__(self, workers, ways):
        self.workers, self.ways, self.runs = workers, list(ways), 0

    async def one(self, worker):
        self.runs += 1
        way = self.ways.pop(0)
        if way == "ready":
            await self.workers._asked(worker, "ready", {})
        else:
            self.workers._hung.add(worker)
            self.workers._why[worker] = OfframpError("it has said nothing")
        return -9


@pytest.mark.parametrize(
    ("ways", "others", "error"),
    [
        (["hangs"] * 3, False, "Worker 0 is given up after 3 times: it has said nothing"),
        (["hangs", "hangs", "ready", "hangs", "hangs", "hangs"], False, "given up after 3 times"),
        (["ready", "hangs", "hangs", "hangs"], True, None),  # the others answer
    ],
)
def test_who_hangs_three_times_while_it_loads_is_given_up(ways, others, error, monkeypatch):
    monkeypatch.setattr("offramp.serve.workers._LONGEST", 0.01)
    workers = Parent().workers
    ends = Ends(workers, ways)
    monkeypatch.setattr(workers, "_one", ends.one)
    if others:
        workers._ready.add(1)

    async def run():
        workers._ready.discard(0)
        await asyncio.wait_for(workers._keep(0), SECONDS)
        if workers._stopping.is_set():
            await workers._telling

    asyncio.run(run())
    workers._held.close()
    assert ends.runs == len(ways)
    assert (workers._error is None) == others
    assert others or error in str(workers._error)
