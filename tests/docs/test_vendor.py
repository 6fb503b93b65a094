"""What the pages fetch is taken only if it is what it was."""

import base64
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "vendor_onnxruntime_web.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The script, with an npm that packs files of ours."""
    spec = importlib.util.spec_from_file_location("vendor_onnxruntime_web", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in module.FILES:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    module.packed = packed.getvalue()

    def pack(words, *, cwd, check):
        assert check
        assert words[-1] == module.PACKAGE
        (Path(cwd) / "onnxruntime-web.tgz").write_bytes(module.packed)

    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    module.out = tmp_path / "vendor"
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--out", str(module.out)])
    return module


def digest(data):
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


def test_another_archive_is_refused_and_nothing_is_written(tool, capsys):
    assert tool.main() == 1
    assert "is not what it was" in capsys.readouterr().out
    assert not tool.out.exists()


def test_the_archive_is_unpacked_once(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "SHA512", digest(tool.packed))
    assert tool.main() == 0
    for name in tool.FILES:
        assert (tool.out / name).read_text() == name
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    assert tool.main() == 0
    assert f"{tool.PACKAGE} is in" in capsys.readouterr().out


def test_what_was_left_half_done_is_fetched_again(tool, monkeypatch):
    monkeypatch.setattr(tool, "SHA512", digest(tool.packed))
    tool.main()
    (tool.out / tool.MARK).unlink()
    (tool.out / tool.FILES[0]).write_text("half")
    assert tool.main() == 0
    assert (tool.out / tool.FILES[0]).read_text() == tool.FILES[0]


def test_without_npm_the_reason_is_given(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    assert tool.main() == 1
    assert "npm is needed" in capsys.readouterr().out
