#!/bin/sh
# Runs one part of what needs an accelerator: checks, networks, joint or exits. `run.sh PART --help`
# names the options, README.md says in which order.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
PYTHONPATH="$here/../../src:$here/..${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python3}" "$here/part.py" "$@"
