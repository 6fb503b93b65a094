"""The playground's pages in a browser: from a folder, by keyboard, with the exported cascade."""

import base64
import functools
import http.server
import json
import re
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from support.browser import CHROMIUM, browser

FOLDER = Path(__file__).parents[2] / "docs" / "playground"
VENDOR = FOLDER / "vendor" / "ort.wasm.min.js"
PAGES = ("index.html", "draw.html")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture(scope="module")
def address():
    """A plain server of the folder, as `python -m http.server` is one."""
    handler = functools.partial(Quiet, directory=FOLDER)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def recorded():
    text = (FOLDER / "data" / "digits.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r"const RECORDED = (.*);\n", text, re.DOTALL)[1])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_nobody_else(page):
    files = [page, "style.css", "explore.js", "draw.js", "certificate.js"]
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in files)
    text = text.replace("http://localhost:8000/draw.html", "")  # what to type
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import", text)


# ---- exploring a promise


def test_a_page_from_a_folder_computes_what_python_did(window, recorded):
    window.errors.clear()
    window.open((FOLDER / "index.html").as_uri())
    limits = window.js("LIMITS")
    known = [c for c in recorded["checks"] if c["limit"] in limits and c["n"] % 25 == 0]
    assert len(known) >= 100
    for check in known[::13]:
        window.js(f"$('limit').value = {limits.index(check['limit'])}")
        window.js(f"$('delta').value = DELTAS.indexOf({check['delta']})")
        window.js(f"$('n').value = {check['n']}")
        window.js(f"document.querySelector('[value={check['risk']}]').click(); show()")
        python = check["python"]
        promised = python["chosen"] is not None
        assert window.js("$('badge').textContent") == ("Certified" if promised else "Not certified")
        if promised:
            cost = f"{100 * python['cost']:.1f}\u00a0%"
            assert cost in window.js("$('sentence').textContent")
            assert window.js("document.querySelectorAll('#frontier .chosen').length") == 1
    assert window.errors == []


def test_a_slider_answers_to_the_keyboard(window):
    window.open((FOLDER / "index.html").as_uri())
    before = window.js("[$('sentence').textContent, $('exits').innerHTML, $('frontier').innerHTML]")
    for _ in range(30):
        window.press("Tab")
        if window.js("document.activeElement.id") == "limit":
            break
    for _ in range(3):
        window.press("ArrowLeft")
    after = window.js("[$('sentence').textContent, $('exits').innerHTML, $('frontier').innerHTML]")
    assert window.js("$('limit').getAttribute('aria-valuetext')") == "1 point of accuracy"
    assert all(a != b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1100])
def test_a_page_fits_its_window_and_can_be_read(window, address, page, dark, width):
    window.open(f"{address}/{page}", width=width, dark=dark)
    assert window.js("document.documentElement.scrollWidth <= innerWidth")
    ink, paper = (
        [int(v) for v in re.findall(r"\d+", window.js(f"getComputedStyle(document.body).{name}"))]
        for name in ("color", "backgroundColor")
    )
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (ink[:3], paper[:3])]
    assert (light[0] > light[1] + 100) if dark else (light[1] > light[0] + 100)


# ---- drawing a digit


def test_a_page_from_a_folder_says_how_to_serve_it(window):
    window.open((FOLDER / "draw.html").as_uri())
    assert "python -m http.server" in window.until("$('notice').textContent")


needs_runtime = pytest.mark.skipif(
    not VENDOR.is_file(), reason="needs python tools/vendor_onnxruntime_web.py"
)


@pytest.fixture
def drawing(window, address):
    window.errors.clear()
    window.open(f"{address}/draw.html")
    window.until("document.body.dataset.ready || $('notice').textContent")
    assert window.js("$('notice').textContent") == ""
    return window


def answer(window):
    """What the page found, and what onnxruntime in Python finds in the same pixels."""
    window.until("window.answered")
    told = window.js("({...window.answered})")
    session = onnxruntime.InferenceSession(
        FOLDER / "data" / "cascade.onnx", providers=["CPUExecutionProvider"]
    )
    pixels = np.array(told["values"], dtype=np.float32).reshape(1, 1, 8, 8)
    _, label, stage = session.run(
        ["log_probs", "label", "stage"], {session.get_inputs()[0].name: pixels}
    )
    assert (told["label"], told["stage"]) == (int(label[0]), int(stage[0]))
    return told


@needs_runtime
def test_test_images_are_answered_as_in_python(drawing, recorded):
    point = recorded["points"][recorded["deployed"]["point"]]
    right, stages = 0, set()
    for _ in range(9):
        drawing.js("window.answered = null; $('example').click()")
        told = answer(drawing)
        right += told["label"] == told["known"]
        said = base64.b64decode(recorded["parts"]["test"]["said"][told["stage"]])
        assert told["label"] == said[told["place"]]  # as it was recorded in Python
        stages.add(told["stage"])
        at = point["stages"].index(told["stage"])
        for k, threshold in zip(point["stages"][:at], point["thresholds"], strict=False):
            assert max(told["each"][k]) < threshold
        if at < len(point["thresholds"]):
            assert max(told["each"][told["stage"]]) >= point["thresholds"][at]
        assert told["seconds"]["cascade"] > 0
        cards = drawing.js("[...document.querySelectorAll('#stages > li')].map(li => li.className)")
        assert cards[told["stage"]] == "left"
        assert "unvisited" not in cards[: told["stage"]]
    assert right >= 7
    assert drawing.errors == []


@needs_runtime
def test_a_digit_is_drawn_with_the_pointer(drawing):
    box = drawing.js("(({x, y, width}) => ({x, y, width}))($('canvas').getBoundingClientRect())")
    way = [(0.4, 0.3), (0.52, 0.15), (0.52, 0.5), (0.52, 0.85)]
    for k, (x, y) in enumerate(way):
        kind = "mousePressed" if k == 0 else "mouseMoved"
        at = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["width"]}
        drawing.ask(
            "Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at
        )
    drawing.ask("Input.dispatchMouseEvent", type="mouseReleased", button="left", **at)
    assert answer(drawing)["label"] == 1


@needs_runtime
def test_a_digit_is_drawn_with_the_keyboard_and_cleared(drawing):
    drawing.js("$('canvas').focus()")
    drawing.press(" ")
    for _ in range(12):
        drawing.press("ArrowDown")
    drawing.press(" ")
    drawing.js("window.answered = null; changed()")
    assert answer(drawing)["label"] == 1
    drawing.js("$('clear').click()")
    drawing.until("$('badge').textContent === 'Waiting for a digit'")


@needs_runtime
def test_a_picture_is_brought_to_the_size_of_the_data(drawing, tmp_path):
    """White on black, small, in a corner: the one of a digital clock."""
    pixels = np.zeros((200, 320), dtype=np.uint8)
    pixels[30:90, 40:50] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    drawing.js("window.answered = null")
    root = drawing.ask("DOM.getDocument")["root"]["nodeId"]
    node = drawing.ask("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    drawing.ask("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "one.png")])
    told = answer(drawing)
    seen = np.array(told["values"]).reshape(8, 8)
    assert seen[:, 3:5].min() >= 8
    assert (seen.sum(axis=1) > 0).all()  # of full height
    assert told["label"] == 1
