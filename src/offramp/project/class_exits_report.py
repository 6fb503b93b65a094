"""The page about designed exits, from what `offramp design` left in a run's folder.

Layer: project.
"""

from pathlib import Path

from offramp._core.files import read_json
from offramp.project.folder import DESIGN, RunFolder
from offramp.project.report import reproduction
from offramp.report import write_design_report

DESIGN_PAGE = "design.html"


def design_page(run: RunFolder, title: str | None) -> Path:
    """Write design.html into the folder of a run.

    Args:
        run: With a design.
        title: Of the page.
    """
    design = read_json(run.path / DESIGN)
    run.remember(DESIGN_PAGE)
    return write_design_report(
        run.path / DESIGN_PAGE,
        design,
        title=title or f"Exits of classes: {run.path.name}",
        reproduction=reproduction(
            [str(design["command"]), f"offramp report {run.path}"],
            seed=0,
            data="",
            folder=run.path,
            files=(DESIGN,),
        ),
        overwrite=True,  # the run's own
    )
