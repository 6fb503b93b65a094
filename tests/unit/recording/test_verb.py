"""`offramp.record` is a function, in every order of imports; its layer is `offramp.recording`."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "imports",
    ["import offramp", "import offramp.recording.store, offramp", "import offramp.trace, offramp"],
)
def test_the_verb_can_be_called_whatever_was_imported_first(imports):
    code = f"{imports}; assert type(offramp.record).__name__ == 'function'"
    subprocess.run([sys.executable, "-c", code], check=True)
