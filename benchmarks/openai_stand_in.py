"""A live cascade of two language models behind a stand-in for an OpenAI-compatible service.

The stand-in (`tests/support/openai_server.py`) is a process of its own on this machine: each answer
takes a while, tokens have prices (those of the large model 20 times as much), and of all attempts
2 % get 429, 2 % 500, 1 % a page of HTML, and 1 % half an answer, which is charged. What it answers
is drawn once for each text, so live answers and recorded ones are the same.

2,000 examples are recorded, a threshold is chosen for at most one point of loss, and all of them
are asked live, one request each, 32 calls of each model at a time.

- `paid_over_replay`: money that the stand-in has charged for the live cascade over what replay of
  the recorded trace predicts. The stand-in knows idempotency keys, as some services do;
  `..._without_keys` is that of one which does not, and charges an answer that got lost on its way
  again (of the first quarter).
- `lost`: live requests without an answer.
- `double_paid`: answers that were charged twice in a recording of the first quarter which was
  killed half way and went on; `..._without_keys`: where there are no keys: those on their way at
  the kill.
- `over_ideal`: seconds of 2,000 answers of 0.5 s, 32 at a time, over those that the stand-in needs
  alone.
- `over_budget`: share of the first quarter that cost more than a budget which a third would exceed.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser, report

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

import torch  # noqa: E402

from offramp import Adaptive, Cascade, fit, record  # noqa: E402
from offramp.adapters import Limits, from_openai  # noqa: E402
from offramp.evaluation.replay import replay  # noqa: E402
from offramp.runtime import Executor  # noqa: E402
from offramp.trace import Trace  # noqa: E402
from support.openai_server import LABELS, truth_of  # noqa: E402

N = 2000
LATENCY_S = 0.5
AT_A_TIME = 32
FAULTS = {"limited": 0.02, "broken": 0.02, "html": 0.01, "half": 0.01}
SMALL = {"input": 1.0, "output": 1.0}
LARGE = {"input": 20.0, "output": 20.0}
TEXTS = [f"{k} {'word ' * (1 + k % 40)}" for k in range(N)]


class Server:
    """The stand-in, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def books(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url) as answer:
            return dict(json.loads(answer.read()))

    def spent(self) -> float:
        return float(self.books()["spent"])


@contextmanager
def server(**settings: Any) -> Iterator[Server]:
    command = [sys.executable, str(TESTS / "support" / "openai_server.py"), json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdin is None:
        raise RuntimeError("the stand-in has no pipes")
    try:
        yield Server(process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.wait()


def cascade_of(small: str, large: str, *, cache: int = 0) -> Cascade:
    limits = Limits(concurrency=AT_A_TIME, attempts=8, longest_wait=2.0, cache=cache)
    stages = {
        name: from_openai(
            url,
            model=name,
            labels=LABELS,
            prompt=f"{name} {{row}}",
            key_env=None,
            prices=prices,
            limits=limits,
        )
        for name, url, prices in (("small", small, SMALL), ("large", large, LARGE))
    }
    return Cascade.from_models(stages, class_names=LABELS)


@contextmanager
def both(**settings: Any) -> Iterator[tuple[Server, Server]]:
    """The small and the large model."""
    with server(prices=SMALL, **settings) as small, server(prices=LARGE, **settings) as large:
        yield small, large


def loader(count: int, size: int = 250) -> list[tuple[list[str], torch.Tensor]]:
    truth = torch.tensor([truth_of(text.split()[0]) for text in TEXTS])
    cuts = [(k, min(k + size, count)) for k in range(0, count, size)]
    return [(TEXTS[start:stop], truth[start:stop]) for start, stop in cuts]


def recorded(n: int) -> Trace:
    with both(latency=0.0) as (small, large):
        return record(cascade_of(small.url, large.url), loader(n), progress=False)


def live(model_of: Any, count: int, *, idempotent: bool) -> dict[str, Any]:
    """Examples, one request each, with everything that goes wrong."""
    settings = {"latency": 0.1, "faults": FAULTS, "idempotent": idempotent, "seed": 1}
    with both(**settings) as (small, large):
        model = model_of(cascade_of(small.url, large.url))

        async def ask() -> list[Any]:
            with Executor(model, patience=0.0) as executor:
                asked = (executor.submit([text]) for text in TEXTS[:count])
                return await asyncio.gather(*asked, return_exceptions=True)

        begun = time.monotonic()
        answers = asyncio.run(ask())
        seconds = time.monotonic() - begun
        paid = small.spent() + large.spent()
        statuses = [one.books()["statuses"] for one in (small, large)]
    good = {
        k: answer
        for k, answer in enumerate(answers)
        if not isinstance(answer, BaseException) and bool(answer.valid.all())
    }
    told = sum(float(answer.cost) for answer in good.values())
    return {
        "paid": paid,
        "told": told,
        "lost": count - len(good),
        "seconds": seconds,
        "statuses": statuses,
        "labels": {k: int(answer.labels) for k, answer in good.items()},
    }


def throughput(n: int) -> float:
    """Seconds of one model's answers over those that the stand-in needs alone."""
    with server(prices=SMALL, latency=LATENCY_S) as small:
        model = Adaptive.single(cascade_of(small.url, small.url), "small")
        begun = time.monotonic()
        answered = bool(model(TEXTS[:n]).valid.all())
        seconds = time.monotonic() - begun
    if not answered:
        raise RuntimeError("some were not answered")
    return seconds / (n * LATENCY_S / AT_A_TIME)


def killed(few: int, *, idempotent: bool) -> int:
    """Answers that were charged twice where a recording is killed half way and goes on."""
    with both(latency=0.02, idempotent=idempotent) as (small, large):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "a.trace")
            code = [sys.executable, __file__, "--n", str(4 * few), "--record"]
            code += [small.url, large.url, path]
            process = subprocess.Popen(code)
            while sum(small.books()["charges"].values()) < few and process.poll() is None:
                time.sleep(0.01)
            process.kill()
            process.wait()
            subprocess.run(code, check=True)
        charges = [one.books()["charges"] for one in (small, large)]
    if [len(each) for each in charges] != [few, few]:
        raise RuntimeError("not everybody was asked")
    return sum(count - 1 for each in charges for count in each.values())


def budgets(model_of: Any, trace: Trace, few: int) -> dict[str, Any]:
    """Requests that cost more than a budget, which some would."""
    with both(latency=0.0) as (small, large):
        model = model_of(cascade_of(small.url, large.url))
        budget = float(np.quantile(trace.prices.sum(dim=1).numpy(), 2 / 3))

        async def ask() -> list[Any]:
            with Executor(model, patience=0.0) as executor:
                asked = (executor.submit([text], budget=budget) for text in TEXTS[:few])
                return await asyncio.gather(*asked)

        costs = [float(answer.cost) for answer in asyncio.run(ask())]
    return {"over_budget": sum(cost > budget for cost in costs) / len(costs)}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--n", type=int, default=N, help="requests, instead of 2,000")
    options.add_argument("--record", nargs=3, help="record to a path; used by this program itself")
    chosen = options.parse_args()
    n, few = chosen.n, max(chosen.n // 4, 1)
    if chosen.record:
        small, large, path = chosen.record
        record(cascade_of(small, large), loader(few), path=path, progress=False)
        return
    trace = recorded(n).split_into({"fit": 0.5, "calibrate": 0.5}, seed=0)
    choice = fit(trace, "threshold", reference="large", progress=False, combines=["last"])
    point = choice.cheapest(max_drop=0.01, delta=None)
    said = replay(trace, point.candidate.policy)
    predicted = dict(zip(trace.ids.tolist(), said.cost.tolist(), strict=True))
    labels = dict(zip(trace.ids.tolist(), said.labels[:, 0].tolist(), strict=True))

    def model_of(cascade: Cascade) -> Adaptive:
        return Adaptive(cascade, point, costs=trace.costs)

    found = live(model_of, n, idempotent=True)
    without = live(model_of, few, idempotent=False)
    result = {
        "n": n,
        "paid_over_replay": found["paid"] / sum(predicted.values()),
        "paid_over_replay_without_keys": without["paid"] / sum(predicted[k] for k in range(few)),
        "told_over_paid": found["told"] / found["paid"],
        "lost": found["lost"] + without["lost"],
        "same_labels_as_replay": float(
            np.mean([labels[k] == label for k, label in found["labels"].items()])
        ),
        "double_paid": killed(few, idempotent=True),
        "double_paid_without_keys": killed(few, idempotent=False),
        "over_ideal": throughput(n),
        "live_seconds": found["seconds"],
        "statuses_small": found["statuses"][0],
        "statuses_large": found["statuses"][1],
        "accuracy_small": trace.accuracy(0),
        "accuracy_large": trace.accuracy(1),
        "cost_ratio": sum(predicted.values()) / float(trace.prices[:, 1].sum()),
        **budgets(model_of, trace, few),
    }
    report(chosen, result)


if __name__ == "__main__":
    main()
