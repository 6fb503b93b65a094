"""What is prepared for an accelerator runs on a CPU at a tiny size, and stops, goes on and refuses.

The parts lie in benchmarks/gpu and import each other by name, so that folder is on the path here.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "benchmarks" / "gpu"
PARTS = ("checks", "networks", "joint", "exits")


@pytest.fixture(scope="module", autouse=True)
def kit():
    """Its modules, by name; afterwards nobody else finds them."""
    places, before = [str(KIT), str(KIT.parent)], {*sys.modules}
    sys.path[:0] = places
    yield
    for place in places:
        sys.path.remove(place)
    for name in {*sys.modules} - before:
        where = getattr(sys.modules[name], "__file__", None) or ""
        if where.startswith(str(KIT.parent)):
            del sys.modules[name]


def smooth(count):
    """Images of which no two are alike, and which take little room."""
    rows = torch.arange(count) % 251
    return rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()


def test_the_options_are_explained():
    import pack
    import part

    assert "{checks,networks,joint,exits}" in part.options().format_help()
    assert "--wheels" in pack.options().format_help()
    assert part.PARTS == PARTS
    chosen = part.setting_of(part.options().parse_args(["joint", "--device", "cpu"]))
    assert 500 < chosen.budget.left <= 510
    assert chosen.reserve == 100
    assert all((KIT / f"{name}.py").is_file() for name in PARTS)


def test_a_part_whose_input_is_missing_names_the_part_to_run_first(tmp_path, capsys):
    import part

    options = ["--tiny", "--device", "cpu", f"--state={tmp_path / 's'}", f"--out={tmp_path / 'o'}"]
    assert part.main(["joint", *options]) == 3
    assert "run `run.sh networks` first" in capsys.readouterr().err
    assert part.main(["exits", "--device", "cpu", f"--data={tmp_path}", *options[3:]]) == 3
    assert "holds neither CIFAR-10 in its official binary layout" in capsys.readouterr().err


def test_the_time_of_a_part_is_over_before_something_more_is_begun():
    from setting import Budget, OutOfTime

    now = [100.0]
    budget = Budget(60, clock=lambda: now[0])
    budget.check(50)
    now[0] = 115.0
    assert budget.left == 45
    with pytest.raises(OutOfTime):
        budget.check(50)


def test_what_an_earlier_part_left_is_taken_from_where_it_is(tmp_path):
    import part
    from setting import Missing

    given = ["networks", f"--state={tmp_path / 's'}", f"--out={tmp_path / 'o'}", "--device", "cpu"]
    setting = part.setting_of(part.options().parse_args(given))
    with pytest.raises(Missing, match=r"run `run\.sh networks` first"):
        setting.kept("networks/a.trace", "networks")
    (tmp_path / "o" / "networks" / "a.trace").mkdir(parents=True)
    (tmp_path / "o" / "networks" / "a.trace" / "x").write_text("x")
    assert (setting.kept("networks/a.trace", "networks") / "x").read_text() == "x"


def test_a_file_that_was_not_copied_to_its_end_is_not_there(tmp_path, monkeypatch):
    import part
    import setting

    def breaks(source, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    given = ["networks", f"--state={tmp_path / 's'}", f"--out={tmp_path / 'o'}", "--device", "cpu"]
    made = part.setting_of(part.options().parse_args(given))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.safetensors").write_bytes(b"whole")
    monkeypatch.setattr(setting.shutil, "copyfile", breaks)
    with pytest.raises(KeyboardInterrupt):
        made.keep("a.safetensors")
    assert not (tmp_path / "o" / "a.safetensors").exists()


def test_what_is_not_of_the_kit_or_of_the_other_size_is_left_as_it_is(tmp_path, capsys):
    import part

    figures, other = tmp_path / "networks.json", tmp_path / "a file"
    asked = ["networks", "--device", "cpu", f"--state={tmp_path / 's'}"]
    for text in ("theirs", "[]", json.dumps({"part": "networks", "tiny": False})):
        figures.write_text(text)
        assert part.main([*asked, "--tiny", f"--out={tmp_path}"]) == 3
        assert "say another --out" in capsys.readouterr().err
        assert figures.read_text() == text
    other.write_text("x")
    assert part.main([*asked, f"--out={other}"]) == 3
    assert "Nothing can be written into" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    ["--minutes=nan", "--minutes=-1", "--minutes=x", "--epochs=0", "--batch-size=0"],
)
def test_numbers_that_cannot_be_meant_are_refused(wrong, capsys):
    import part

    with pytest.raises(SystemExit):
        part.options().parse_args(["networks", wrong])
    assert wrong.partition("=")[0] in capsys.readouterr().err


def test_a_device_or_a_network_that_there_is_not_is_said_in_a_line(tmp_path, capsys):
    import part

    places = [f"--state={tmp_path / 's'}", f"--out={tmp_path / 'o'}"]
    assert part.main(["networks", "--tiny", "--device", "nope", *places]) == 3
    assert "device must be" in capsys.readouterr().err
    asked = ["networks", "--tiny", "--device", "cpu", "--networks", "nosuch", *places]
    assert part.main(asked) == 3
    assert "There is no model 'nosuch'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["networks", "exits"])
def test_networks_of_other_images_are_not_taken_for_those_of_this_run(tmp_path, capsys, name):
    import part

    folder = tmp_path / "s" / name
    folder.mkdir(parents=True)
    plan = {"batch_size": 256, "images": 40_000, "epochs": {"preresnet8": 3}}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "preresnet8.safetensors").touch()
    asked = [name, "--tiny", "--device", "cpu", "--networks", "preresnet8"]
    assert part.main([*asked, f"--state={tmp_path / 's'}", f"--out={tmp_path / 'o'}"]) == 3
    assert "say another --state and another --out" in capsys.readouterr().err
    assert json.loads((folder / "plan.json").read_text()) == plan


def test_a_sheet_gives_back_its_images(tmp_path):
    from sheets import read_sheet, write_sheet

    images = smooth(1000)
    images[7, 1, 3, 5] = 200
    write_sheet(images, tmp_path / "s.webp", method=0)
    assert torch.equal(read_sheet(tmp_path / "s.webp"), images)


def test_packs_are_of_about_one_size_and_more_than_two_are_refused():
    from pack import divided

    parts = divided({str(k): bytes(9 * 1024) for k in range(10)}, limit=60 * 1024)
    assert [len(part) for part in parts] == [5, 5]
    assert len(divided({"a": b"x"}, limit=60 * 1024)) == 1
    with pytest.raises(SystemExit, match=r"each must have at most 0\.1 MiB"):
        divided({str(k): bytes(9 * 1024) for k in range(13)}, limit=60 * 1024)


def test_packages_that_are_not_there_are_named(tmp_path):
    from pack import missing, needed, wheels

    wanted = needed(ROOT)
    assert "tomli" not in wanted  # of an older Python
    assert {"torch", "numpy", "pytest", "pytest-timeout", "hypothesis", "filelock"} <= {*wanted}
    there = tmp_path / "list.txt"
    there.write_text("torch==2.8.0+cu128\nNumPy==2.0\npytest_timeout @ file:///x\n")
    lacks = missing(wanted, there)
    assert not {"torch", "numpy", "pytest-timeout"} & {*lacks}
    assert "scipy" in lacks
    for name in ("scipy-1.14.0-cp311-cp311-linux_x86_64.whl", "other-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [*wheels(tmp_path, lacks)] == ["wheels/scipy-1.14.0-cp311-cp311-linux_x86_64.whl"]


def run(script, *arguments):
    """What a script of the kit prints; one thread."""
    done = subprocess.run(
        ["sh", KIT / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kit")


def tiny(place, name, *more):
    """Run a part at its tiny size; returns its figures."""
    options = ["--tiny", "--device", "cpu", "--state", place / "state", "--out", place / "out"]
    printed = run("run.sh", name, *options, *more)
    found = json.loads((place / "out" / f"{name}.json").read_text("utf-8"))
    assert printed.splitlines()[-1].startswith(str(found["rows"][-1][found["columns"][0]]))
    assert found["tiny"]
    assert found["part"] == name
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four processes that import torch, on a machine that may be busy
def test_networks_stop_go_on_and_are_trained_together(place):
    stopped = tiny(place, "networks", "--minutes", "0")
    assert not stopped["complete"]
    assert not any(row["done"] for row in stopped["rows"])
    whole = tiny(place, "networks")
    assert whole["complete"]
    assert whole["plan"] == stopped["plan"]  # or its checkpoints would be of another training
    again = tiny(place, "networks")
    assert [row["seconds"] for row in again["rows"]] == [0, 0]
    assert {p.name for p in (place / "out" / "networks").iterdir()} == {
        "plan.json",
        "judged.trace",
        "preresnet8.safetensors",
        "preresnet14.safetensors",
    }
    together = tiny(place, "joint")
    assert together["complete"]
    assert [row.get("alpha") for row in together["rows"]] == [0.03, 0.1, None, None, None]
    assert together["rows"][-1]["error %"] == 7.26


@pytest.mark.slow
def test_exits_of_single_classes_are_chosen(place):
    found = tiny(place, "exits", "--networks", "preresnet8")
    assert found["complete"]
    assert found["rows"][0]["error test %"] < 60
    assert found["rows"][0]["gain strict"] >= 1


@pytest.mark.slow
def test_the_tests_and_the_runtime_are_measured(place):
    found = tiny(place, "checks")
    assert found["tests"]["failed"] == 0
    assert found["tests"]["skipped"] > 0 or torch.cuda.is_available()
    assert set(found["measured"]["over_ideal"]) == {"eager", "folded"}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="code is packed by what git knows")
def test_what_is_packed_can_be_unpacked_and_read(tmp_path):
    from sheets import read_sheets

    data, images = tmp_path / "cifar-10-batches-bin", smooth(50_000)
    labels = np.arange(50_000) % 10
    data.mkdir()
    for k in range(5):
        part = slice(10_000 * k, 10_000 * (k + 1))
        pixels = images[part].reshape(10_000, -1).numpy()
        records = np.column_stack([labels[part], pixels]).astype(np.uint8)
        records.tofile(data / f"data_batch_{k + 1}.bin")
    out, there = tmp_path / "packs", tmp_path / "there"
    said = run("prepare.sh", "--data", data, "--out", out, "--method", 0)
    assert "pack-1.tar" in said
    assert "Missing wheels" in said
    there.mkdir()
    for pack in sorted(out.glob("pack-*.tar")):
        assert pack.stat().st_size <= 60 * 2**20
        with tarfile.open(pack) as archive:
            archive.extractall(there, filter="data")
    found = read_sheets(there / "images")
    assert torch.equal(found.inputs, images)
    assert found.labels.tolist() == labels.tolist()
    code = io.BytesIO((there / "code.tar.gz").read_bytes())
    with tarfile.open(fileobj=code) as archive:
        names = {*archive.getnames()}
    assert {"benchmarks/gpu/run.sh", "src/offramp/__init__.py", "tests/gpu/test_cuda.py"} <= names
