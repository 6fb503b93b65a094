"""The plain door: images, forms, texts, rows and tables; and the description of all addresses."""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.adapters import from_function
from offramp.bundle import load, save
from offramp.models import ModelSpec, build
from offramp.project.inputs import InputReader
from offramp.stages import Cascade, Columns, Normalize, Resize
from support.functions import NAMES, label_of
from support.served import cascade_of, inputs_of, model_of, running

SIZES = ((20, 30), (40, 16), (9, 12))


def picture(k, form="PNG"):
    drawn = np.random.default_rng(k).integers(0, 256, (*SIZES[k % 3], 3), dtype=np.uint8)
    held = BytesIO()
    Image.fromarray(drawn).save(held, form)
    return held.getvalue()


def same_transforms():
    return cascade_of([Resize((8, 8)), Normalize(1 / 255)], channels=3)


def two_transforms():
    cascade = same_transforms()
    first, second = cascade
    coarse = first.replaced(transform=[Resize((6, 6)), Normalize(1 / 255)])
    return Cascade([coarse, second], class_names=cascade.class_names)


def linear(k):
    spec = ModelSpec(name="torch.nn:Linear", arguments={"in_features": 2, "out_features": 3})
    net = build(spec)
    net.weight.data = torch.randn(3, 2, generator=torch.Generator().manual_seed(k))
    return net, spec


def columns():
    nets, specs = zip(*map(linear, range(2)), strict=True)
    names = ("small", "large")
    return Cascade.from_models(
        dict(zip(names, nets, strict=True)),
        specs=dict(zip(names, specs, strict=True)),
        transform=Columns(["age", "size"]),
        class_names=("cat", "dog", "ox"),
    )


def texts():
    stage = from_function(
        "support.functions:probabilities", outputs="probabilities", class_names=NAMES
    )
    return Cascade.from_models({"small": stage, "large": stage})


KINDS = {
    "image": same_transforms,
    "images": two_transforms,
    "table": columns,
    "text": texts,
    "net": cascade_of,
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("doors"), {}
    for name, make in KINDS.items():
        more = {"input_shape": (1, 8, 8)} if name == "net" else {}
        save(model_of(make()), folder / name, **more)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def client(bundles):
    with running(bundles, allow_import=True, max_pixels=2000) as client:
        yield client


@pytest.fixture(scope="module")
def models(bundles):
    return {name: load(path, allow_import=True) for name, path in bundles.items()}


def predict(client, name, body, kind=None, **asked):
    query = "&".join(f"{key}={value}" for key, value in {"model": name, **asked}.items())
    headers = {} if kind is None else {"Content-Type": kind}
    return client(f"/predict?{query}", body, headers=headers)


def equals(answers, answer):
    assert [one["label"] for one in answers] == answer.labels.tolist()
    found = torch.tensor([one["probabilities"] for one in answers])
    torch.testing.assert_close(found, answer.log_probs.exp(), rtol=1e-4, atol=1e-6)
    stages = [answer.stage_names[k] for k in answer.stage.tolist()]
    assert [one["stage"] for one in answers] == stages
    assert [one["path"][-1] for one in answers] == stages
    assert [one["cost"] for one in answers] == answer.cost.tolist()
    return True


def form(files, **fields):
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for k, content in enumerate(files):
        head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{k}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join([*parts, b"--edge--\r\n"]), "multipart/form-data; boundary=edge"


@pytest.mark.parametrize("name", ["image", "images"])
@pytest.mark.parametrize("kind", [None, "image/png", "application/x-www-form-urlencoded"])
def test_an_image_as_it_is(client, models, name, kind):
    for k in range(3):
        status, _, said = predict(client, name, picture(k), kind, id="a")
        assert status == 200, said
        assert equals(said["answers"], models[name]([picture(k)], ["a"]))
    assert (said["model"], said["id"], said["answers"][0]["id"]) == (name, "a", "a")
    assert said["unit"] == "flops"
    assert said["answers"][0]["class_name"] in ("cat", "dog", "ox")


@pytest.mark.parametrize("name", ["image", "images"])
def test_images_in_a_form_and_in_json_and_in_tensors(client, models, name):
    files = [picture(k, "JPEG" if k % 2 else "PNG") for k in range(6)]
    answer = models[name](files, [f"a/{k}" for k in range(6)])
    status, _, said = predict(client, name, *form(files, id="a", priority=1))
    assert (status, equals(said["answers"], answer)) == (200, True)
    coded = [base64.b64encode(file).decode() for file in files]
    rows = {"rows": [{"b64": text} for text in coded], "id": "a"}
    for body in (rows, {**rows, "rows": coded}):
        status, _, said = predict(client, name, body, "application/json")
        assert (status, equals(said["answers"], answer)) == (200, True)
    entry = {"name": "image", "datatype": "BYTES", "shape": [6], "data": coded}
    entry["parameters"] = {"content_type": "base64"}
    status, _, said = client(f"/v2/models/{name}/infer", {"inputs": [entry], "id": "a"})
    assert status == 200, said
    outputs = {one["name"]: one["data"] for one in said["outputs"]}
    assert outputs["label"] == answer.labels.tolist()
    assert client(f"/v2/models/{name}")[2]["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1, -1]}
    ]


def test_images_as_pixels(client, models):
    x = torch.randint(0, 256, (4, 3, 10, 12), dtype=torch.uint8)
    entry = {"name": "image", "datatype": "UINT8", "shape": list(x.shape)}
    body = {"inputs": [{**entry, "data": x.tolist()}], "id": "a"}
    status, _, said = client("/v2/models/image/infer", body)
    assert status == 200, said
    outputs = {one["name"]: one["data"] for one in said["outputs"]}
    assert outputs["label"] == models["image"](x).labels.tolist()


def test_a_text_and_texts(client, models):
    for kind in (None, "text/plain; charset=utf-8", "application/x-www-form-urlencoded"):
        status, _, said = predict(client, "text", "für zwölf".encode(), kind)
        assert status == 200, said
        assert said["answers"][0]["class_name"] == label_of("für zwölf")
    each = ["a", "a text of more", "a text that is longer than twenty"]
    for body in (each, {"rows": each}):
        status, _, said = predict(client, "text", body, "application/json")
        assert [one["class_name"] for one in said["answers"]] == list(map(label_of, each))
    status, _, said = predict(client, "text", "a text of more", "application/json")
    assert said["answers"][0]["class_name"] == "middle"
    entry = {"name": "rows", "datatype": "BYTES", "shape": [3], "data": each}
    said = client("/v2/models/text/infer", {"inputs": [entry]})[2]
    outputs = {one["name"]: one["data"] for one in said["outputs"]}
    assert outputs["class_name"] == list(map(label_of, each))


def test_rows_with_fields(client, models):
    rows = [{"age": 30, "size": 1.5, "name": "x"}, {"age": 40, "size": 1}]
    answer = models["table"]({"age": [30, 40], "size": [1.5, 1.0]}, ["a/0", "a/1"])
    status, _, said = predict(client, "table", {"rows": rows, "id": "a"}, "application/json")
    assert (status, equals(said["answers"], answer)) == (200, True)
    said = predict(client, "table", rows[0], "application/json")[2]
    assert [one["label"] for one in said["answers"]] == answer.labels[:1].tolist()
    entries = [
        {"name": name, "datatype": "FP32", "shape": [2], "data": [row[name] for row in rows]}
        for name in ("size", "age")
    ]
    said = client("/v2/models/table/infer", {"inputs": entries})[2]
    assert said["outputs"][0]["data"] == answer.labels.tolist()
    told = client("/v2/models/table")[2]["inputs"]
    assert [one["name"] for one in told] == ["age", "size"]


def test_rows_of_numbers(client, models):
    x = inputs_of(3)
    status, _, said = predict(client, "net", {"rows": x.tolist(), "id": "a"}, "application/json")
    assert (status, equals(said["answers"], models["net"](x))) == (200, True)


@pytest.mark.parametrize(
    ("name", "body", "kind", "status", "said"),
    [
        (None, b"", None, 400, "model must be one of"),
        ("nett", b"", None, 404, "net"),
        ("image", b"abc", None, 400, "Row 0 cannot be read as an image: its format is not known"),
        ("image", b"", None, 400, "Row 0 cannot be read as an image"),
        ("image", picture(0)[:200], None, 400, "Row 0 cannot be read as an image"),
        ("image", {"rows": ["%"]}, "application/json", 400, "must be an image in base64"),
        ("image", {"rows": [5]}, "application/json", 400, "must be an image in base64"),
        ("image", {"a": 5}, "application/json", 400, 'must be {"rows": [...]}'),
        ("image", b"abc", "multipart/form-data", 400, "The form cannot be read"),
        ("image", b"abc", "multipart/form-data; boundary=edge", 400, "The form"),
        ("image", *form([]), 400, "The form"),
        ("image", *form([picture(0)], size=5), 400, "fields of a form must be"),
        ("image", *form([picture(0)], priority="x"), 400, "priority must be a number, got 'x'"),
        ("image", b"abc", "application/xml", 415, "Content-Type must be of an image"),
        ("text", b"\xff", "text/plain", 400, "must be text in UTF-8"),
        ("table", b"a text", "text/plain", 400, "reads ['age', 'size']: send JSON"),
        ("table", [{"age": 1}], "application/json", 400, "rows[0] must be an object with ['age'"),
        ("table", [{"age": 1, "size": "x"}], "application/json", 400, "must be numbers for 'size'"),
        ("table", [5], "application/json", 400, "rows[0] must be an object"),
        ("net", [[1, 2]], "application/json", 400, "must be [-1, 1, 8, 8]"),
        ("net", [[1], [1, 2]], "application/json", 400, "numbers of one shape"),
        ("net", ["a"], "application/json", 400, "must be numbers"),
        ("net", [[[[1e39] * 8] * 8]], "application/json", 400, "fit into FP32"),
        ("net", [], "application/json", 400, "at least one row"),
        ("net", b"[NaN]", "application/json", 400, "JSON has no NaN"),
        ("net", {"rows": [1], "prio": 1}, "application/json", 400, "no fields beside rows"),
    ],
)
def test_what_cannot_be_read_is_told(client, name, body, kind, status, said):
    path = "/predict" if name is None else f"/predict?model={name}"
    found = client(path, body, headers={} if kind is None else {"Content-Type": kind})
    assert found[0] == status, found
    assert said in found[2]["error"]
    assert "0x" not in found[2]["error"]


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(client):
    held = BytesIO()
    Image.new("1", (9000, 9000)).save(held, "PNG")  # a bomb: 81 megapixels in 10 kB
    for name in ("image", "images"):
        status, _, said = predict(client, name, held.getvalue())
        assert status == 400
        assert "must be an image of at most 2000 pixels, got 9000 x 9000" in said["error"]


def test_the_description_is_there_and_asks_nobody_else(client):
    told = client("/openapi.json")[2]
    assert told["openapi"].startswith("3.1")
    assert set(told["paths"]) >= {"/predict", "/v2/models/{model}/infer", "/v2/health/ready"}
    status, headers, page = client("/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"http" not in page.lower().replace(b"/openapi.json", b"").replace(b"http header", b"")
    assert b"<script" not in page
    for path in told["paths"]:
        assert path.encode() in page


def test_every_address_is_described_and_every_description_is_of_one(client):
    routes = {
        (route.path, method.lower())
        for route in client.app.routes
        for method in route.methods - {"HEAD"}
    } - {("/openapi.json", "get"), ("/docs", "get")}
    told = {
        (path, verb)
        for path, methods in client("/openapi.json")[2]["paths"].items()
        for verb in set(methods) & {"get", "post"}
    }
    assert routes == told
    assert json.dumps(told := client("/openapi.json")[2])


def test_each_request_is_looked_at_for_the_domain_that_stages_read(tmp_path):
    save(model_of(cascade_of(Normalize(1 / 255))), tmp_path / "net", input_shape=(1, 8, 8))
    with running({"net": tmp_path / "net"}) as client:
        for values, code in ((0.9, 400), (200.0, 200), (0.9, 400)):
            rows = np.full((2, 1, 8, 8), values, dtype=np.float32)
            tensor = {"name": "input", "shape": rows.shape, "datatype": "FP32"}
            body = {"inputs": [tensor | {"data": rows.reshape(-1).tolist()}]}
            status, _, said = client("/v2/models/net/infer", body)
            assert status == code, said
        assert "must hold numbers in [0, 255]" in said["error"]


def pixels_bundle(place, channels):
    """One that reads pixels, and remembers how the files were cut that it was fitted on."""
    cascade = cascade_of(Normalize(1 / 255), channels=channels)
    extra = {"images.json": {"resize": [9, 10], "orient": True}}
    save(model_of(cascade), place, input_shape=(channels, 8, 8), extra=extra)
    return place


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_images_are_read_where_pixels_are_as_predict_reads_them(channels, tmp_path):
    bundle = pixels_bundle(tmp_path / "net", channels)
    bodies = [picture(k) for k in range(4)]
    for k, body in enumerate(bodies):
        (tmp_path / f"{k}.png").write_bytes(body)
    reader = InputReader.of(bundle, sorted(tmp_path.glob("*.png")), array="images", ids=None)
    ((_, pixels),) = reader.batches(4)
    labels = load(bundle)(pixels).labels.tolist()
    with running({"net": bundle}) as client:
        packed = [{"b64": base64.b64encode(body).decode()} for body in bodies]
        mixed = [*packed[:2], *pixels[2:].tolist()]
        for body, kind in (form(bodies), ({"rows": mixed}, "application/json")):
            status, _, said = predict(client, "net", body, kind)
            assert status == 200, said
            assert [one["label"] for one in said["answers"]] == labels
        for k, body in enumerate(bodies):
            _, _, said = predict(client, "net", body, "image/png")
            assert said["answers"][0]["label"] == labels[k]
            _, _, told = client("/explain?model=net", body, headers={"Content-Type": "image/png"})
            assert told["label"] == labels[k]
        status, _, said = predict(client, "net", b"no image", "image/png")
        assert (status, "cannot be read as an image" in said["error"]) == (400, True)
        _, _, said = predict(client, "net", b'{"rows": [[[0]]]}', "text/plain")
        assert "send JSON, with Content-Type: application/json" in said["error"]


def test_files_of_images_are_refused_where_nobody_knows_how_they_are_cut(tmp_path):
    place = tmp_path / "net"
    save(model_of(cascade_of(Normalize(1 / 255))), place, input_shape=(1, 8, 8))
    with running({"net": place}) as client:
        status, _, said = predict(client, "net", picture(0), "image/png")
    assert status == 400
    assert "where the bundle says how they are cut" in said["error"]
