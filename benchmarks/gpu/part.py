"""Run one part of what needs an accelerator; see README.md in this folder.

It stops itself when its time is over, writes what it has, and goes on where it stopped when it is
called again with the same `--state` or `--out`. A table comes last; figures are in OUT/PART.json.
"""

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine
from setting import Budget, Missing, Setting

from offramp._core.device import check_device
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("checks", "networks", "joint", "exits")
RESERVE_S = {"checks": 20.0, "networks": 40.0, "joint": 100.0, "exits": 150.0}


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    made.add_argument("part", choices=PARTS)
    made.add_argument("--minutes", type=_minutes, default=8.5, help="time of the part")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--tiny", action="store_true", help="digits, few epochs: to try the code")
    made.add_argument(
        "--data",
        type=Path,
        default=ROOT / "runs" / "gpu" / "data",
        help="CIFAR-10, official binary layout or sheets of prepare.sh",
    )
    made.add_argument(
        "--state", type=Path, default=ROOT / "runs" / "gpu" / "state", help="to go on from"
    )
    made.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "runs" / "gpu" / "out"),
        help="figures, weights, traces; by default $OUT",
    )
    made.add_argument("--networks", nargs="+", default=[], help="by default those of the part")
    made.add_argument("--epochs", type=_count, default=160, help="at most")
    made.add_argument("--batch-size", type=_count, default=256)
    return made


def _minutes(text: str) -> float:
    minutes = float(text)
    if not (math.isfinite(minutes) and minutes >= 0):
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return minutes


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return count


def setting_of(chosen: argparse.Namespace) -> Setting:
    """What the part is told."""
    return Setting(
        device=check_device(chosen.device),
        tiny=chosen.tiny,
        data=chosen.data,
        state=chosen.state,
        out=chosen.out,
        budget=Budget(60 * chosen.minutes),
        epochs=min(chosen.epochs, 8) if chosen.tiny else chosen.epochs,
        batch_size=16 if chosen.tiny else chosen.batch_size,
        networks=tuple(chosen.networks),
        reserve=0.0 if chosen.tiny else min(RESERVE_S[chosen.part], 20 * chosen.minutes),
    )


def figures_at(chosen: argparse.Namespace) -> Path:
    """Where the figures of a part will lie.

    Raises:
        Missing: If something else lies there, or nothing can.
    """
    path: Path = chosen.out / f"{chosen.part}.json"
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        held = json.loads(path.read_text("utf-8")) if path.exists() else None
    except OSError as error:
        raise Missing(f"Nothing can be written into {chosen.out}: {error.strerror}.") from None
    except ValueError:
        held = "no figures"
    own = isinstance(held, dict) and held.get("part") == chosen.part
    if held is not None and not (own and held.get("tiny") == chosen.tiny):
        what = "figures of the other size, with --tiny or without" if own else "not of this kit"
        raise Missing(f"{path} is there, {what}: say another --out. Nothing was changed.")
    return path


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows in columns, the first to the left, the others to the right."""
    shown = [[*columns], *([_shown(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[k]) for line in shown) for k in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in shown
    )


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the part, write and print what it found."""
    chosen = options().parse_args(arguments)
    torch.backends.cudnn.benchmark = True  # all batches of a training have one size
    try:
        setting, figures = setting_of(chosen), figures_at(chosen)
    except (InputError, Missing) as error:
        print(error, file=sys.stderr)
        return 3
    try:
        found = importlib.import_module(chosen.part).run(setting)
    except (Missing, UnknownNameError) as missing:
        print(missing, file=sys.stderr)
        return 3
    device = str(setting.device)
    if setting.device.type == "cuda":
        device = torch.cuda.get_device_name(setting.device)
    found |= {"part": chosen.part, "tiny": chosen.tiny, "device": device, "machine": machine()}
    write_json(figures, found)
    print(f"{chosen.part} on {device}, {60 * chosen.minutes - setting.budget.left:.0f} s")
    for row in found["rows"]:
        if row.get("refused"):
            print(f"{row[found['columns'][0]]}: {row['refused']}")
    print(table(found["rows"], found["columns"]))
    if not found["complete"]:
        print("Not all of it is done: the same command goes on.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
