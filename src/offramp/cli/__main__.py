"""`python -m offramp.cli` is the same as `offramp`.

Layer: cli.
"""

from offramp.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
