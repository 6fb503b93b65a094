"""`offramp.record` is a package and a verb, in every order of imports."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "imports",
    ["import offramp", "import offramp.recording.store, offramp", "import offramp.trace, offramp"],
)
def test_the_verb_can_be_called_whatever_was_imported_first(imports):
    code = f"{imports}; assert callable(offramp.record)"
    subprocess.run([sys.executable, "-c", code], check=True)
