"""How results look in a notebook: escaped, whole, nothing fetched; and the frontier as one plot."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp.trace import make_trace

VOID = {"br", "img", "line", "circle", "path", "polyline"}
WICKED = "<img src=x onerror=alert(1)> & 'so' \"on\""


class Card(HTMLParser):
    """The text of a card, and what is wrong with its elements."""

    def __init__(self, html):
        super().__init__()
        self.text, self.faults, self._open = "", [], []
        self.feed(html)
        self.faults += [f"{tag} is open" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self._open.append(tag)
        self.faults += [f"<{tag}>" for _ in [0] if tag in {"script", "style", "img", "link", "a"}]
        self.faults += [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        self.faults += [str(a) for a in attrs if re.search(r"url\(|//", a[1] or "")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.text += data


def made(n=1500, **options):
    trace = make_trace(n, accuracies=[0.85, 0.93, 0.96], seed=1, **options)
    return trace.split_into({"fit": 600, "calibrate": 600, "test": n - 1200}, seed=0)


@pytest.fixture(scope="module")
def trace():
    return made()


@pytest.fixture(scope="module")
def frontier(trace):
    return offramp.fit(trace, "threshold", progress=False, combines=["last"])


def named(trace, name):
    """The trace with a name that wants to be HTML for its first stage."""
    topology = trace.topology
    others = topology.names[1:]
    edges = [((name, *others)[a], (name, *others)[b]) for a, b in topology.edges]
    return replace(trace, topology=offramp.Topology.of([name, *others], edges=edges))


def checked(thing):
    card = Card(thing._repr_html_())
    assert card.faults == []
    return card.text


def test_a_trace_shows_its_splits_and_each_stage(trace):
    text = checked(trace)
    assert "1,500 examples, 3 stages, 4 classes" in text
    assert "Fit 600, calibrate 600, test 300." in text
    for k, name in enumerate(trace.stages):
        assert name in text
        assert f"{100 * trace.accuracy(k):.1f}\u00a0%" in text


def test_a_trace_says_that_nothing_can_be_promised_of_it(trace):
    assert "cannot" not in checked(trace)
    assert "trained on these examples" in checked(replace(trace, seen_in_training=True))


@pytest.mark.parametrize("kind", ["labels", "losses"])
def test_other_outputs_have_a_card_and_a_plot(kind):
    trace = made(kind=kind)
    frontier = offramp.fit(trace, "threshold", progress=False)
    assert f"Recorded with {'losses' if kind == 'losses' else 'labels'}." in checked(trace)
    word = "Score" if kind == "losses" else "Accuracy"
    assert f"{word} (up) against cost" in checked(frontier)
    with drawn(frontier) as axes:
        assert axes.get_xlabel()


def test_a_frontier_shows_its_front(frontier):
    text = checked(frontier)
    assert f"{len(frontier.points)} candidates against {frontier.reference}" in text
    assert frontier.pareto[0].candidate.label in text
    assert "600 examples in calibrate" in text


@pytest.mark.parametrize("drop", [0.04, 0.001])
def test_a_choice_shows_what_came_out(frontier, drop):
    choice = frontier.cheapest(max_drop=drop)
    text = checked(choice)
    assert choice.outcome.capitalize() in text
    assert choice.sentence in text
    assert f"accuracy_drop <= {drop}" in text
    for share in choice.judged.exit_share:
        assert not share or f"{100 * share:.1f}\u00a0%" in text


def test_a_measured_choice_says_so(frontier):
    assert "Measured, not promised" in checked(frontier.cheapest(max_drop=0.02, delta=None))


def test_a_cascade_shows_its_stages_and_classes():
    models = {"small": nn.Linear(4, 12), "large": nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 12))}
    names = [f"class {k}" for k in range(12)]
    text = checked(offramp.Cascade.from_models(models, class_names=names))
    assert "small -> large" in text
    assert "Sequential" in text
    assert "60" in text  # parameters of the first
    assert "12 classes: class 0" in text
    assert "and 4 more" in text


def test_a_network_whose_shapes_are_not_known_yet_has_a_card():
    models = {"small": nn.LazyLinear(3), "large": nn.Linear(4, 3)}
    text = checked(offramp.Cascade.from_models(models))
    assert "LazyLinear" in text
    assert "\u2013" in text


def test_names_are_text_and_nothing_else(trace):
    wicked = named(trace, WICKED)
    frontier = offramp.fit(wicked, "random", progress=False)
    models = {WICKED: nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    cascade = offramp.Cascade.from_models(models, class_names=[WICKED, "other"])
    choice = frontier.cheapest(max_drop=0.3)
    for thing in (wicked, frontier, choice, cascade):
        assert WICKED in checked(thing)


def test_the_check_of_cards_can_fail():
    assert Card("<div><img src=x onerror=alert(1)></div>").faults
    assert Card("<div style='background:url(//x)'></div>").faults
    assert Card("<div><p></div>").faults


# ---- the plot


class drawn:
    """A plot on a canvas without a screen, closed at the end."""

    def __init__(self, frontier, *given, **named):
        self._asked = frontier, given, named

    def __enter__(self):
        mpl.use("agg")
        frontier, given, named = self._asked
        self.axes = frontier.plot(*given, **named)
        return self.axes

    def __exit__(self, *_):
        import matplotlib.pyplot as plt

        plt.close("all")


def test_a_plot_shows_the_front_and_the_networks(frontier):
    with drawn(frontier) as axes:
        lines = [line.get_xydata() for line in axes.lines]
        front = np.array([(p.fit.cost_ratio, p.fit.accuracy) for p in frontier.pareto])
        assert any(one.shape == front.shape and np.allclose(one, front) for one in lines)
        names = {text.get_text() for text in axes.texts}
        assert set(frontier.singles[0].fit.stages) <= names


def test_a_plot_marks_a_choice_and_tints_what_it_allows(frontier):
    choice = frontier.cheapest(max_drop=0.04)
    assert choice.guarantee is not None
    with drawn(frontier, choice) as axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "promised: 4 points" in legend
        at = [[choice.calibrate.cost_ratio, choice.calibrate.accuracy]]
        assert any(
            np.allclose(line.get_xydata(), at) for line in axes.lines if len(line.get_xydata()) == 1
        )
    refused = frontier.cheapest(max_drop=0.001)
    with drawn(frontier, refused) as axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "asked for: 0.1 points" in legend
        assert "chosen point" not in legend


def test_a_plot_takes_axes_and_gives_them_back(frontier):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert frontier.plot(axes=axes) is axes
    with pytest.raises(InputError, match=r"axes must be axes of matplotlib, got str"):
        frontier.plot(axes="here")


def test_a_plot_refuses_what_is_no_choice_or_of_another_reference(frontier, trace):
    with pytest.raises(InputError, match=r"choice must be a Choice, got str"):
        frontier.plot("cheapest")
    other = offramp.fit(trace, "random", reference="stage1", progress=False)
    with pytest.raises(InputError, match=r"against 'stage2', got one against 'stage1'"):
        frontier.plot(other.cheapest(max_drop=0.3))
