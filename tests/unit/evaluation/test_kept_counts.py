"""What evaluations keep for certificates is what a loop over the examples counts."""

import json
from dataclasses import replace

import pytest
import torch

from offramp._core.errors import FileFormatError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import Frontier, evaluate, evaluate_all, fit, replay
from offramp.evaluation.judging import labeled_by
from offramp.evaluation.replay import path_costs
from offramp.evaluation.results import OUTCOMES, Evaluation
from offramp.trace import make_trace

KINDS = {
    (0, 0): 0,
    (0, 1): 1,
    (1, 0): 2,
    (1, 1): 3,
}  # wrong, the reference wrong: place in OUTCOMES


@pytest.fixture(scope="module", params=[("logits", 1), ("logits", 2), ("labels", 1)])
def asked(request):
    return request.param


@pytest.fixture(scope="module")
def trace(asked):
    found = make_trace(500, stages=3, classes=4, seed=7, kind=asked[0])
    if found.ranked is not None:  # a service may name what is no class
        found.ranked[::9, :, 0] = 77
        found.ranked[4::9, 1, 0] = -1
    return found


@pytest.fixture(scope="module")
def frontier(trace, asked):
    simple = {"combines": ["last", "mean"], "confidences": ["margin"]}
    return fit(trace, ["random", "threshold"], top=asked[1], progress=False, **simple)


@pytest.fixture(scope="module")
def candidates(frontier):
    return [p.candidate for p in (*frontier.points[::12], *frontier.singles)]


KEPT = ("disagreement", "path_share", "path_cost_ratio", "class_outcomes")


def counted(trace, candidate):
    """One example after another."""
    done = replay(trace, candidate.policy, top=candidate.top)
    stage = trace.topology.index(candidate.reference)
    f_first = trace.output(stage).top(1)[:, 0].tolist()
    f_wrong = trace.wrong(stage, top=candidate.top).tolist()
    classes = [[0] * trace.classes for _ in OUTCOMES]
    paths = [[0] * trace.classes for _ in done.paths]
    differing = [0] * trace.classes
    for i, label in enumerate(trace.labels.tolist()):
        classes[KINDS[int(done.wrong[i]), int(f_wrong[i])]][label] += 1
        paths[done.path[i]][label] += 1
        first = int(done.labels[i][0])
        both_outside = not (0 <= first < trace.classes or 0 <= f_first[i] < trace.classes)
        differing[label] += first != f_first[i] and not both_outside
    return classes, paths, differing


def test_disagreements_paths_and_classes_are_those_of_the_examples(trace, candidates):
    for candidate, found in zip(candidates, evaluate_all(trace, candidates), strict=True):
        classes, paths, differing = counted(trace, candidate)
        assert [list(row) for row in found.class_outcomes] == classes
        assert [list(row) for row in found.class_paths] == paths
        assert [round(found.n * share) for share in found.path_share] == list(map(sum, paths))
        assert list(found.class_disagreements) == differing
        assert found.disagreement == sum(differing) / found.n
        f_cost = found.reference_cost
        ratios = (path_costs(trace, candidate.policy) / f_cost).tolist()
        assert found.path_cost_ratio == pytest.approx(ratios)
        mean = sum(s * r for s, r in zip(found.path_share, ratios, strict=True))
        assert mean == pytest.approx(found.cost_ratio)
        assert evaluate(trace, candidate, bootstrap=0) == found


def test_f_alone_never_disagrees_with_itself(frontier):
    alone = next(p for p in frontier.singles if p.candidate.label == f"{frontier.reference} alone")
    assert alone.fit.disagreement == 0.0


def test_the_class_counts_add_up_to_the_risks(trace, candidates):
    found = evaluate(trace, candidates[0], bootstrap=0)
    right, corrected, lost, wrong = (sum(row) for row in found.class_outcomes)
    assert right + corrected + lost + wrong == found.n
    assert (lost - corrected) / found.n == pytest.approx(found.accuracy_drop)
    assert (lost + wrong) / found.n == pytest.approx(1 - found.accuracy)


def test_they_come_back_from_json(trace, candidates):
    found = evaluate(trace, candidates[0], bootstrap=0)
    text = json.loads(json.dumps(to_json(found)))
    assert text["class_outcomes"]["lost"] == " ".join(map(str, found.class_outcomes[2]))
    again = from_json(Evaluation, text)
    assert replace(again, candidate=candidates[0]) == found
    text["class_outcomes"]["lost"] = "1 two"
    with pytest.raises(FileFormatError, match=r"class_outcomes: invalid literal"):
        from_json(Evaluation, text)


def test_a_frontier_of_an_older_version_is_read_without_them(frontier):
    stored = json.loads(json.dumps(to_json(frontier)))
    for point in [*stored["points"], *stored["singles"]]:
        point.pop("unlabeled")
        for part in ("fit", "calibrate", "judged_on_both"):
            for name in (*KEPT, "class_paths", "class_disagreements"):
                if point[part] is not None:
                    del point[part][name]
    again = from_json(Frontier, stored)
    assert again.points[0].fit.class_outcomes == ()
    assert again.points[0].fit.disagreement is None
    assert again.points[0].unlabeled is None


def test_labels_of_f_stand_for_the_truth(trace):
    stage = trace.topology.index("stage2")
    held = labeled_by(replace(trace, labels=torch.zeros_like(trace.labels)), "stage2")
    first = trace.output(stage).top(1)[:, 0]
    inside = (first >= 0) & (first < trace.classes)
    assert torch.equal(held.labels[inside], first[inside])
    assert not held.wrong(stage)[inside.numpy()].any()
