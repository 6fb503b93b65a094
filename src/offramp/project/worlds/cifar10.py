"""CIFAR-10 from a folder: pretrained ResNets where they lie there, else networks trained here.

A folder may hold `resnet_weights/resnet<depth>_state.npz`, networks of He et al. as plain arrays,
and `test_*.npz` with `images`, uint8 `(n, 32, 32, 3)`, and `labels` of images that they have not
seen. Or it holds the official binary layout, as `offramp.data.cifar10` reads it.

Layer: project.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from offramp._core.errors import InputError
from offramp._core.types import Split
from offramp.data import Dataset, cifar10, npz
from offramp.data.cifar import CIFAR10 as ARCHIVE
from offramp.data.cifar import CIFAR10_CLASSES
from offramp.models import ModelSpec, build
from offramp.project.worlds.digits import Network, costs_in_words, recorded, trained
from offramp.project.worlds.world import Learned, World
from offramp.stages import Cascade, Normalize

_NAMES = ("resnet20", "resnet56")  # a third in between would cost too nearly the same
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as these weights were trained
_UNSEEN: dict[Split, int] = {"fit": 500, "calibrate": 700, "test": 300}  # a minute on two cores
_SIZES: dict[Split, int] = {"train": 4000, **_UNSEEN}
_NETWORKS = (
    Network(name="small", width=8, depth=2, epochs=5, learning_rate=0.02),
    Network(name="large", width=16, depth=3, epochs=5, learning_rate=0.01),
)


def _learn(
    folder: Path | None, *, seed: int, progress: bool, tell: Callable[[str], None]
) -> Learned:
    if folder is None:
        raise InputError(
            "CIFAR-10 does not come with the package: name the folder that holds "
            "cifar-10-batches-bin, `offramp demo --data cifar10 FOLDER`."
        )
    pretrained = folder / "resnet_weights"
    if pretrained.is_dir():
        tell("reading pretrained networks")
        cascade, examples = _pretrained(pretrained), _unseen(folder, seed)
        notes = "ResNets that were trained elsewhere, on images that they have not seen"
    else:
        examples = _official(folder).split_into(_SIZES, seed=seed, stratified=True)
        tell("training two networks")
        cascade = trained(examples, _NETWORKS, seed=seed, progress=progress)
        notes = f"Two small networks, trained on {_SIZES['train']} images"
    tell("recording what they say about images they have not seen")
    trace = recorded(cascade, examples, CIFAR10, progress=progress)
    return Learned(
        trace=trace,
        cascade=cascade,
        test=examples.subset("test"),
        data=f"{examples.name}, SHA-256 {examples.fingerprint}",
        notes=(f"{notes}: {costs_in_words(trace)}.",),
    )


def _official(folder: Path) -> Dataset:
    within = (folder, folder / ARCHIVE.folder)
    if not any(file for place in within for file in place.glob("*_batch*.bin")):
        raise InputError(
            f"The folder of --data cifar10 must hold {ARCHIVE.folder}, got {folder}"
            f"{'' if folder.is_dir() else ', which is not there'}. Fetch it (170 MB) by python -c "
            f'"from offramp.data import cifar10; cifar10({str(folder)!r}, download=True)"; or '
            "call `offramp demo`, whose digits come with the package."
        )
    return cifar10(folder)


def _pretrained(weights: Path) -> Cascade:
    specs = {
        name: ModelSpec(name=name, weights=str(weights / f"{name}_state.npz")) for name in _NAMES
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Cascade.from_models(
            {name: build(spec) for name, spec in specs.items()},
            specs=specs,
            transform=Normalize(1 / 255, _MEAN, _STD),
            class_names=CIFAR10_CLASSES,
        )


def _unseen(folder: Path, seed: int) -> Dataset:
    files = sorted(folder.glob("test_*.npz"))
    if not files:
        raise InputError(
            f"{folder} holds pretrained networks but no test_*.npz with images that they have not "
            "seen; on their training images they look perfect."
        )
    found = npz(files[0], class_names=CIFAR10_CLASSES)
    return found.split_into(_UNSEEN, seed=seed, stratified=True)


CIFAR10 = World(
    name="cifar10",
    title="Adaptive inference on CIFAR-10",
    inputs="images",
    learn=_learn,
    batch_sizes=(1, 32),
    timed=32,
    rounds=3,
)
