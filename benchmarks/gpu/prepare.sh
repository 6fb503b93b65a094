#!/bin/sh
# Packs what a machine without a network needs into at most two archives; `prepare.sh --help` names
# the options.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
PYTHONPATH="$here/../../src:$here/..${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python3}" "$here/pack.py" "$@"
