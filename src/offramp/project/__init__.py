"""Projects: from a configuration and a folder to examples, cascades, choices, bundles and reports.

Layer: project.  What the command line does, for Python: nothing here parses options or prints.
Names are imported on first use, so that a configuration is checked without torch.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.project.build import cascade_of as cascade_of
    from offramp.project.build import costs_of as costs_of
    from offramp.project.build import dataset_of as dataset_of
    from offramp.project.config.config import load_config as load_config
    from offramp.project.config.sections import RunConfig as RunConfig
    from offramp.project.folder import RunFolder as RunFolder

_HOME = {
    "RunConfig": "offramp.project.config.sections",
    "RunFolder": "offramp.project.folder",
    "cascade_of": "offramp.project.build",
    "costs_of": "offramp.project.build",
    "dataset_of": "offramp.project.build",
    "load_config": "offramp.project.config.config",
}

__all__ = [*sorted(_HOME)]

__getattr__ = lazy(__name__, _HOME)
