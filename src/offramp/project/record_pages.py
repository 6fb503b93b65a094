"""The pages about class exits and joint training, from what the commands left in a run's folder.

Layer: project.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from offramp._core.files import read_json
from offramp.project.config.config import load_config
from offramp.project.folder import CLASS_EXITS, JOINT, RunFolder, candidate_from_file
from offramp.project.report import reproduction
from offramp.report import write_class_exits_report, write_joint_report
from offramp.trace import load_trace

if TYPE_CHECKING:
    from offramp.report import ExampleImage, Reproduction

CLASS_EXITS_PAGE, JOINT_PAGE = "class_exits.html", "joint.html"


def class_exits_page(run: RunFolder, title: str | None) -> Path:
    """Write class_exits.html into the folder of a run.

    Args:
        run: With class exits.
        title: Of the page.
    """
    design = read_json(run.path / CLASS_EXITS)
    run.remember(CLASS_EXITS_PAGE)
    return write_class_exits_report(
        run.path / CLASS_EXITS_PAGE,
        design,
        title=title or f"Exits of classes: {run.name}",
        reproduction=_again(run, str(design["command"]), CLASS_EXITS),
        overwrite=True,  # the run's own
    )


def joint_page(run: RunFolder, title: str | None, config: Path | None) -> Path:
    """Write joint.html into the folder of a run.

    Args:
        run: With a joint training.
        title: Of the page.
        config: Says where the images are; without it the page shows none.
    """
    joint = read_json(run.path / JOINT)
    run.remember(JOINT_PAGE)
    return write_joint_report(
        run.path / JOINT_PAGE,
        joint,
        title=title or f"Trained jointly: {run.name}",
        images=() if config is None else _images(run, config, joint["trace"], joint["split"]),
        reproduction=_again(run, str(joint["command"]), JOINT),
        overwrite=True,  # the run's own
    )


def _again(run: RunFolder, command: str, record: str) -> "Reproduction":
    commands = [command, f"offramp report {run.path}"]
    return reproduction(commands, seed=None, data="", folder=run.path, files=(record,))


def _images(run: RunFolder, config: Path, trace: str, split: str) -> "tuple[ExampleImage, ...]":
    from offramp.project.build import cascade_of, dataset_of
    from offramp.project.images import example_images
    from offramp.project.joint import STATIC_TRACE

    settings = load_config(config, needs=("data", "stage"))
    if settings.data is None:  # load_config has refused it
        return ()
    examples = dataset_of(settings)
    cascade = cascade_of(settings, config.parent, examples.class_names)
    part, baseline = (
        load_trace(run.path / name).subset(split)  # type: ignore[arg-type]
        for name in (trace, STATIC_TRACE)
    )
    candidate = candidate_from_file(run.path / JOINT)
    return example_images(examples, part, candidate, cascade, baseline=baseline)
