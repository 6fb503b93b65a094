"""`offramp top`: what a server does, in a terminal.

Layer: cli.
"""

import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from offramp.serve.scrape import Scrape

_TIMEOUT = 5.0  # seconds that a server may take to answer
_MOST = 16 * 2**20  # bytes of its answer
_BAR = 12  # characters


def command(
    url: Annotated[
        str, typer.Argument(help="Of the server, such as http://127.0.0.1:8000.")
    ] = "http://127.0.0.1:8000",
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and end.")] = False,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable with the token of the server.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a server does: exits, queues, fill of batches, cost, alarms.

    In: the address of a server that `offramp serve` has started.

    Out: one panel for each model, again and again until Ctrl-C. The first shows everything since
    the server was started, the later ones what happened since the one before. With --json
    one object with all numbers, once.

    Example: offramp top http://127.0.0.1:8000
    """
    from rich.console import Console
    from rich.live import Live

    look = partial(_scrape, _metrics_at(url), None if token_env is None else _token(token_env))
    now = look()
    console = Console()
    if json:
        Output(as_json=True).result({"samples": now.told()})
        return
    if once:
        console.print(shown(now, None, 0.0))
        return
    first = shown(now, None, 0.0)
    with suppress(KeyboardInterrupt), Live(first, console=console, auto_refresh=False) as live:
        while True:
            before, since = now, time.monotonic()
            time.sleep(every)
            now = look()
            live.update(shown(now, before, time.monotonic() - since), refresh=True)


def shown(now: "Scrape", before: "Scrape | None", seconds: float) -> "RenderableType":
    """Everything as panels, one for each model.

    Args:
        now: The numbers.
        before: Those of the last time; None for all since the server was started.
        seconds: Since then.
    """
    from rich.console import Group
    from rich.panel import Panel

    counted = now.since(before)
    models = sorted(
        {*now.values("model", "offramp_alarm"), *now.values("model", "offramp_examples_total")}
    )
    if not models:
        return Panel("This server has answered nothing yet.", title="offramp")
    return Group(*(_panel(model, now, counted, seconds) for model in models))


def _panel(model: str, now: "Scrape", counted: "Scrape", seconds: float) -> "RenderableType":
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    alarms = [k for k in now.values("kind", "offramp_alarm", model=model) if _on(now, model, k)]
    lines: list[Any] = [Text(_summary(model, now, counted, seconds))]
    lines.append(_stages(model, now, counted))
    promises = _promises(model, now)
    if promises:
        lines.append(Text(promises, style="dim"))
    if alarms:
        lines.append(Text(f"ALARM: {', '.join(alarms)}", style="bold red"))
    style = "red" if alarms else "green"
    return Panel(Group(*lines), title=Text(model), title_align="left", border_style=style)


def _on(now: "Scrape", model: str, kind: str) -> bool:
    return now.total("offramp_alarm", model=model, kind=kind) > 0


def _summary(model: str, now: "Scrape", counted: "Scrape", seconds: float) -> str:
    name = "offramp_request_duration_seconds"
    requests = counted.total(f"{name}_count", model=model)
    examples = counted.total("offramp_examples_total", model=model)
    rate = f"{examples / seconds:.0f} examples/s" if seconds else f"{examples:.0f} examples"
    half, most = (counted.quantile(name, share, model=model) for share in (0.5, 0.99))
    gear = [
        g
        for g in now.values("gear", "offramp_gear", model=model)
        if now.total("offramp_gear", model=model, gear=g) > 0
    ]
    spent = counted.total("offramp_cost_total", model=model)
    instead = counted.total("offramp_reference_cost_total", model=model)
    parts = [f"gear {gear[0]}"] if gear else []
    parts += [rate, f"{requests:.0f} requests"]
    parts += [f"p50 <= {_time(half)}, p99 <= {_time(most)}"] if requests else []
    parts += [f"cost {100 * spent / instead:.0f} % of the reference's"] if instead > 0 else []
    refused = counted.total("offramp_refused_total", model=model)
    parts += [f"{refused:.0f} refused"] if refused else []
    return " | ".join(parts)


def _stages(model: str, now: "Scrape", counted: "Scrape") -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for title in ("left here", "", "waiting", "batch", "fill", "time"):
        table.add_column(title, justify="left" if not title else "right")
    examples = counted.total("offramp_examples_total", model=model)
    names = now.values("stage", "offramp_queue_examples", model=model)
    names += now.values("stage", "offramp_stage_batch_size_count", model=model)
    names += now.values("stage", "offramp_examples_total", model=model)
    for stage in dict.fromkeys(names):
        of = {"model": model, "stage": stage}
        left = counted.total("offramp_examples_total", **of) / examples if examples else 0.0
        batches = counted.total("offramp_stage_batch_size_count", **of)
        size = counted.total("offramp_stage_batch_size_sum", **of)
        fill = counted.total("offramp_stage_batch_fill_ratio_sum", **of)
        took = counted.total("offramp_stage_duration_seconds_sum", **of)
        table.add_row(
            stage,
            f"{100 * left:.1f} %",
            "#" * round(_BAR * left),
            f"{now.total('offramp_queue_examples', **of):.0f}",
            *(
                (f"{size / batches:.1f}", f"{100 * fill / batches:.0f} %", _time(took / batches))
                if batches
                else ("-", "-", "-")
            ),
        )
    return table


def _promises(model: str, now: "Scrape") -> str:
    """What the bets against each promise hold, over what would be an alarm."""
    found = []
    for gear in now.values("gear", "offramp_audit_capital", model=model):
        for risk in now.values("risk", "offramp_audit_capital", model=model, gear=gear):
            of = {"model": model, "gear": gear, "risk": risk}
            most = now.total("offramp_audit_capital_alarm", **of)
            held = now.total("offramp_audit_capital", **of)
            found.append(f"{gear}, {risk}: {held:.2f} of {most:.0f}")
    audits = now.total("offramp_audits_total", model=model)
    return f"{audits:.0f} audits; capital against {'; '.join(found)}" if found else ""


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _metrics_at(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            f"url must be that of a server, such as http://127.0.0.1:8000, got {url!r}."
        )
    path = parts.path.rstrip("/").removesuffix("/metrics")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, f"{path}/metrics", "", ""))


def _token(variable: str) -> str:
    from offramp.serve.settings import token_from

    return token_from(variable, os.environ)


def _scrape(url: str, token: str | None) -> "Scrape":
    from offramp.serve.scrape import Scrape

    try:
        request = urllib.request.Request(url)
        if token is not None:  # which goes to no other server that this one may send on to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            text = answer.read(_MOST).decode("utf-8", "replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise InputError(
            f"url must be that of a server that runs, but {url} cannot be read: {why}. Start one "
            "with offramp serve."
        ) from error
    return Scrape.of(text)
