import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp.runtime import RiskMonitor
from offramp.serve import state as module
from offramp.serve.state import FILE, Pending, State


@pytest.fixture
def opened():
    """Opens states, and closes them at the end."""
    made = []

    def open_(folder):
        made.append(State(folder))
        return made[-1]

    yield open_
    for state in made:
        state.close()


ONE = Pending(gear="fast", answer=(1,), reference=(2, 3))


def test_what_was_kept_is_there_after_it_was_opened_again(tmp_path, opened):
    state = opened(tmp_path / "watch")
    state.keep("a", replace(ONE, gear="old"))
    state.keep("a", replace(ONE, gear="new"))
    state.remember("m", 1, ONE)
    state.remember("m", "1", Pending(gear="slow", answer=(-1,), reference=(0,)))
    state.close()
    again = opened(tmp_path / "watch")
    assert again.kept("a", Pending).gear == "new"
    assert again.kept("a", RiskMonitor) is None
    assert again.kept("b", Pending) is None
    assert len(again) == 2
    assert again.recall("other", 1) is None
    assert again.recall("m", 1) == ONE
    assert again.recall("m", 1) is None
    assert again.recall("m", "1").gear == "slow"
    assert len(again) == 0


def test_it_survives_a_kill_in_the_middle_of_writing(tmp_path, opened):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from offramp.serve.state import Pending, State\n"
        "state = State(Path(sys.argv[1]))\n"
        "k = 0\n"
        "while True:\n"
        "    with state.together():\n"
        "        one = Pending(gear='g', answer=(k,), reference=(k,))\n"
        "        state.keep('count', one)\n"
        "        state.remember('m', k, one)\n"
        "    print(k, flush=True)\n"
        "    k += 1\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) >= 200:
                break
        os.kill(child.pid, signal.SIGKILL)
        last = [int(line) for line in child.stdout.read().split()]
    state = opened(tmp_path)
    count = state.kept("count", Pending).answer[0]
    assert count >= max(last, default=200)
    assert len(state) == count + 1, "both or neither"


def test_changes_are_made_together_or_not_at_all(tmp_path, opened):
    state = opened(tmp_path)
    state.remember("m", 1, ONE)

    def spoiled():
        with state.together():
            state.keep("a", ONE)
            state.recall("m", 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        spoiled()
    assert state.kept("a", Pending) is None
    assert len(state) == 1
    assert state.recall("m", 1) == ONE


def test_the_oldest_are_forgotten_where_there_are_too_many(monkeypatch, opened):
    monkeypatch.setattr(module, "MOST_PENDING", 5)
    state = opened(None)
    for k in range(12):
        state.remember("m", k, ONE)
    state.remember("m", 11, ONE)
    assert len(state) == 5
    assert [k for k in range(12) if state.recall("m", k)] == [7, 8, 9, 10, 11]


def foreign_database(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize(
    "make", [foreign_database, lambda path: path.write_text("notes"), lambda path: path.mkdir()]
)
def test_what_is_not_ours_is_not_touched(tmp_path, opened, make):
    path = tmp_path / FILE
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError, match="Nothing was changed"):
        opened(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE]
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_damaged_or_newer_file_says_so(tmp_path, opened):
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        file.execute("PRAGMA user_version = 9")
    with pytest.raises(FileFormatError, match="newer version"):
        opened(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 900)
    with pytest.raises(FileFormatError, match="damaged"):
        opened(tmp_path)


def test_a_folder_that_is_a_file_is_refused(tmp_path, opened):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="must be a folder"):
        opened(tmp_path / "file")
