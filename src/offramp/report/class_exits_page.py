"""The page about designed class exits: the paper's tables and figures, honest columns beside.

It is drawn from what `offramp class-exits` wrote, a mapping of JSON values.

Layer: report.  Source: Bonato and Bouganis, class-specific early exit, tables 2 to 5 and figures 4
to 6.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp._core.formatting import unit_name
from offramp.drawing.class_exits import Axis, GainBar, LayerTime, gain_figure, layer_figure
from offramp.report.charts import Chart, make_chart
from offramp.report.content import Reproduction
from offramp.report.writer import fill_template, write_record_page

_SPLITS = {"fit": "validation", "calibrate": "confirmation", "test": "test"}


def write_class_exits_report(
    path: Path,
    design: Mapping[str, Any],
    *,
    title: str,
    reproduction: Reproduction | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one page about designed exits; it fetches nothing and runs no script.

    Args:
        path: Where to write; ends in ".html".
        design: What `offramp class-exits` wrote: the content of `class_exits.json`.
        title: Of the page.
        reproduction: How to get the same numbers again.
        overwrite: Whether files that are there already may be replaced.

    Returns:
        The path of the page.

    Raises:
        InputError: If the path does not end in ".html", or exists and may not be replaced.
        FileFormatError: If the mapping is no design.
    """
    return write_record_page(
        path,
        design,
        kind="class-exits",
        command="class-exits",
        page=lambda: _render(design, title, reproduction or Reproduction()),
        overwrite=overwrite,
    )


def _render(design: Mapping[str, Any], title: str, reproduction: Reproduction) -> str:
    shown = list(design["examples"])[-1]
    viable = [one for one in design["classes"] if one["outcome"] == "exit"]
    return fill_template(
        "class_exits.html",
        title=title,
        design=design,
        shown=shown,
        viable=viable,
        refused=[one for one in design["classes"] if one["outcome"] != "exit"],
        means=_means(design, shown),
        splits=_SPLITS,
        unit_words={t["unit"]: unit_name(t["unit"]) for t in design["tables"]},
        charts=[(table, _charts(table)) for table in design["tables"]],
        reproduction=reproduction,
    )


def _means(design: Mapping[str, Any], split: str) -> list[tuple[str, float | None, float | None]]:
    """Table 5: mean gain over the classes, by the formula and as it is; without an exit it is 1."""
    chosen = [_gains(one, split) for one in design["classes"]]
    first = design["tables"][0]
    paper = [_gains(row, "test" if split == "test" else "fit") for row in first["table3"]]
    found: list[tuple[str, float | None, float | None]] = [
        ("the exits of this page, one class at a time", *_mean_of(chosen)),
        ("rules of the paper (table 3), one class at a time", *_mean_of(paper)),
    ]
    everyone = design["everyone"]
    if everyone is not None and everyone["outcome"] == "exit":
        found.append(("one exit of all classes", None, _gain_of_all(everyone["rows"][split])))
    return found


def _gains(one: Mapping[str, Any], split: str) -> tuple[float | None, float]:
    """Gain by the formula and as it is."""
    if "rows" not in one:
        return 1.0, 1.0
    row = one["rows"][split]
    return row["paper"] and row["paper"]["gain"], row["gains"][one["class"]]


def _mean_of(pairs: Sequence[tuple[float | None, float]]) -> tuple[float | None, float]:
    formula = [gain for gain, _ in pairs if gain is not None]
    mean = statistics.fmean(formula) if len(formula) == len(pairs) else None
    return mean, statistics.fmean(true for _, true in pairs)


def _gain_of_all(row: Mapping[str, Any]) -> float:
    system = row["system"]
    pairs = zip(system["times"], system["sizes"], strict=True)
    spent = sum(time * size for time, size in pairs if size)
    return float(system["time_baseline"] * system["n"] / spent)


def _charts(table: Mapping[str, Any]) -> list[tuple[str, str, Chart]]:
    """Figures 4 or 5, and 6, for each split: split, what, chart."""
    if not table["layers"]:
        return []
    found = []
    for split in table["layers"][0]["splits"]:
        times = [_time(row, table["points"], split) for row in table["layers"]]
        best = _bars(table["best"], split)
        name = f"{table['unit']}-{split}"
        found += [
            (split, "layers", _layers(times, "layer", name)),
            (split, "others", _layers(times, "others", name)),
            (split, "best", _best(best, name)),
        ]
    return found


def _layers(times: Sequence[LayerTime], against: Axis, name: str) -> Chart:
    title = {"layer": "Time at each layer", "others": "Time of the class and of the others"}
    return make_chart(
        f"{against}-{name}",
        title[against],
        _words(times),
        lambda narrow: layer_figure(times, against=against, narrow=narrow),
    )


def _best(bars: Sequence[GainBar], name: str) -> Chart:
    return make_chart(
        f"best-{name}",
        "The three best exits of each class",
        _bar_words(bars),
        lambda narrow: gain_figure(bars, narrow=narrow),
    )


def _time(row: Mapping[str, Any], points: Sequence[str], split: str) -> LayerTime:
    return LayerTime(
        of=row["class"],
        layer=points.index(row["point"]) + 1,
        keep_previous=row["keep_previous"],
        **row["splits"][split],
    )


def _bars(rows: Sequence[Mapping[str, Any]], split: str) -> list[GainBar]:
    found = []
    before = ""
    for row in rows:
        figures = row["splits"][split]
        found.append(
            GainBar(
                name=f"{row['class']} {row['point']}",
                first=row["class"] != before,
                gain=1 / figures["time"] if figures["time"] > 0 else None,
                gain_true=1 / figures["time_true"],
                loss=figures["others_true"],
            )
        )
        before = row["class"]
    return found


def _words(times: Sequence[LayerTime]) -> str:
    best: dict[str, LayerTime] = {}
    for one in times:
        if one.of not in best or one.time_true < best[one.of].time_true:
            best[one.of] = one
    return " ".join(
        f"{name}: at best {one.time_true:.2f} of the network's time, at layer {one.layer}."
        for name, one in best.items()
    )


def _bar_words(bars: Sequence[GainBar]) -> str:
    return " ".join(f"{bar.name}: {bar.gain_true:.2f} times faster." for bar in bars if bar.first)
