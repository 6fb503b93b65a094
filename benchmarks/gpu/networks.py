"""Part `networks`: pre-activation ResNets from scratch, as many epochs as fit into the time.

Images [0:40000] are trained on, in bfloat16, weights channels last, images changed on the device.
All networks get the same number of epochs: a few steps of each are timed first, and what is left of
the time is divided. Interrupted, the same command goes on. Written are weights, one trace of all
networks on [40000:50000] with the splits fit, calibrate and test, and `networks.json`.
"""

import copy
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from setting import NORMALIZE, Missing, OutOfTime, Setting
from torch import nn

import offramp
from offramp._core.files import write_json
from offramp.data import CropAndFlip, Dataset
from offramp.models import ModelSpec, build, load_weights, save_weights
from offramp.stages import Cascade
from offramp.trace import Trace
from offramp.train import train_classifier

FOLDER = "networks"
TRACE = f"{FOLDER}/judged.trace"
FIVE = tuple(f"preresnet{depth}" for depth in (8, 20, 32, 56, 110))
TWO = ("preresnet8", "preresnet14")
SHARE = 0.85  # of the time that is planned with: epochs are never equally long
PROBED = 12  # steps of a pass whose time is taken
COLUMNS = ("network", "parameters", "MFLOPs", "epochs", "seconds", "error fit %", "error test %")


def names_of(setting: Setting) -> tuple[str, ...]:
    """The networks, the smallest first."""
    return setting.networks or (TWO if setting.tiny else FIVE)


def spec_of(name: str, weights: Path | None = None) -> ModelSpec:
    """How a network is built, with its weights or from scratch."""
    large = {} if "resnet" in name else {"size": "cifar", "classes": 10}
    return ModelSpec(name=name, arguments=large, weights=None if weights is None else str(weights))


def made(name: str) -> nn.Module:
    """A network from scratch, in the layout that tensor cores read."""
    return build(spec_of(name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def options_of(setting: Setting) -> dict[str, Any]:
    """What all trainings have in common."""
    return {
        "seed": 0,
        "transform": NORMALIZE,
        "augment": CropAndFlip(padding=2 if setting.tiny else 4, flip=not setting.tiny),
        "batch_size": setting.batch_size,
        "optimizer": "sgd",
        "learning_rate": 0.2,
        "weight_decay": 5e-4,
        "bfloat16": setting.device.type == "cuda",
        "device": setting.device,
        "progress": False,
    }


def seconds_of_epoch(net: nn.Module, part: Dataset, setting: Setting) -> float:
    """What a pass over a part takes, from a few steps of it."""
    some = part.take(torch.arange(min(len(part), PROBED * setting.batch_size)))
    ends: list[float] = []
    train_classifier(
        copy.deepcopy(net),
        some,
        epochs=3,  # in the first two kernels are chosen
        on_epoch=lambda *_: ends.append(time.monotonic()),
        **options_of(setting),
    )
    return (ends[2] - ends[1]) * len(part) / len(some)


def planned(names: Sequence[str], part: Dataset, setting: Setting, folder: str) -> dict[str, int]:
    """How many epochs each network gets: as planned before, since a checkpoint belongs to that.

    Raises:
        Missing: As `plan_of`.
    """
    asked = {"batch_size": setting.batch_size, "images": len(part)}
    plan = plan_of(setting, folder, asked) or asked | {"epochs": {}}
    new = [name for name in names if name not in plan["epochs"]]
    each = {name: seconds_of_epoch(made(name), part, setting) for name in new}
    left = SHARE * (setting.budget.left - setting.reserve)
    for name in new:
        plan["epochs"][name] = min(max(int(left / sum(each.values())), 1), setting.epochs)
    write_json(setting.found(f"{folder}/plan.json"), plan)
    setting.keep(f"{folder}/plan.json")
    return {name: plan["epochs"][name] for name in names}


def plan_of(setting: Setting, folder: str, asked: Mapping[str, int]) -> dict[str, Any] | None:
    """The plan that an earlier call has made; None where there is none.

    Raises:
        Missing: If it, and so the weights beside it, are of other images or batches.
    """
    path = setting.found(f"{folder}/plan.json")
    if not path.exists():
        return None
    held: dict[str, Any] = json.loads(path.read_text("utf-8"))
    other = {key: held.get(key) for key in asked}
    if other != asked:
        raise Missing(
            f"{path.parent} holds trainings with {other}, and this call has {dict(asked)}: say "
            "another --state and another --out, or the options of then (--tiny, --batch-size)."
        )
    return held


def trained(name: str, part: Dataset, epochs: int, setting: Setting, folder: str) -> dict[str, Any]:
    """Train one network, or go on with it, and write its weights."""
    weights = setting.found(f"{folder}/{name}.safetensors")
    checkpoint = setting.state / folder / f"{name}_checkpoint.safetensors"
    start, told = time.monotonic(), list[int]()
    if weights.exists():
        return {"epochs": epochs, "seconds": 0.0, "done": True}

    def count(epoch: int, loss: float) -> None:
        told.append(epoch)
        if epoch < epochs:
            setting.enough()

    net = made(name)
    try:
        setting.enough()
        train_classifier(
            net, part, epochs=epochs, checkpoint=checkpoint, on_epoch=count, **options_of(setting)
        )
    except OutOfTime:
        done, seconds = max(told, default=0), time.monotonic() - start
        return {"epochs": done, "seconds": seconds, "done": False}
    save_weights(net.cpu(), weights)
    checkpoint.unlink(missing_ok=True)
    return {"epochs": epochs, "seconds": time.monotonic() - start, "done": True}


def cascade_of(names: Sequence[str], setting: Setting, part: str) -> Cascade:
    """The networks with the weights that were trained."""
    specs = {n: spec_of(n, setting.kept(f"{FOLDER}/{n}.safetensors", part)) for n in names}
    nets = {n: build(s).eval().to(memory_format=torch.channels_last) for n, s in specs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of costs that hardly grow
        return Cascade.from_models(nets, edges="full", specs=specs, transform=NORMALIZE)


def judged(cascade: Cascade, images: Dataset, setting: Setting) -> Trace:
    """What the networks say of the images that none was trained on; kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return offramp.record(
            cascade,
            images.take(torch.as_tensor(images.split) != 0),
            path=setting.state / TRACE,
            device=setting.device,
            batch_size=1000,
            overwrite=True,
            progress=False,
        )


def run(setting: Setting) -> dict[str, Any]:
    """Train, record, measure errors."""
    names, images = names_of(setting), setting.images()
    part = images.subset("train")
    plan = planned(names, part, setting, FOLDER)
    rows: list[dict[str, Any]] = []
    for name in names:
        found = trained(name, part, plan[name], setting, FOLDER)
        setting.keep(f"{FOLDER}/{name}.safetensors")
        rows.append({"network": name} | found)
    done = [row["network"] for row in rows if row["done"]]
    if done:
        _judge(
            [row for row in rows if row["done"]],
            cascade_of(done, setting, "networks"),
            images,
            setting,
        )
        setting.keep(TRACE)
    return {"plan": plan, "rows": rows, "complete": len(done) == len(names), "columns": COLUMNS}


def _judge(
    rows: Sequence[dict[str, Any]], cascade: Cascade, images: Dataset, setting: Setting
) -> None:
    trace = judged(cascade, images, setting)
    for k, row in enumerate(rows):
        net = cascade.stage(k).module
        row["parameters"] = sum(weight.numel() for weight in net.parameters())
        row["MFLOPs"] = trace.costs.segment[k] / 1e6
        row["error fit %"] = 100 * (1 - trace.subset("fit").accuracy(k))
        row["error test %"] = 100 * (1 - trace.subset("test").accuracy(k))


def load(name: str, path: Path) -> nn.Module:
    """A network with weights, in evaluation mode."""
    net = made(name)
    load_weights(net, path)
    return net.eval()
