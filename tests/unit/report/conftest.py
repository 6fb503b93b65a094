"""Made-up results with numbers that are easy to find on a page."""

from dataclasses import replace

import numpy as np
import pytest

from offramp._core.costs import Costs
from offramp._core.topology import Topology
from offramp.evaluation import (
    Choice,
    ClassRow,
    Evaluation,
    ExitPoint,
    FrontierPoint,
    Limit,
    Overlap,
    Promisable,
    ReferencePoint,
    Reliability,
    Saving,
    StageUsage,
    UnitCost,
)
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.report import ExampleImage, ReportContent, Reproduction, TimingRow

NAMES = ("small", "middle", "large")


def _candidate(names):
    topology = Topology.of(names, edges="chain")
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Constant(False))}
    return Candidate(policy=Policy(topology, nodes), method="threshold", reference=names[-1])


def _evaluation(candidate, split, cost_ratio, accuracy, *, intervals=False):
    return Evaluation(
        candidate=candidate,
        n=1234,
        split=split,
        stages=candidate.policy.topology.names,
        unit="flops",
        cost=cost_ratio * 2e6,
        reference_cost=2e6,
        cost_ratio=cost_ratio,
        accuracy=accuracy,
        reference_accuracy=0.9012,
        accuracy_drop=0.9012 - accuracy,
        negative_flips=0.0234,
        cost_ratio_ci=(0.357, 0.423) if intervals else None,
        accuracy_drop_ci=(-0.0123, 0.0045) if intervals else None,
        negative_flips_ci=(0.0111, 0.0389) if intervals else None,
        exit_share=(0.6171, 0.2212, 0.1617),
        visit_share=(1.0, 0.3829, 0.1617),
        useful_share=(0.301, 0.202, 0.253),
        overhead_share=(0.104, 0.109, 0.0),
        decision_share=0.031,
    )


def _references(names):
    points = [("static", f"{name} alone", 0.1 + 0.45 * k) for k, name in enumerate(names)]
    points += [("random", f"random, {k}", 0.2 + 0.3 * k) for k in range(4)]
    points += [("oracle", f"{kind} oracle", 0.3 + 0.1 * k) for k, kind in enumerate(("paper", "neutral", "free"))]  # fmt: skip  # noqa: E501
    return tuple(
        ReferencePoint(name=name, kind=kind, cost_ratio=cost, accuracy=0.8 + cost / 10,
                       accuracy_drop=0.1012 - cost / 10, negative_flips=0.0517)
        for kind, name, cost in points
    )  # fmt: skip


def _exit_results(names, candidate):
    """Uses, costs_by_unit, savings and exits of three stages, the second in two versions."""
    kinds = (("used", "61.7 % of the examples leave here"), ("idle", "would never fire: too bad"))
    return {
        "uses": tuple(
            StageUsage(stage=name, kind=kind, reason=f"{reason} ({k})",
                     numbers={"head_cost_ratio": 0.0123 + 0.01 * k})
            for k, (name, (kind, reason)) in enumerate(zip(names, (*kinds, kinds[0]), strict=True))
        ),
        "costs_by_unit": (
            UnitCost(unit="flops", note="counted", cost=0.782e6, reference_cost=2e6,
                 cost_ratio=0.391, cost_ratio_ci=(0.357, 0.423)),
            UnitCost(unit="seconds", note="batch size 64", cost=0.00137, reference_cost=0.0031,
                 cost_ratio=0.4419, cost_ratio_ci=(0.4123, 0.4711)),
        ),
        "savings": tuple(
            Saving(policy=policy, max_drop=loss, cascade=loss > 0,
                   found=_evaluation(candidate, "test", 0.9 - 7 * loss - shift, 0.89 - loss,
                                     intervals=True))
            for policy, shift in (("learned", 0.031), ("thresholds", 0.0))
            for loss in (0.0, 0.01, 0.05)
        ),
        "exits": tuple(
            ExitPoint(stage=name, group=name.split("/")[0],
                      cost_ratios=(0.21 + 0.37 * k, 0.23 + 0.36 * k), accuracy=0.717 + 0.06 * k,
                      combined=0.793 if k == 1 else None)
            for k, name in enumerate(names)
        ),
    }  # fmt: skip


def _reliability(names):
    return tuple(
        Reliability(stage=name, n=1234, counts=(617, 617), confidence=(0.61 + 0.02 * k, 0.97),
                    accuracy=(0.52 + 0.02 * k, 0.95), error=0.0543 + 0.01 * k)
        for k, name in enumerate(names)
    )  # fmt: skip


def _classes(names):
    return tuple(
        ClassRow(name=name, n=411 + k, recall=0.8877 + 0.01 * k, reference_recall=0.9099,
                 lost=0.0288 + 0.001 * k, early=0.7373 + 0.01 * k, cost_ratio=0.3456 + 0.01 * k)
        for k, name in enumerate(names)
    )  # fmt: skip


def _images(names, classes):
    rng = np.random.default_rng(0)
    best = tuple((name, p) for name, p in zip(classes, (0.713, 0.184, 0.071), strict=True))
    return tuple(
        ExampleImage(
            pixels=rng.integers(0, 256, size=(8, 8, 3) if k else (8, 8), dtype=np.uint8),
            label=classes[0],
            visits=tuple((name, best) for name in names[: k + 1]),
            exit_stage=names[k],
            correct=k != 1,
            answer=classes[1] if k == 1 else classes[0],
        )
        for k in range(len(names))
    )


@pytest.fixture
def make_content():
    """Content with three stages; names and classes as given."""

    def make(names=NAMES, classes=("cat", "dog", "ship"), title="A report", **changes):
        candidate = _candidate(names)
        fits = [_evaluation(candidate, "fit", c, 0.8 + 0.13 * c) for c in (0.2, 0.391, 0.8)]
        tests = [_evaluation(candidate, "test", c, 0.79 + 0.13 * c) for c in (0.2, 0.391, 0.8)]
        single = FrontierPoint(candidate=candidate, fit=fits[2])
        content = ReportContent(
            title=title,
            chosen=Choice(
                point=FrontierPoint(
                    candidate=candidate, fit=fits[1], calibrate=replace(fits[1], split="calibrate"),
                    judged_on_both=replace(fits[1], split="fit + calibrate"),
                ),
                alternative=single, limits=(Limit(risk="accuracy_drop", at_most=0.02),),
                sentence="Use the middle one & be glad.",
            ),
            test=_evaluation(candidate, "test", 0.391, 0.9038, intervals=True),
            frontier=tuple(FrontierPoint(candidate=candidate, fit=e, on_front=True) for e in fits),
            frontier_test=tuple(tests),
            promisable=tuple(
                Promisable(cost_ratio=0.25 + k / 10, accuracy_drop=0.02 - k / 200,
                           drop_bound=0.04 - k / 200) for k in range(3)
            ),
            threshold=tuple(replace(e, cost_ratio=e.cost_ratio + 0.05) for e in tests),
            references=_references(names),
            overlap=Overlap(stages=names, n=1234, subsets=(names, (), names[1:], names[:1]),
                            shares=(0.731, 0.142, 0.083, 0.044)),
            reliability=_reliability(names),
            classes=_classes(classes),
            gap_closed=1.07,
            timing=tuple(
                TimingRow(batch_size=size, static_s=static, adaptive_s=adaptive, speedup=speedup,
                          rounds=30 + size, backend="eager on a processor")
                for size, static, adaptive, speedup in (
                    (1, 0.0061, 0.0036, 1.69), (32, 0.0021, 0.0011, 1.91),
                    (256, 0.00141, 0.00058, 2.43)
                )
            ),
            stages=names,
            costs=(
                Costs(unit="flops", segment=(81.1e6, 137.7e6, 251e6), head=(640.0, 0.0, 0.0),
                      decision=(12.0, 12.0, 0.0), note="multiply-add counted as 2"),
                Costs.simple("usd", [0.0013, 0.0057, 0.0191]),
            ),
            images=_images(names, classes),
            warnings=("No certificate was asked for.",),
            notes=("The images are shifted.",),
            reproduction=Reproduction(
                commands=("offramp report --seed 41",), seed=41, versions={"torch": "2.13.0"},
                data_fingerprint="c0ffee" * 10, files={"trace.safetensors": "ab12" * 16},
                machine={"processor": "two cores of something"},
            ),
        )  # fmt: skip
        return replace(content, **changes)

    return make


@pytest.fixture
def make_exits(make_content):
    """Content of a network with exits, two of them at one point."""

    def make(names=("b1/linear", "b1/deep", "large"), **changes):
        content = make_content(names=names)
        more = _exit_results(names, content.chosen.candidate)
        return replace(content, **{**more, **changes})

    return make


@pytest.fixture
def refusal(make_content):
    """What a report gets when no candidate is worth it."""
    chosen = make_content().chosen
    alone = replace(chosen.candidate, method="single")
    fit = replace(chosen.alternative.fit, cost_ratio=0.7654)
    return Choice(
        point=FrontierPoint(candidate=alone, fit=fit),
        limits=(Limit(risk="accuracy_drop", at_most=0.005),),
        refused="no candidate stays within 0.5 points",
        alternative=chosen.point,
        sentence="No candidate stays within 0.5 points.",
    )
