"""The page about designed exits, from what `offramp class-exits` left in a run's folder.

Layer: project.
"""

from pathlib import Path

from offramp._core.files import read_json
from offramp.project.folder import CLASS_EXITS, RunFolder
from offramp.project.report import reproduction
from offramp.report import write_class_exits_report

CLASS_EXITS_PAGE = "class_exits.html"


def design_page(run: RunFolder, title: str | None) -> Path:
    """Write class_exits.html into the folder of a run.

    Args:
        run: With a design.
        title: Of the page.
    """
    design = read_json(run.path / CLASS_EXITS)
    run.remember(CLASS_EXITS_PAGE)
    return write_class_exits_report(
        run.path / CLASS_EXITS_PAGE,
        design,
        title=title or f"Exits of classes: {run.path.name}",
        reproduction=reproduction(
            [str(design["command"]), f"offramp report {run.path}"],
            seed=0,
            data="",
            folder=run.path,
            files=(CLASS_EXITS,),
        ),
        overwrite=True,  # the run's own
    )
