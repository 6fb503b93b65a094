"""`offramp init`: a first configuration, by asking or by options.

Layer: cli.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.output import Output, wrapped
from offramp.project.init import CASES, Wish, untrained, write_config
from offramp.project.init_stages import USUAL, fitting, is_classifier

_FILE = Path("run.toml")
#: What is asked for models, and the usual answer, {0} what makes it fit the data.
_MODELS = {
    "networks": ("Networks, the cheapest first, with commas", "small_cnn width=4{0}, small_cnn{0}"),
    "exits": ("The network", "small_cnn{0}"),
    "services": ("Models there, the cheapest first, with commas", ""),
    "class-exits": ("The network", "small_cnn{0}"),
}


def command(
    file: Annotated[Path, typer.Argument(help="The configuration; it must be new.")] = _FILE,
    case: Annotated[
        str | None, typer.Option(metavar="|".join(CASES), help="What you have.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Kind of the data: digits, cifar10, folder, npz, texts, table ..."),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Where they lie; of answers the npz file.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A network, such as resnet20 or 'small_cnn width=4'; a classifier of "
            "scikit-learn, such as 'sklearn.svm:SVC C=2', own.skops, or with + a pipeline; or a "
            "service's model. The cheapest first, given again for each."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Of a table, the column of the labels; by default label.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Of a table, a column of ids, which is no feature.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Of a table, the features, with commas; by default all other columns."),
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Weights of a network, in the order of --model.")
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="Of recorded answers, by array: local=0,paid=0.001; cheapest first."),
    ] = None,
    unit: Annotated[str, typer.Option(help="Of these costs.")] = "usd",
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a service, in dollars for a million tokens: input,output; in the order of "
            "--model."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of the services.")] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with their key; empty for none.")
    ] = "OPENAI_API_KEY",
    classes: Annotated[
        str | None, typer.Option(help="Classes that are to be answered sooner, with commas.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Accuracy that you can bear to lose: 0.02 is two points.")
    ] = 0.02,
    ask: Annotated[
        bool | None,
        typer.Option("--ask/--no-ask", help="Ask for what is not given; by default at a terminal."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a first configuration, with comments, for what you have.

    In: answers to a few questions, or options in their place.

    Out: a run.toml that every command reads, and the commands that follow. Nothing is overwritten.

    Example: offramp init run.toml --data table --path my.csv --label kind
    """
    from offramp._core.checks import check_choice

    output = Output(as_json=json)
    asks = _Asks(sys.stdin.isatty() if ask is None else ask)
    case = asks.one(case, f"What do you have ({', '.join(CASES)})", "networks")
    check_choice("--case", case, CASES)
    priced = case == "services"
    if case == "answers":
        path = asks.file(path, "The npz file of the answers")
        cost = asks.one(cost, "What an answer costs, by array (local=0,paid=0.001)", "") or None
    else:
        data = asks.one(data, "Kind of the data", "texts" if priced else "digits")
        if data != "digits":
            path = asks.file(path, "Where they lie")
        if data == "table":
            label = asks.one(label, "Column of the labels", "label")
        if case != "networks" or data not in USUAL:
            question, usual = _MODELS[case]
            model = model or asks.several(question, usual.format(fitting(data, path)))
    if case == "class-exits":
        classes = asks.one(classes, "Classes to be answered sooner (empty for all)", "")
    if priced:
        url = asks.one(url, "Address", "")
        price = (
            price
            or [asks.one(None, f"Prices of {name} (input,output)", "") for name in model or ()]
            * asks.on
        )
    elif case != "answers" and not weights and not any(map(is_classifier, model or ())):
        found = [asks.file(None, f"Weights of {name} (empty for none)") for name in model or ()]
        weights = [each for each in found if each is not None]
    wish = Wish(
        case=case,
        data=data or "",
        path=path,
        models=tuple(model or ()),
        weights=tuple(weights or ()),
        costs=None if cost is None else options.by_stage("--cost", cost, float, "costs: a=0,b=1"),
        unit=unit,
        prices=tuple(map(_price, price or ())),
        url=url or "",
        key_env=key_env,
        classes=tuple(options.names(classes) or ()),
        max_drop=max_drop,
        label=label or "label",
        id=id,
        columns=tuple(options.names(columns) or ()),
    )
    following = write_config(file, wish)
    output.line(f"Written: {file}. Change in it what you like; then:")
    for line in following:
        output.line(f"  {line}")
    said = untrained(wish)
    for line in wrapped(said or ""):
        output.line(line)
    output.result({"file": str(file), "case": case, "next": list(following), "untrained": said})


@final
@dataclass(frozen=True)
class _Asks:
    """Questions on standard error, where anybody is there to answer."""

    on: bool

    def one(self, given: str | None, question: str, usual: str) -> str:
        """What was given, or an answer, or the usual one where nobody is to be asked."""
        if given is not None or not self.on:
            return usual if given is None else given
        shown = bool(usual)
        try:
            return str(typer.prompt(question, default=usual, show_default=shown, err=True))
        except typer.Abort as end:
            raise KeyboardInterrupt from end

    def several(self, question: str, usual: str) -> list[str]:
        """An answer of several parts."""
        return [name for name in options.names(self.one(None, question, usual)) or () if name]

    def file(self, given: Path | None, question: str) -> Path | None:
        """A path, or None where nobody names one."""
        found = self.one(None if given is None else str(given), question, "")
        return Path(found) if found else None


def _price(text: str) -> tuple[float, float]:
    try:
        before, after = map(float, text.split(","))
    except ValueError:
        raise InputError(
            "--price must be two numbers, dollars for a million tokens of input and output, such "
            f"as 0.15,0.6; got {text!r}."
        ) from None
    return before, after
