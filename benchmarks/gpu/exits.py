"""Part `exits`: DenseNet-121 and Inception-v3 for 32 by 32 pixels, and exits for single classes.

Trained as in `networks`; then a branch behind sampled convolutions for each class, and the choice
of an exit for each class, by FLOPs and by measured seconds (as in `class_specific_cifar10.py`,
whose docstring says what the figures mean). Bonato and Bouganis: mean gain of the paper's formula
5.09 for Inception-v3, 8.79 for DenseNet-121.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from class_specific_cifar10 import figures
from networks import NORMALIZE, load, planned, spec_of, trained
from setting import Setting
from torch import nn

from offramp._core.errors import InputError
from offramp._core.files import write_json
from offramp.data import Dataset
from offramp.train.class_exits import Recipe, sweep_branches
from offramp.train.class_exits.evidence import predictions

FOLDER = "exits"
TWO = ("densenet121", "inception_v3")
COLUMNS = ("network", "epochs", "seconds", "error test %", "branches")
COLUMNS += ("gain strict", "gain paper", "classes that keep", "gain strict seconds")
SWEEP_S = 120.0  # seconds that a sweep is given room for


def run(setting: Setting) -> dict[str, Any]:
    """Train both, attach and train branches, choose exits."""
    names, images = setting.networks or TWO, setting.images()
    part = images.subset("train")
    plan = planned(names, part, setting, FOLDER)
    rows = []
    for name in names:
        row = {"network": name} | trained(name, part, plan[name], setting, FOLDER)
        rows.append(row)
        if not row["done"]:
            continue
        row["done"] = False  # until the branches are
        if setting.tiny or setting.budget.left > SWEEP_S / 2:
            row |= _swept(name, images, setting)
            setting.keep(f"{FOLDER}/{name}.json")
    return {
        "plan": plan,
        "rows": rows,
        "columns": COLUMNS,
        "complete": all(row["done"] for row in rows),
    }


def _swept(name: str, images: Dataset, setting: Setting) -> dict[str, Any]:
    """Branches and exits of a trained network; as before where they are done."""
    path = setting.found(f"{FOLDER}/{name}.json")
    if not path.exists():
        write_json(path, _figures(name, images, setting))
    held: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return {
        "done": True,
        "error test %": 100 * (1 - held["accuracy_baseline"]),
        "branches": held.get("branches"),
        "gain strict": held.get("mean_gain_strict_flops"),
        "gain paper": held.get("mean_gain_paper_flops"),
        "classes that keep": held.get("constraints_met_test_flops"),
        "gain strict seconds": held.get("mean_gain_strict_seconds"),
        "refused": held.get("refused"),
    }


def _figures(name: str, images: Dataset, setting: Setting) -> dict[str, Any]:
    net = load(name, setting.state / FOLDER / f"{name}.safetensors").to(setting.device)
    test = images.subset("test")
    right = predictions(net, test, transform=NORMALIZE) == test.labels.numpy()
    found: dict[str, Any] = {"accuracy_baseline": float(right.mean())}
    work = setting.state / FOLDER / f"{name}_sweep"
    try:
        found |= _chosen(net, name, images, work, setting)
    except InputError as error:  # such as a class that the network never gets right
        found["refused"] = str(error)
    shutil.rmtree(work, ignore_errors=True)  # gigabytes of features, of use to nobody else
    return found


def _chosen(
    net: nn.Module, name: str, images: Dataset, work: Path, setting: Setting
) -> dict[str, Any]:
    sweep = sweep_branches(
        net,
        images,
        work,
        sampled=2 if setting.tiny else 24,
        recipe=Recipe(epochs=1 if setting.tiny else 15),
        transform=NORMALIZE,
        spec=spec_of(name),
        batch_size=64 if setting.tiny else 500,
        cache_dtype="float32",
        device=setting.device,
        progress=False,
    )
    how = argparse.Namespace(
        batch_size=4 if setting.tiny else 128, rounds=1 if setting.tiny else 9, tolerance=0.005
    )
    found = figures(sweep, "flops", how) | figures(sweep, "seconds", how)
    return found | {"branches": len(sweep.specs)}
