"""The playground computes what Python computes: replay and certificates, in Node."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from offramp.risk import binomial_p_values, paired_p_values
from offramp.trace import make_trace

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "docs" / "playground"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


@pytest.fixture(scope="module")
def tool():
    """The script that makes the data of the pages."""
    spec = importlib.util.spec_from_file_location(
        "make_playground", ROOT / "tools" / "make_playground.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded_digits():
    text = (FOLDER / "data" / "digits.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r"const RECORDED = (.*);\n", text, re.DOTALL)[1])


def in_node(problems, tmp_path, certificate=FOLDER / "certificate.js"):
    """What the script answers: of each frontier, and p-values of `COUNTS`."""
    (tmp_path / "problems.json").write_text(json.dumps({"frontiers": problems, "counts": COUNTS}))
    words = [str(NODE), HERE / "in_node.cjs", certificate, tmp_path / "problems.json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def agree(theirs, ours):
    """Whether a browser and Python come to one answer."""
    exact = ("chosen", "tested", "needed")
    near = ("p", "cost")
    if any(theirs[name] != ours[name] for name in exact):
        return False
    if ours["chosen"] is None:
        return True
    return all(theirs[name] == pytest.approx(ours[name], rel=1e-9, abs=1e-12) for name in near)


ASKED = [
    {"risk": risk, "limit": limit, "delta": delta, "n": n}
    for risk in ("accuracy_drop", "negative_flips")
    for limit in (0.01, 0.03, 0.08)
    for delta in (0.05, 0.2)
    for n in (60, 700)
]
#: Examples lost, corrected and all, limit, slack: among them where the worst share lies between.
COUNTS = [
    (lost, won, n, limit, 1e-3)
    for n in (40, 300, 5000)
    for limit in (0.01, 0.05, 0.2)
    for lost, won in ((0, 0), (1, 0), (0, 3), (6, 2), (n // 9, n // 10), (2, n // 4))
]
TRACES = [
    {"stages": 3, "accuracies": [0.85, 0.92, 0.96], "seed": 1},
    {"stages": 2, "classes": 2, "accuracies": [0.8, 0.97], "seed": 2},
    {"stages": 4, "classes": 7, "seed": 3},
]


@pytest.fixture(scope="module")
def problems(tool):
    """Frontiers of several traces, what is asked of them, and what Python answers."""
    found = []
    for made in TRACES:
        seed = made["seed"]
        trace = make_trace(1500, **made).split_into({"fit": 800, "calibrate": 700}, seed=seed)
        trace = tool.shuffled(trace, seed)
        frontier = tool.thresholds(trace)
        parts = {name: trace.subset(name) for name in ("fit", "calibrate")}
        recorded = tool.told(frontier, parts)
        answers = [tool.answered(frontier, trace, asked) for asked in ASKED]
        found.append({"recorded": recorded, "asked": ASKED, "answers": answers})
    return found


def complaint(told, problems):
    """What a script says otherwise than Python, or None."""
    for theirs, problem in zip(told["answers"], problems, strict=True):
        points = problem["recorded"]["points"]
        fitted = [{name: point["fit"][name] for name in ("lost", "won")} for point in points]
        if theirs["fitted"] not in ([], fitted):
            return "replay"
        for answer, ours, asked in zip(
            theirs["answered"], problem["answers"], problem["asked"], strict=True
        ):
            if not agree(answer, ours):
                return asked, answer, ours
    lost, won, n, limit, slack = zip(*COUNTS, strict=True)
    for k in range(len(COUNTS)):
        each = np.array([lost[k]]), np.array([won[k]]), n[k]
        paired = paired_p_values(*each, max_difference=limit[k], slack=slack[k])[0]
        exact = binomial_p_values(each[0], n[k], max_risk=limit[k])[0]
        if told["paired"][k] != pytest.approx(paired, rel=1e-9):
            return COUNTS[k], told["paired"][k], paired
        if told["binomial"][k] != pytest.approx(exact, rel=1e-9):
            return COUNTS[k], told["binomial"][k], exact
    return None


@needs_node
def test_a_certificate_in_a_browser_is_that_of_python(problems, tmp_path):
    assert complaint(in_node(problems, tmp_path), problems) is None
    answers = [answer for problem in problems for answer in problem["answers"]]
    assert sum(answer["chosen"] is None for answer in answers) >= 5
    assert len({answer["chosen"] for answer in answers}) >= 5


@needs_node
def test_what_stands_in_the_data_of_the_pages_is_computed_there(tmp_path):
    recorded = recorded_digits()
    checks = recorded.pop("checks")
    answers = [check["python"] for check in checks]
    problems = [{"recorded": recorded, "asked": checks, "answers": answers}]
    assert complaint(in_node(problems, tmp_path), problems) is None


BROKEN = {
    "the first that failed is promised": (
        "chosen: order[passed - 1]",
        "chosen: order[Math.min(passed, order.length - 1)]",
    ),
    "corrections are not counted": ("const seen = lost - won;", "const seen = lost;"),
    "the slack is not paid for": ("...fine.map(chance)) + slack)", "...fine.map(chance)))"),
    "the finer grid is left out": ("Math.max(found[top], ...fine.map(chance))", "found[top]"),
    "the order has no steps": (
        "rooms[kept[kept.length - 1]] + STEP",
        "rooms[kept[kept.length - 1]]",
    ),
    "one error is not counted in": (
        "(1 + rules + squares) / (n + 1) / n",
        "(rules + squares) / n / n",
    ),
    "the luck of a fit is not counted in": ("limit - mean - rules / n", "limit - mean"),
    "a tie goes on": ("[i] >= threshold) break", "[i] > threshold) break"),
    "delta is one-sided twice": (
        "if (p[p.length - 1] > asked.delta) break",
        "if (p[p.length - 1] > asked.delta / 2) break",
    ),
}


@needs_node
@pytest.mark.parametrize(("right", "wrong"), BROKEN.values(), ids=BROKEN)
def test_a_broken_twin_is_caught(problems, tmp_path, right, wrong):
    text = (FOLDER / "certificate.js").read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "broken.js").write_text(text.replace(right, wrong))
    told = in_node(problems, tmp_path, tmp_path / "broken.js")
    assert complaint(told, problems) is not None
