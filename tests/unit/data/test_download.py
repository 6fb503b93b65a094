import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from offramp._core.errors import FileFormatError, UnsupportedError
from offramp.data import Archive, cifar, cifar10, fetch


def tar_of(files, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  (one server per test clears it)

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/cut.tar.gz":  # promises more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"only this")
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "web"
    folder.mkdir()
    Quiet.asked.clear()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        serve = functools.partial(running.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def publish(server, content, name="set.tar.gz", folder="set", checksum=None):
    directory, url = server
    (directory / name).write_bytes(content)
    checksum = checksum or "md5:" + hashlib.md5(content).hexdigest()
    return Archive(url=url + name, checksum=checksum, folder=folder)


def test_a_good_archive_is_unpacked_and_removed(server, tmp_path):
    archive = publish(server, tar_of({"set/a.bin": b"abc", "set/deep/b.txt": b"d", "other": b"x"}))
    folder = fetch(archive, tmp_path / "data")
    assert (folder / "a.bin").read_bytes() == b"abc"
    assert (folder / "deep" / "b.txt").read_bytes() == b"d"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["set"]


def test_a_sha256_checksum_works_as_well(server, tmp_path):
    content = tar_of({"set/a": b"1"})
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    assert fetch(publish(server, content, checksum=checksum), tmp_path / "data").is_dir()


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    archive = publish(server, tar_of({"set/a": b"1"}), checksum="md5:" + "0" * 32)
    with pytest.raises(FileFormatError, match="does not have the checksum md5:0000"):
        fetch(archive, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    archive = Archive(url=server[1] + "cut.tar.gz", checksum="md5:" + "0" * 32, folder="set")
    with pytest.raises((UnsupportedError, FileFormatError), match=r"cut\.tar\.gz"):
        fetch(archive, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_address_without_a_file_is_an_error_that_says_what_to_do(server, tmp_path):
    archive = Archive(url=server[1] + "none.tar.gz", checksum="md5:" + "0" * 32, folder="set")
    with pytest.raises(UnsupportedError, match=r"404.*Fetch it by other means"):
        fetch(archive, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_truncated_archive_with_the_published_checksum_is_refused(server, tmp_path):
    content = tar_of({"set/a": bytes(np.random.default_rng(0).bytes(20_000))})
    archive = publish(server, content[:9000])
    with pytest.raises(FileFormatError, match="cannot be unpacked"):
        fetch(archive, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_archive_without_the_folder_is_refused(server, tmp_path):
    with pytest.raises(FileFormatError, match="has no folder 'set'"):
        fetch(publish(server, tar_of({"else/a": b"1"})), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    "hostile",
    [
        {"files": {"set/../../out.txt": b"evil"}},
        {"files": {"set//etc/out.txt": b"evil"}},
        {"files": {}, "links": [("set/link", "../../../out.txt")]},
        {"files": {}, "links": [("set/link", "/etc/passwd")]},
    ],
)
def test_an_archive_cannot_write_outside_of_its_folder(server, tmp_path, hostile):
    archive = publish(server, tar_of(**hostile))
    before = sorted(path for path in tmp_path.rglob("*") if "web" not in path.parts)
    try:
        folder = fetch(archive, tmp_path / "data")
    except FileFormatError:
        pass
    else:  # an absolute path may also be unpacked inside
        assert all(folder in path.parents for path in folder.rglob("*"))
    after = {path for path in tmp_path.rglob("*") if "web" not in path.parts}
    outside = after - set(before) - {tmp_path / "data"}
    assert all((tmp_path / "data" / "set") in (path, *path.parents) for path in outside)
    assert not (tmp_path / "out.txt").exists()


def test_an_archive_that_is_there_already_is_not_fetched_again(server, tmp_path):
    content = tar_of({"set/a": b"1"})
    archive = publish(server, content)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set.tar.gz").write_bytes(content)
    fetch(archive, tmp_path / "data")
    assert Quiet.asked == []


def test_cifar10_downloads_only_when_it_is_not_there(server, tmp_path, monkeypatch):
    content = tar_of({"cifar-10-batches-bin/test_batch.bin": bytes(30_730_000)})
    archive = publish(server, content, folder="cifar-10-batches-bin")
    monkeypatch.setattr(cifar, "CIFAR10", archive)
    for _ in range(2):
        assert len(cifar10(tmp_path / "data", download=True)) == 10_000
    assert Quiet.asked == ["/set.tar.gz"]


def test_the_published_checksums_are_in_place():
    assert cifar.CIFAR10.checksum == "md5:c32a1d4ab5d03f1284b67883e8d87530"
    assert cifar.CIFAR100.checksum == "md5:03b5dce01913d631647c71ecec9e9cb8"
