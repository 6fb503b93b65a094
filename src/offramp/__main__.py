"""The program: `offramp`, or `python -m offramp`.

It imports nothing at first, so that an interrupt while the rest is imported ends quietly as well.
"""

import sys


def main() -> int:
    """Run the program and return its exit code."""
    try:
        from offramp.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Error: Interrupted.\n")
        return 130
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
