"""The two folders: of one split or refused, brought up to date by digest, and never half there."""

import http.server
import io
import json
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from offramp._core.errors import FileFormatError, InputError
from offramp.backends import with_backend
from offramp.bundle import load, save
from offramp.edge import Client, Settings, split
from offramp.edge.resume import EDGE, load_resumed, resumed
from offramp.stages import Cascade, Decode, Normalize
from support import edged
from support.served import cascade_of, inputs_of, model_of, running


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another split of the same networks: with another threshold."""
    with edged.exported_once():
        return split(
            model_of(cascade_of(), threshold=0.55),
            tmp_path_factory.mktemp("other") / "made",
            device=["small"],
            example=inputs_of(1),
        )


def test_a_cloud_of_another_split_is_refused_and_both_are_named(made, other):
    with running({"cloud": other.path / "cloud"}) as cloud:
        client = Client(made.path / "device", Settings(url=cloud.url, timeout=30.0))
        with pytest.raises(InputError, match=made.id) as refused:
            client.check()
        assert other.id in str(refused.value)
        told = client(inputs_of(16).numpy())
        assert told.offline.any()
        (why,) = {reason for reason, off in zip(told.reason, told.offline, strict=True) if off}
        assert made.id in why
        assert other.id in why
        assert "400" in why
        client.close()


def test_a_split_of_other_class_names_is_another(tmp_path):
    ids = set()
    for names in (("cat", "dog", "bird"), ("dog", "cat", "bird")):
        with edged.exported_once():
            model = model_of(Cascade(list(cascade_of()), class_names=names), threshold=0.55)
            path = tmp_path / names[0]
            ids.add(split(model, path, device=["small"], example=inputs_of(1)).id)
    assert len(ids) == 2


def test_an_ordinary_bundle_is_no_cloud(made, tmp_path):
    from support.served import make_bundle

    make_bundle(tmp_path / "net")
    with running({"cloud": tmp_path / "net"}) as cloud:
        client = Client(made.path / "device", cloud.url)
        with pytest.raises(InputError, match="cloud of none"):
            client.check()
        client.close()


def test_both_manifests_hold_the_digests_of_the_device_and_the_weights_of_the_cloud(made):
    device = json.loads((made.path / "device" / "manifest.json").read_text())["edge"]
    cloud = json.loads((made.path / "cloud" / EDGE).read_text())
    assert device["id"] == cloud["id"] == made.id
    assert device["files"] == cloud["files"]
    assert device["stages"] == cloud["stages"]
    assert device["offline"]["at_least"] == 0.85


def test_a_changed_file_of_the_device_is_found(made, tmp_path):
    copy = tmp_path / "device"
    copy.mkdir()
    for file in (made.path / "device").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    changed = next(copy.glob("*.segment.onnx"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    with pytest.raises(FileFormatError, match=changed.name):
        Client(copy)
    with pytest.raises(FileFormatError, match="no device"):
        Client(made.path / "cloud")
    with pytest.raises(FileFormatError, match="cannot be read"):
        Client(tmp_path)


@pytest.mark.parametrize("where", ["device", "cloud"])
def test_a_folder_of_another_version_is_refused(made, tmp_path, where):
    copy = tmp_path / where
    copy.mkdir()
    for file in (made.path / where).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    if where == "device":
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["edge"]["version"] = 99
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(FileFormatError, match=r"99.*reads 1"):
            Client(copy)
        return
    model = load(made.path / "cloud")
    assert resumed(model, made.path / "cloud") is not model
    told = json.loads((copy / EDGE).read_text())
    (copy / EDGE).write_text(json.dumps({**told, "version": 99}))
    with pytest.raises(FileFormatError, match=r"99.*reads 1"):
        resumed(model, copy)


@contextmanager
def files(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_device_takes_over_what_has_another_digest(made, other, tmp_path):
    device = tmp_path / "device"
    device.mkdir()
    for file in (made.path / "device").iterdir():
        (device / file.name).write_bytes(file.read_bytes())
    client = Client(device)
    assert not client.refresh(made.path / "device")
    with files(other.path / "device") as (url, asked):
        assert client.refresh(url)
        assert not client.refresh(url)
    assert client.device.edge["id"] == other.id
    fetched = [path for path in asked if path.endswith(".onnx")]
    assert len(fetched) < len(list(device.glob("*.onnx"))), "the network itself is the same"
    x = inputs_of(16)
    want = model_of(cascade_of(), threshold=0.55)(x)
    assert (client(x.numpy()).offline == (want.stage == 1).numpy()).all()


def test_a_refresh_that_fails_leaves_what_was_there(made, other, tmp_path):
    device, broken = tmp_path / "device", tmp_path / "broken"
    for place, source in ((device, made), (broken, other)):
        place.mkdir()
        for file in (source.path / "device").iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    for file in broken.glob("*.decision.onnx"):
        file.write_bytes(b"none")
    client = Client(device)
    with pytest.raises(FileFormatError, match="not what its manifest says"):
        client.refresh(broken)
    with pytest.raises(FileFormatError, match="cannot be read"):
        client.refresh(tmp_path / "nowhere")
    assert Client(device).device.edge["id"] == made.id
    assert len(client(inputs_of(4).numpy())) == 4


def test_files_of_images_go_as_they_came(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    files = [png(pixels) for pixels in drawn]
    cascade = cascade_of([Decode("L"), Normalize(1 / 255)])
    sure = cascade.answers(files)[0].logits.detach().softmax(dim=1).amax(dim=1)
    model = model_of(cascade, threshold=float(sure.median()) + 1e-4)
    want = model(files)
    assert 0 < int((want.stage == 1).sum()) < 12
    made = split(model, tmp_path / "s", device=["small"], example=inputs_of(1), transform=False)
    assert made.bytes is None
    ready = torch.from_numpy(drawn[:, None]).float() / 255
    with running({"cloud": made.path / "cloud"}) as cloud:
        client = Client(made.path / "device", Settings(url=cloud.url, timeout=30.0))
        told = client(ready.numpy(), raw=files)
        client.close()
    assert told.label.tolist() == want.labels.tolist()
    assert [w == "cloud" for w in told.where] == (want.stage == 1).tolist()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"timeout": 0.0}, "timeout"),
        ({"attempts": 0}, "attempts"),
        ({"confident_audit_rate": 1.5}, "confident_audit_rate"),
        ({"usd_per_day": 1.0}, "usd_per_call"),
        ({"url": "ftp://host"}, "url"),
        ({"url": "http" + "://host", "token_env": "TOKEN"}, "https"),
        ({"url": "https://host", "token_env": "sk-secret"}, "not shown"),
    ],
)
def test_settings_outside_their_domain_are_refused(given, named):
    with pytest.raises(InputError, match=named) as refused:
        Settings(**given)
    assert "sk-secret" not in str(refused.value)


def test_inputs_that_do_not_fit_are_refused(made):
    client = Client(made.path / "device")
    with pytest.raises(InputError, match="inputs"):
        client({"nobody": torch.zeros(1, 1, 8, 8).numpy()})
    with pytest.raises(InputError, match="raw must hold"):
        client(inputs_of(2).numpy(), raw=[b"one"])


def test_a_split_is_replaced_only_where_that_is_said(made, model):
    with pytest.raises(InputError, match="exists already"):
        split(model, made.path, device=["small"], example=inputs_of(1))


def test_the_cloud_holds_no_network_that_only_the_device_runs(made, model, tmp_path):
    save(model, tmp_path / "whole")
    held = {file.name: file.stat().st_size for file in (made.path / "cloud").iterdir()}
    whole = {file.name: file.stat().st_size for file in (tmp_path / "whole").iterdir()}
    assert held["small.safetensors"] < whole["small.safetensors"] / 4
    assert held["large.safetensors"] == whole["large.safetensors"]
    plain = load(made.path / "cloud")  # as if it were a bundle like any other
    said = plain(inputs_of(8))
    assert said.labels.tolist() == model.reference(inputs_of(8)).labels.tolist()


def test_a_cloud_in_onnx_runtime_goes_on_from_the_same_device(tmp_path):
    x = inputs_of(24)
    cascade = with_backend(cascade_of(), "onnxruntime", example=x[:1])
    model, want = model_of(cascade), model_of(cascade_of())(x)
    made = split(model, tmp_path / "s", device=["small"], example=x[:1])
    with running({"cloud": made.path / "cloud"}) as cloud:
        client = Client(made.path / "device", Settings(url=cloud.url, timeout=30.0))
        told = client(x.numpy())
        client.close()
    assert told.label.tolist() == want.labels.tolist()
    assert [w == "cloud" for w in told.where] == (want.stage == 1).tolist()
    assert not list((made.path / "cloud").glob("small*.onnx"))


def test_a_backend_made_for_other_types_than_are_sent_is_refused(tmp_path):
    model = model_of(cascade_of(Normalize(mean=[0.4], std=[0.3], scale=1 / 255)))
    x = (255 * inputs_of(1).sigmoid()).to(torch.uint8)
    made = split(model, tmp_path / "s", device=["small"], example=x)
    with pytest.raises(InputError, match=r"devices send \['uint8'\].*--cloud-backend"):
        load_resumed(made.path / "cloud", backend="onnxruntime")
    load_resumed(made.path / "cloud")
