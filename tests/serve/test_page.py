"""The page: what it asks is answered, and a browser shows it."""

import pytest

import offramp
from offramp.adapters import from_function
from offramp.bundle import save
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.stages import Normalize, Resize
from support.browser import CHROMIUM, CTRL, SHIFT, browser
from support.functions import MOODS
from support.served import NAMES, cascade_of, geared, inputs_of, make_bundle, model_of, running

JSON = {"content-type": "application/json"}


def rows(x):
    return {"rows": x.tolist()}


def test_what_is_explained_is_what_is_answered(bundle, client):
    model, x = offramp.load(bundle), inputs_of(8, seed=5)
    for one in x.split(1):
        status, _, told = client("/explain", rows(one), headers=JSON)
        assert status == 200
        _, _, said = client("/predict", rows(one), headers=JSON)
        (answer,) = said["answers"]
        assert told["class"] == answer["class_name"] == NAMES[told["label"]]
        assert told["confidence"] == pytest.approx(answer["confidence"])
        assert [visit["stage"] for visit in told["visits"]] == answer["path"]
        assert (told["cost"], told["reason"]) == (answer["cost"], answer["reason"])
        assert told["reference_cost"] == 4.0
        last = told["visits"][-1]
        assert last["goes_to"] is None
        assert last["top"][0]["class"] == told["class"]
        assert last["stage"] == model.stage_names[int(model(one).stage[0])]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (rows(inputs_of(2)), "One example can be explained at a time, got 2."),
        ({"rows": [[1.0]]}, "The shape of 'input' must be"),
        ({"rows": inputs_of(1).tolist(), "gear": "fast"}, "gear must be one of"),
    ],
)
def test_what_cannot_be_explained_is_refused(client, body, error):
    status, _, told = client("/explain", body, headers=JSON)
    assert status == 400
    assert error in told["error"]


def test_what_is_explained_counts_nowhere(client):
    _, _, before = client("/v2/models/net/stats")
    client("/explain", rows(inputs_of(1)), headers=JSON)
    _, _, after = client("/v2/models/net/stats")
    assert after["examples"] == before["examples"]


def test_the_page_asks_nobody_else_and_needs_no_token(tmp_path):
    bundle = make_bundle(tmp_path / "net")
    with running({"net": bundle}, token="secret") as client:
        status, headers, page = client("/")
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert b"https://" not in page
        status, _, _ = client("/explain", rows(inputs_of(1)), headers=JSON)
        assert status == 401


# ---- in a browser


def texts_bundle(path):
    """A cascade of two functions on texts, with two gears and the reference."""
    stages = {
        name: from_function(f"support.functions:{name}", outputs="probabilities", class_names=MOODS)
        for name in ("hasty_moods", "moods")
    }
    cascade = offramp.Cascade.from_models(stages)
    gears = {"reference": (Candidate.single(cascade.topology, "moods", reference="moods"), {})}
    for name, threshold in (("careful", 0.7), ("fast", 0.5)):
        node = Node(Linear.threshold(Feature("max_prob", 0), threshold))
        policy = Policy(cascade.topology, {(0,): node})
        candidate = Candidate(policy=policy, method="threshold", reference="moods")
        gears[name] = (candidate, {"accuracy_drop": 0.01})
    costs = offramp.Costs.simple("flops", [1e6, 4e6])
    save(geared(cascade, gears, "careful", costs), path)
    return path


@pytest.fixture(scope="module")
def shown(bundle, tmp_path_factory):
    """A server of two models, and a browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    folder = tmp_path_factory.mktemp("shown")
    pictures = model_of(cascade_of([Resize((8, 8)), Normalize(1 / 255)], channels=3))
    save(pictures, folder / "pictures")
    sources = {"moods": texts_bundle(folder / "moods"), "net": bundle}
    sources["pictures"] = folder / "pictures"
    with running(sources, allow_import=True) as client, browser(folder / "browser") as window:
        client("/predict?model=net", rows(inputs_of(20)), headers=JSON)
        yield client, window


def test_a_text_is_typed_and_seen_to_travel(shown):
    client, window = shown
    window.open(f"{client.url}/")
    window.until("document.querySelectorAll('#stages tbody tr').length == 2")
    assert window.js("[...document.querySelectorAll('#model option')].map(o => o.value)") == [
        "moods",
        "net",
        "pictures",
    ]
    for text in ("good, fine, happy all day", "it is not known whether he lost"):
        window.js("$('text').value = ''; $('text').focus()")
        window.type(text)
        window.press("Enter", CTRL)
        _, _, told = client("/explain?model=moods&gear=careful", text.encode())
        window.until(f"$('answer').textContent.includes({told['class']!r})")
        stages = "[...document.querySelectorAll('#way .head b')].map(b => b.textContent)"
        assert window.js(stages) == [visit["stage"] for visit in told["visits"]]
        assert "Leaves here" in window.js("$('way').textContent")
    assert len(told["visits"]) == 2  # three words were not enough
    assert "Goes on to moods" in window.js("$('way').textContent")
    window.js("$('text').value = ' '; $('by-text').requestSubmit()")
    assert window.js("$('answer').textContent") == "Type something first."
    assert window.errors == []


def focused(window):
    """What has the focus, and whether that can be seen."""
    return window.js(
        "(() => { const a = document.activeElement, seen = (e) => { const s = getComputedStyle(e);"
        " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; };"
        " return [a.id || a.textContent, seen(a.id === 'file' ? $('drop') : a)]; })()"
    )


def test_the_keyboard_alone_is_enough(shown):
    client, window = shown
    window.open(f"{client.url}/")
    window.until("document.querySelectorAll('#stages tbody tr').length == 2")
    for wanted in ("model", "text"):
        window.press("Tab")
        assert focused(window) == [wanted, True]
    window.type("it is not known whether he lost")
    window.press("Tab")
    assert focused(window) == ["Classify", True]
    window.press("Enter")
    window.until("document.querySelectorAll('#way .head').length == 2")
    window.press("Tab")
    assert focused(window) == ["gear", True]
    assert window.js("$('gear').getAttribute('aria-valuetext')") == "careful"
    window.press("ArrowRight")
    assert window.js("$('gear').getAttribute('aria-valuetext')") == "fast"
    assert window.js("$('gear-says').textContent").startswith("fast: 50")
    window.until("document.querySelectorAll('#way .head').length == 1")  # sure enough for this one
    window.press("ArrowLeft")
    window.press("ArrowLeft")
    assert window.js("$('promise').textContent") == "moods alone answers."
    window.until("$('way').textContent.includes('not needed')")
    for wanted in ("All routes of this server", "metrics"):
        window.press("Tab")
        assert focused(window) == [wanted, True]
    for _ in range(5):
        window.press("Tab", SHIFT)
    assert focused(window) == ["model", True]
    window.press("ArrowDown")
    window.until("$('text-label').textContent.startsWith('A row, as JSON')")
    assert window.js("$('gears').classList.contains('hidden')")
    window.press("ArrowDown")
    window.until("!$('by-image').classList.contains('hidden')")
    window.press("Tab")
    assert focused(window) == ["file", True]
    assert window.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1100, 360])
def test_nothing_sticks_out(shown, width, dark):
    client, window = shown
    window.open(f"{client.url}/", width=width, dark=dark)
    window.until("document.querySelectorAll('#stages tbody tr').length == 2")
    window.js("$('text').value = 'it is not known whether he lost'; $('by-text').requestSubmit()")
    window.until("document.querySelectorAll('#way .head').length == 2")
    assert window.js("document.documentElement.scrollWidth") <= width
    light = window.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (not dark)
    window.js("$('model').value = 'net'; $('model').dispatchEvent(new Event('change'))")
    window.until("$('stages').textContent.includes('large')")
    assert "examples answered" in window.js("$('tiles').textContent")
    assert window.js("document.documentElement.scrollWidth") <= width
    assert window.errors == []
