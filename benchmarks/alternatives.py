"""What others take instead of a cascade, on the same recorded answers; only routers are trained.

    python benchmarks/alternatives.py --data DIR --peers networks mapie routers

`networks`: a smaller network alone. The four pretrained CIFAR-10 ResNets on images after lossy
JPEG, divisions as in selection_cifar10.py. For each network the cheapest learned cascade that is no
worse than it, chosen on fit and calibrate: its cost over the network's own (`equal_cost_<network>`)
and its accuracy minus the network's (`equal_difference_<network>`), on test, mean of the divisions.

`mapie` (`pip install mapie`): its controller of a binary decision may certify the threshold of a
cascade. The decision is whether an image leaves ResNet-20 or goes on to ResNet-56, the risk that an
answer becomes wrong that ResNet-56 has right (negative flips); 100 thresholds, the quantiles of
confidences in fit. Ours chooses among the same thresholds, and (`_all`) among all its candidates.

- `flips_cost_<who>`: cost on test over ResNet-56's of what is certified on calibrate (at most
  `max_drop` at `delta`; ResNet-56 alone where nothing is); `flips_<who>`: the negative flips of it;
  `flips_certified_<who>`, `flips_broken_<who>`: shares of the divisions in which something was
  certified, and in which the risk on test exceeds the limit. Test is a sample too, so this says
  more than the promise is wrong by. Who: `mapie_holm`, its default, `mapie_sequence`, its fixed
  sequence from the safest threshold on, `ours`, `ours_all`. `drop_cost_ours_all`: the same for the
  accuracy lost, which is a difference and no binary risk.
- `coverage_<what>`, `set_size_<what>`, `single_share_<what>`: its conformal sets at 95 %, made on
  calibrate: of ResNet-56, and of the answers of the cascade that was certified for the accuracy
  lost, by what the network says that answered (calibrated on the same part: slightly optimistic).

`routers` (scikit-learn, and what languages.py needs): who answers is chosen from the text alone,
before anybody answers, as RouteLLM and semantic routers do; RouteLLM's own routers want weights or
embeddings from the web, so the same is built here. Detectors of languages.py, texts of all lengths;
the strong one is Lingua, the weak one whichever leads to the cheapest choice on calibrate.

- `router_cost_<who>`, `router_difference_<who>`: on test, mean of the divisions: cost over Lingua's
  and accuracy minus Lingua's, for the cheapest that loses nothing as measured on calibrate. Who:
  `logistic` (letter n-grams, the chance that the weak one is right), `nearest` (the share of the 20
  nearest texts of fit that the weak one has right), `cascade`, `coin` (so many at random).
- `router_own_cost_<who>`: what the router itself takes, over Lingua's cost; left out of the above,
  since beside a language model it is nothing.
- `router_best_<who>`: accuracy minus Lingua's of the most accurate within half of Lingua's cost.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import languages
import numpy as np
import torch
from harness import parser, report, scaled
from selection_cifar10 import NETWORKS, REFERENCE, SPLITS
from selection_cifar10 import load as load_networks

import offramp
from offramp.evaluation import evaluate, replay
from offramp.policy import Candidate
from offramp.trace import Trace

MAX_DROP, DELTA, COVERAGE = 0.01, 0.1, 0.95
THRESHOLDS, NEIGHBORS, HALF = 100, 20, 0.5
NEEDS = {"networks": (), "mapie": ("mapie",), "routers": ("sklearn", "lingua", "pycld2")}
Numbers = dict[str, float]


# ---- a smaller network


def networks(trace: Trace) -> Numbers:
    """Each network, and the cheapest cascade that is no worse."""
    found: Numbers = {}
    for name in NETWORKS:
        frontier = offramp.fit(trace, "learned", reference=name, progress=False)
        choice = frontier.cheapest(max_drop=0.0, delta=None)
        reached = evaluate(trace.subset("test"), choice.candidate, bootstrap=0)
        found |= {
            f"equal_cost_{name}": reached.cost_ratio,
            f"equal_difference_{name}": -reached.accuracy_drop,
        }
    return found


# ---- MAPIE


def mapie(trace: Trace) -> Numbers:
    """Certificates of one threshold, and conformal sets."""
    small, large = trace.stages.index("resnet20"), trace.stages.index(REFERENCE)
    parts = {name: trace.subset(name) for name in ("fit", "calibrate", "test")}
    sure = {k: p.logits[:, small].softmax(1).max(1).values.numpy() for k, p in parts.items()}
    flips = {k: p.wrong(small) & ~p.wrong(large) for k, p in parts.items()}
    cost = trace.stage_costs()
    thresholds = np.unique(np.quantile(sure["fit"], np.linspace(0, 1, THRESHOLDS)))

    def of(threshold: float | None) -> tuple[float, float]:
        """Cost over the reference's, and negative flips, on test."""
        leaves = sure["test"] >= (np.inf if threshold is None else threshold)
        paid = cost[small] + cost[large] * (1 - leaves.mean())
        ratio = 1.0 if threshold is None else float(paid / cost[large])
        return ratio, float((leaves & flips["test"]).mean())

    found: Numbers = {}
    for who, method in (("holm", "bonferroni_holm"), ("sequence", "fixed_sequence")):
        threshold = _controlled(sure["calibrate"], flips["calibrate"], thresholds, method)
        found |= _outcome(f"mapie_{who}", *of(threshold), certified=threshold is not None)

    chain = trace.topology.chain([small, large])
    plain = {"topologies": [chain], "combines": ["last"], "confidences": ["max_prob"]}
    few = offramp.fit(
        trace, "threshold", reference=REFERENCE, progress=False, grid=THRESHOLDS, **plain
    )
    every = offramp.fit(trace, ["learned", "threshold"], reference=REFERENCE, progress=False)
    for who, frontier in (("ours", few), ("ours_all", every)):
        choice = frontier.cheapest(max_drop=MAX_DROP, risk="negative_flips", delta=DELTA)
        reached = evaluate(parts["test"], choice.candidate, bootstrap=0)
        told = (reached.cost_ratio, reached.negative_flips)
        found |= _outcome(who, *told, certified=choice.guarantee is not None)
    promised = every.cheapest(max_drop=MAX_DROP, delta=DELTA).candidate
    found["drop_cost_ours_all"] = evaluate(parts["test"], promised, bootstrap=0).cost_ratio
    for what, candidate in (("resnet56", every.singles[large].candidate), ("cascade", promised)):
        found |= _sets(parts, candidate, what)
    return found


def _controlled(
    sure: np.ndarray, flips: np.ndarray, thresholds: np.ndarray, method: str
) -> float | None:
    """The lowest threshold that MAPIE certifies; None where there is none."""
    from mapie.risk_control import BinaryClassificationController, BinaryRisk

    every = lambda truth, decided: np.ones(len(truth), dtype=bool)  # noqa: E731
    lost = BinaryRisk(lambda flip, leaves: (flip == 1) & (leaves == 1), every, False)
    leaving = BinaryRisk(lambda flip, leaves: leaves == 1, every, True)
    controller = BinaryClassificationController(
        lambda x: np.stack([1 - x[:, 0], x[:, 0]], axis=1),
        risk=lost,
        target_level=MAX_DROP,
        confidence_level=1 - DELTA,
        best_predict_param_choice=leaving,
        list_predict_params=thresholds[::-1],  # from the safest on
        fwer_method=method,
    )
    controller.calibrate(sure[:, None], flips.astype(int))
    best = controller.best_predict_param
    return None if best is None else float(best)


def _outcome(who: str, cost: float, flips: float, *, certified: bool) -> Numbers:
    return {
        f"flips_cost_{who}": cost,
        f"flips_{who}": flips,
        f"flips_certified_{who}": float(certified),
        f"flips_broken_{who}": float(certified and flips > MAX_DROP),
    }


def _sets(parts: dict[str, Trace], candidate: Candidate, what: str) -> Numbers:
    """Conformal sets of a candidate's answers."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Recorded(ClassifierMixin, BaseEstimator):
        """A classifier whose inputs are its probabilities."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> "Recorded":
            self.classes_ = np.arange(x.shape[1])
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(axis=1)

    shares = {name: _probabilities(part, candidate) for name, part in parts.items()}
    labels = {name: part.labels.numpy() for name, part in parts.items()}
    model = Recorded().fit(shares["fit"], labels["fit"])
    conformal = SplitConformalClassifier(model, confidence_level=COVERAGE, prefit=True)
    conformal.conformalize(shares["calibrate"], labels["calibrate"])
    _, sets = conformal.predict_set(shares["test"])  # (n, classes, 1)
    held = np.asarray(sets)[..., 0]
    size = held.sum(axis=1)
    return {
        f"coverage_{what}": float(held[np.arange(len(held)), labels["test"]].mean()),
        f"set_size_{what}": float(size.mean()),
        f"single_share_{what}": float((size == 1).mean()),
    }


def _probabilities(part: Trace, candidate: Candidate) -> np.ndarray:
    """What a candidate's answers give to every class, by replay, `(n, c)`."""
    done = replay(part, candidate.policy)
    logits = part.logits.double()
    at = torch.as_tensor(np.asarray(done.last), dtype=torch.long)
    found: np.ndarray = logits[torch.arange(len(part)), at].softmax(dim=1).numpy()
    return found / found.sum(axis=1, keepdims=True)


# ---- routers


def recorded(folder: Path, most: int | None) -> Trace:
    """The detectors' answers to texts of all lengths."""
    sets = languages.texts_of(folder)
    codes = {language for examples in sets.values() for language, _ in examples}
    languages.CODES = tuple(sorted(codes))
    if most is not None:
        sets = {name: languages.some(examples, most) for name, examples in sets.items()}
    cascade = languages.cascade_of()
    return languages.together([languages.recorded(cascade, each) for each in sets.values()])


def routers(trace: Trace, division: int) -> Numbers:
    """Routers and a cascade on one division."""
    divided = languages.divided(trace, division)
    parts = {name: divided.subset(name) for name in ("fit", "calibrate", "test")}
    strong = trace.stages.index(languages.REFERENCE)
    cost = trace.stage_costs()
    right = {
        name: np.stack([~part.wrong(k) for k in range(len(cost))], axis=1)
        for name, part in parts.items()
    }
    found: Numbers = {}
    for who, scored in (("logistic", _logistic), ("nearest", _nearest), ("coin", _coin)):
        scores, seconds = scored(parts, right["fit"], division)  # part -> (n, stages)
        where = [
            _routed(scores, right, cost, weak, strong)
            for weak in range(len(cost))
            if weak != strong
        ]
        spent, _, gained = min(where, key=lambda each: each[0][0])
        best = max(where, key=lambda each: each[1][0])[1][1]
        found |= {
            f"router_cost_{who}": spent[1],
            f"router_difference_{who}": gained,
            f"router_own_cost_{who}": seconds / cost[strong],
            f"router_best_{who}": best,
        }
    frontier = offramp.fit(
        divided, "learned", reference=languages.REFERENCE, combines=["last"], progress=False
    )
    test = parts["test"]
    equal, half = (
        evaluate(test, choice.candidate, bootstrap=0)
        for choice in (
            frontier.cheapest(max_drop=0.0, delta=None),
            frontier.best(max_cost=HALF),
        )
    )
    return found | {
        "router_cost_cascade": equal.cost_ratio,
        "router_difference_cascade": -equal.accuracy_drop,
        "router_best_cascade": -half.accuracy_drop,
    }


def _routed(
    scores: dict[str, np.ndarray],
    right: dict[str, np.ndarray],
    cost: np.ndarray,
    weak: int,
    strong: int,
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """One weak detector: thresholds are chosen on calibrate.

    Returns:
        Cost over the strong one's, on calibrate and on test, of the cheapest that loses nothing on
        calibrate; accuracy over the strong one's, on both, of the best within `HALF`; and that of
        the cheapest on test.
    """

    def of(part: str, threshold: float) -> tuple[float, float]:
        easy = scores[part][:, weak] >= threshold
        answered = np.where(easy, right[part][:, weak], right[part][:, strong])
        paid = np.where(easy, cost[weak], cost[strong]).mean() / cost[strong]
        return float(paid), float(answered.mean() - right[part][:, strong].mean())

    tried = np.unique(np.quantile(scores["calibrate"][:, weak], np.linspace(0, 1, 400)))
    tried = np.append(tried, np.inf)
    reached = [of("calibrate", threshold) for threshold in tried]
    equal = min((paid, t) for (paid, gained), t in zip(reached, tried, strict=True) if gained >= 0)
    half = [(gained, t) for (paid, gained), t in zip(reached, tried, strict=True) if paid <= HALF]
    best = max(half, default=(-np.inf, -np.inf))
    spent, gained = of("test", equal[1])
    return (equal[0], spent), (float(best[0]), of("test", best[1])[1]), gained


Parts = dict[str, Trace]
Scored = tuple[dict[str, np.ndarray], float]


def _texts(part: Trace) -> list[str]:
    texts: list[str] = part.ids.tolist()
    return texts


def _timed(parts: Parts, score: Callable[[list[str]], np.ndarray]) -> Scored:
    """Scores of calibrate and test, and CPU seconds for each text of test."""
    found = {"calibrate": score(_texts(parts["calibrate"]))}
    start = time.process_time()
    found["test"] = score(_texts(parts["test"]))
    return found, (time.process_time() - start) / len(parts["test"])


def _logistic(parts: Parts, right: np.ndarray, seed: int) -> Scored:
    """The chance that each detector is right, from letters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), min_df=2)
    x = letters.fit_transform(_texts(parts["fit"]))
    models = [
        SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed).fit(x, column)
        for column in right.T
    ]

    def score(texts: list[str]) -> np.ndarray:
        rows = letters.transform(texts)
        return np.stack([model.decision_function(rows) for model in models], axis=1)

    return _timed(parts, score)


def _nearest(parts: Parts, right: np.ndarray, seed: int) -> Scored:
    """How many of the nearest texts of fit each detector has right."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import KNeighborsRegressor

    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), min_df=2)
    x = letters.fit_transform(_texts(parts["fit"]))
    model = KNeighborsRegressor(min(NEIGHBORS, len(right)), metric="cosine").fit(x, right * 1.0)

    def score(texts: list[str]) -> np.ndarray:
        found: np.ndarray = model.predict(letters.transform(texts))
        return found

    return _timed(parts, score)


def _coin(parts: Parts, right: np.ndarray, seed: int) -> Scored:
    """Nothing is known of a text."""
    drawn = np.random.default_rng(seed)
    return _timed(parts, lambda texts: drawn.random((len(texts), right.shape[1])))


# ---- all


def mean_of(each: Sequence[Numbers]) -> Numbers:
    """Means over the divisions."""
    return {key: statistics.fmean(found[key] for found in each) for key in each[0]}


def main() -> None:
    """What is asked for, division after division."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="holds cifar10 and languages")
    options.add_argument("--peers", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    options.add_argument("--seeds", type=int, default=8, help="divisions of the images")
    options.add_argument("--divisions", type=int, default=3, help="of the texts")
    options.add_argument("--tiny", action="store_true", help="one division of a few examples")
    arguments = options.parse_args()
    if arguments.tiny:
        arguments.seeds = arguments.divisions = 1
    for peer in arguments.peers:
        if missing := [name for name in NEEDS[peer] if find_spec(name) is None]:
            options.error(f"--peers {peer} needs packages that are not installed: {missing}")
    result: dict[str, Any] = {"seeds": arguments.seeds, "max_drop": MAX_DROP, "delta": DELTA}
    images = {"networks": networks, "mapie": mapie}
    if set(images) & set(arguments.peers):
        splits = scaled(SPLITS, 450 if arguments.tiny else sum(SPLITS.values()))
        trace = load_networks(arguments.data / "cifar10").take(torch.arange(sum(splits.values())))
    for peer in arguments.peers:
        if peer in images:
            each = (trace.split_into(splits, seed=seed) for seed in range(arguments.seeds))
            result |= mean_of([images[peer](divided) for divided in each])
        else:
            texts = recorded(arguments.data / "languages", 200 if arguments.tiny else None)
            result |= {"divisions": arguments.divisions, "texts": len(texts)}
            result |= mean_of([routers(texts, k) for k in range(arguments.divisions)])
    report(arguments, result)


if __name__ == "__main__":
    main()
