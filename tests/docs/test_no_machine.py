"""Nothing that is committed knows the machine it was written on."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Folders at the root of a machine. Written apart, so that this file does not find itself.
PLACES = re.compile(r"(?<![\w.~-])/(?:wo" r"rk|ro" r"ot|ho" r"me|Us" r"ers|m" r"nt)/[\w.]")
ADDRESS = re.compile(r"http" r"://([\w.-]+)")
PLAIN_HOSTS = {"localhost", "127.0.0.1", "www.w3.org", "www.apache.org"}
INDEXES = re.compile(r"(?:extra-|default-)?index-" r"url|trusted-" r"host|find-" r"links")


def files():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nobody says which files are committed")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def lines():
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_no_file_names_a_place_on_some_machine():
    mounted = "/mnt/models"  # where KServe puts models, on every machine
    found = [where for where, line in lines() if PLACES.search(line.replace(mounted, ""))]
    assert found == []


def test_no_file_names_an_unprotected_host_or_a_package_index():
    hosts = [(w, h) for w, line in lines() for h in ADDRESS.findall(line) if h not in PLAIN_HOSTS]
    assert hosts == []
    assert [where for where, line in lines() if INDEXES.search(line)] == []


@pytest.mark.parametrize("before", ["", "'", "=", " "])
@pytest.mark.parametrize("place", ["home/ada/data", "work/x", "root/.cache"])
def test_the_search_for_places_finds_them(before, place):
    assert PLACES.search(f"{before}/{place}")


@pytest.mark.parametrize(
    "harmless", ["..{0}shared{0}data", "docs{0}home{0}x", "a{0}work{0}b", "{0}tmp{0}x"]
)
def test_the_search_for_places_finds_nothing_else(harmless):
    assert not PLACES.search(harmless.format("/"))
