"""The version that is installed. It stands in pyproject.toml, and nowhere else in the code.

Layer: _core.
"""

from importlib.metadata import version

__version__ = version("offramp")
