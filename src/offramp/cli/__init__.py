"""The command line: one module per subcommand; each parses, calls the library and prints.

Nothing here imports torch before a command runs, so that `--help` answers at once.

Layer: cli.
"""

from offramp.cli.app import app, main

__all__ = ["app", "main"]
