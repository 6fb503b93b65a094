"""Part `joint`: the networks trained together with stopping networks, once for each alpha.

The cascade begins with the weights of `networks`; each alpha, a price of cost, begins with those of
the one before, the smallest first. Stopping networks are used as they were trained and fitted anew,
chosen on calibrate, judged on test (as in `joint_cifar10.py`). Beside the cheapest point that is as
accurate as the largest network stands the most accurate one at no more than the paper's cost.
Guan et al. (IJCAI 2018, table 2): 7.26 % error at 18.16 % of ResNet-110's FLOPs, which has 7.38 %.
"""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from curves import Point, cheapest, curve
from joint_cifar10 import Parts, halves, stopping_points, traces
from networks import FOLDER as NETWORKS
from networks import cascade_of, names_of, plan_of
from setting import OutOfTime, Setting

from offramp.data import CropAndFlip
from offramp.stages import Cascade
from offramp.trace import Trace, save_trace
from offramp.train import JointTraining, train_joint

FOLDER = "joint"
ALPHAS = (0.01, 0.03, 0.1, 0.3)
PAPER = {"error %": 7.26, "cost %": 18.16, "error largest %": 7.38}
SHARE = 0.85  # of the time that is planned with
COLUMNS = ("point", "cost %", "error %", "error largest %", "alpha", "epochs", "seconds")
PROBED = 6  # steps of a pass whose time is taken


def train(
    cascade: Cascade, parts: Parts, alpha: float, epochs: int, setting: Setting, **more: Any
) -> JointTraining:
    """Train a cascade in place at one price of cost."""
    return train_joint(
        cascade,
        parts.train,
        cost_weight=alpha,
        epochs=epochs,
        seed=0,
        answers="combined",
        validation=parts.fit.take(torch.arange(min(1000, len(parts.fit)))),
        batch_size=setting.batch_size,
        learning_rate=0.02 * len(cascade),
        weight_decay=5e-4 / len(cascade),
        schedule="cosine",
        augment=CropAndFlip(padding=4),
        bfloat16=setting.device.type == "cuda",
        device=setting.device,
        progress=False,
        **more,
    )


def seconds_of_epoch(cascade: Cascade, parts: Parts, setting: Setting) -> float:
    """What a pass takes, from a few steps of it."""
    some = parts.train.take(torch.arange(min(len(parts.train), PROBED * setting.batch_size)))
    small = Parts(some, parts.fit.take(torch.arange(min(64, len(parts.fit)))), parts.test)
    ends: list[float] = []
    train(
        copy.deepcopy(cascade),
        small,
        ALPHAS[0],
        3,
        setting,
        on_epoch=lambda *_: ends.append(time.monotonic()),
    )
    return (ends[2] - ends[1]) * len(parts.train) / len(some)


def run(setting: Setting) -> dict[str, Any]:
    """Train for each alpha, choose, judge."""
    cascade, images = cascade_of(names_of(setting), setting, "networks"), setting.images()
    plan_of(setting, NETWORKS, {"images": len(images.subset("train"))})  # theirs is no other size
    split = torch.as_tensor(images.split)
    unseen = images.take((split == 1) | (split == 2))
    parts = Parts(images.subset("train"), unseen, images.subset("test"))
    seen, test = traces(cascade, parts, setting.device)
    largest, last = float(seen.stage_costs()[-1]), len(cascade) - 1
    limit, error_largest = (1 - t.accuracy(last) for t in (halves(seen)[1], test))
    alphas = ALPHAS[1:3] if setting.tiny else ALPHAS
    each = seconds_of_epoch(cascade, parts, setting)
    left = SHARE * (setting.budget.left - setting.reserve) / (each * len(alphas))
    epochs = _epochs(setting, min(max(int(left), 1), setting.epochs))
    rows: list[dict[str, Any]] = []
    points: list[Point] = []
    before: JointTraining | None = None
    for alpha in alphas:
        start = time.monotonic()
        try:
            before = _one(cascade, parts, alpha, epochs, setting, before)
        except OutOfTime:
            break
        both, judged = traces(cascade, parts, setting.device)
        _keep(both, judged, alpha, setting)
        fitting, chosen = halves(both)
        several = stopping_points(before, fitting, chosen, judged, largest)
        found = [point for each_kind in several for point in each_kind]
        points += found
        row = {"alpha": alpha, "epochs": epochs, "seconds": time.monotonic() - start}
        rows.append(_row(f"alpha {alpha:g}", cheapest(found, limit), error_largest) | row)
    if points:
        rows.append(_row("as accurate as the largest", cheapest(points, limit), error_largest))
        rows.append(_row("at the paper's cost", _at_cost(points), error_largest))
    rows.append({"point": "Guan et al., table 2"} | PAPER)
    done = len(rows) >= len(alphas) + 3
    return {
        "rows": rows,
        "columns": COLUMNS,
        "complete": done,
        "seconds_of_epoch": each,
        "curve": curve(points) if points else [],
        "error_alone": [1 - test.accuracy(k) for k in range(len(cascade))],
        "cost_alone": [float(v) / largest for v in test.stage_costs()],
    }


def _epochs(setting: Setting, fit: int) -> int:
    """As many as the first call has planned: a checkpoint belongs to a number of epochs."""
    path = setting.state / FOLDER / f"epochs_{setting.batch_size}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(fit), "utf-8")
    return int(path.read_text("utf-8"))


def _one(
    cascade: Cascade,
    parts: Parts,
    alpha: float,
    epochs: int,
    setting: Setting,
    before: JointTraining | None,
) -> JointTraining:
    path = setting.state / FOLDER / f"alpha_{alpha:g}.safetensors"
    told: list[object] = []

    def enough(epoch: object) -> None:
        told.append(epoch)
        if len(told) < epochs:
            setting.enough()

    if not path.exists():
        setting.enough()
    return train(
        cascade, parts, alpha, epochs, setting, start=before, checkpoint=path, on_epoch=enough
    )


def _keep(both: Trace, judged: Trace, alpha: float, setting: Setting) -> None:
    """The traces of one alpha, so that other policies can be tried without the networks."""
    for name, trace in (("fit_calibrate", both), ("test", judged)):
        path = f"{FOLDER}/alpha_{alpha:g}_{name}.trace"
        save_trace(trace, setting.found(path), overwrite=True)
        setting.keep(path)


def _at_cost(points: Sequence[Point]) -> Point:
    """The most accurate one, where it was chosen, at no more than the paper's cost."""
    within = [p for p in points if 100 * p.chosen_cost <= PAPER["cost %"]]
    if not within:
        return min(points, key=lambda p: (p.chosen_cost, p.chosen_error))
    return min(within, key=lambda p: (p.chosen_error, p.chosen_cost))


def _row(name: str, point: Point, error_largest: float) -> dict[str, Any]:
    return {
        "point": name,
        "cost %": 100 * point.cost,
        "error %": 100 * point.error,
        "error largest %": 100 * error_largest,
        "setting": point.label,
    }
