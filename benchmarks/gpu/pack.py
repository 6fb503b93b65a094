"""Pack what a machine without a network needs: the code, the images, wheels.

At most two archives, `pack-1.tar` and `pack-2.tar`, of at most `--limit` MiB each; more is refused,
and nothing is written then. Both are unpacked in one folder:

    tar -xf pack-1.tar -C PLACE; tar -xf pack-2.tar -C PLACE; tar -xzf PLACE/code.tar.gz -C PLACE
    PLACE/benchmarks/gpu/run.sh checks --data PLACE/images

The images are those of CIFAR-10's five training batches, as lossless WebP; each sheet is read back
and compared. What is missing is said, also which packages the other machine needs.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from sheets import COUNT, EACH, LABELS, read_sheet, sheet_name, write_sheet

from offramp._core.files import atomic_file
from offramp.data import cifar10

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
PACKS = ("pack-1.tar", "pack-2.tar")
TESTS = ("pytest", "pytest-timeout", "hypothesis")  # for tests/gpu
LEFT_OUT = ("benchmarks/weights/", "docs/", "examples/", "deploy/")  # of the code: of no use there

#: What lies in an archive, by its name there: bytes, or a file.
Members = dict[str, bytes | Path]


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prepare.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--data", type=Path, help="CIFAR-10 in its official binary layout")
    made.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu" / "packs")
    made.add_argument("--limit", type=float, default=60.0, help="MiB of an archive")
    made.add_argument("--wheels", type=Path, help="folder of wheels to pack those that are needed")
    made.add_argument(
        "--installed", type=Path, help="what the other machine has, by pip list --format=freeze"
    )
    made.add_argument("--method", type=int, default=4, help="of WebP, 0 (quick) to 6 (small)")
    return made


def code(root: Path) -> bytes:
    """The files that git knows or would add, as a compressed archive."""
    said = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    names = sorted(name for name in said.stdout.decode().split("\0") if name)
    kept = [n for n in names if not n.startswith(LEFT_OUT) and (root / n).is_file()]
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz", compresslevel=9) as archive:
        for name in kept:
            archive.add(root / name, name)
    return held.getvalue()


def images(data: Path, work: Path, method: int) -> Members:
    """Sheets of the training images, made in a folder where they are kept; and the labels."""
    found = cifar10(data)
    train = found.take(torch.as_tensor(found.split) == 0)
    if len(train) != COUNT * EACH:
        raise SystemExit(f"{data} must hold all {COUNT * EACH} training images, got {len(train)}.")
    work.mkdir(parents=True, exist_ok=True)
    pixels = torch.as_tensor(train.inputs)
    made: Members = {}
    for k in range(COUNT):
        own, path = pixels[k * EACH : (k + 1) * EACH], work / sheet_name(k)
        if not _holds(path, own):
            write_sheet(own, path, method=method)
            if not _holds(path, own):
                raise SystemExit(f"{path} does not give back the images that were written.")
        made[f"images/{path.name}"] = path
    held = io.BytesIO()
    np.save(held, train.labels.numpy().astype(np.uint8))
    return made | {f"images/{LABELS}": held.getvalue()}


def _holds(path: Path, wanted: torch.Tensor) -> bool:
    if not path.exists():
        return False
    try:
        return torch.equal(read_sheet(path), wanted)
    except (OSError, ValueError):  # it was not written to its end
        return False


def needed(root: Path) -> dict[str, str]:
    """Packages that the parts need, with the versions that are here; "" where they are not."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    waiting, found = [*project["dependencies"], *TESTS], dict[str, str]()
    while waiting:
        asked = Requirement(waiting.pop())
        name = canonicalize_name(asked.name)
        if name in found or not (asked.marker is None or asked.marker.evaluate({"extra": ""})):
            continue
        try:
            own = distribution(name)
        except PackageNotFoundError:
            found[name] = ""
            continue
        found[name] = own.version.partition("+")[0]
        waiting += own.requires or ()
    return dict(sorted(found.items()))


def missing(wanted: Mapping[str, str], installed: Path | None) -> dict[str, str]:
    """Those that the other machine does not have, as far as it is known."""
    if installed is None:
        return dict(wanted)
    lines = installed.read_text("utf-8").splitlines()
    there = {canonicalize_name(re.split("==| @ ", line)[0].strip()) for line in lines}
    return {name: version for name, version in wanted.items() if name not in there}


def wheels(folder: Path | None, wanted: Iterable[str]) -> Members:
    """Wheels of wanted packages in a folder."""
    found = sorted(folder.glob("*.whl")) if folder is not None else []
    names = set(wanted)
    return {f"wheels/{p.name}": p for p in found if parse_wheel_filename(p.name)[0] in names}


def divided(members: Members, limit: float) -> list[Members]:
    """The members in at most two parts of about the same size, in order.

    Raises:
        SystemExit: If they do not fit.
    """
    sizes = {name: _size(held) for name, held in members.items()}
    whole = sum(sizes.values())
    parts: list[Members] = [{}]
    room, taken = (limit if whole <= limit else whole / 2), 0.0
    for name, held in members.items():
        if taken and taken + sizes[name] / 2 > room and len(parts) < len(PACKS):
            parts.append({})
            taken = 0.0
        parts[-1][name] = held
        taken += sizes[name]
    over = [sum(sizes[name] for name in part) for part in parts]
    if max(over) > limit:
        said = " and ".join(f"{size / MIB:.1f} MiB" for size in over)
        raise SystemExit(
            f"The packs would have {said}; each must have at most {limit / MIB:.1f} MiB. Leave out "
            "--wheels, or take --method 6; nothing was written."
        )
    return parts


def _size(held: bytes | Path) -> int:
    """Of a member with its header and what it is filled up with."""
    bare = len(held) if isinstance(held, bytes) else held.stat().st_size
    return 1024 + bare


def write(path: Path, members: Members) -> int:
    """Write an archive; returns its size."""
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as archive:
        for name, held in members.items():
            content = held if isinstance(held, bytes) else held.read_bytes()
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path.stat().st_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, and say what is in and what is missing."""
    chosen = options().parse_args(arguments)
    lacks = missing(needed(ROOT), chosen.installed)
    packed = wheels(chosen.wheels, lacks)
    brought = {parse_wheel_filename(Path(name).name)[0] for name in packed}
    listed = "".join(f"{n}{'==' + v if v else ''}\n" for n, v in lacks.items() if n not in brought)
    members: Members = {"code.tar.gz": code(ROOT), "missing-wheels.txt": listed.encode()}
    members |= packed
    if chosen.data is not None:
        members |= images(chosen.data, chosen.out / "sheets", chosen.method)
    parts = divided(members, chosen.limit * MIB)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in PACKS:
        (chosen.out / name).unlink(missing_ok=True)
    for name, part in zip(PACKS, parts, strict=False):
        size = write(chosen.out / name, part)
        print(f"{chosen.out / name}: {size / MIB:.1f} MiB, {len(part)} files")
    if chosen.data is None:
        print("Missing: the images. Give --data; without them only --tiny runs there.")
    if listed:
        whose = "no list of what is there" if chosen.installed is None else "not there"
        print(f"Missing wheels ({whose}; torch has to be a build with CUDA):")
        print("  " + " ".join(listed.split()))


if __name__ == "__main__":
    sys.exit(main())
