"""`offramp.record` is a function, in every order of imports; its layer is `offramp.recording`."""

import subprocess
import sys

#: One process imports torch; a child of it imports ours, in its own order.
SCRIPT = """
import os, sys, torch
for order in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(f"import {order}; good = type(offramp.record).__name__ == 'function'")
        os._exit(0 if good else 3)
    assert os.waitpid(child, 0)[1] == 0, order
"""


def test_the_verb_can_be_called_whatever_was_imported_first():
    orders = ["offramp", "offramp.recording.store, offramp", "offramp.trace, offramp"]
    subprocess.run([sys.executable, "-c", SCRIPT, *orders], check=True)
