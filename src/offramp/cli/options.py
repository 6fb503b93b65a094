"""Options that several commands share.

Layer: cli.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from offramp._core.errors import InputError
from offramp.project.config.sections import FitSection

T = TypeVar("T")

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text for people.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration in TOML; options given here go first."),
]
Unlabeled = Annotated[
    bool,
    typer.Option("--unlabeled", help=FitSection.model_fields["unlabeled"].description),
]
Device = Annotated[str, typer.Option(help="Where networks run: cpu, cuda, cuda:1 ...")]
Backend = Annotated[
    str | None,
    typer.Option(
        help="What runs the networks: folded, compile, onnxruntime, openvino, or auto, the "
        "fastest that `offramp tune` measured. By default PyTorch."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of every runtime; by default all cores.")
]
Fold = Annotated[
    bool,
    typer.Option("--fold/--no-fold", help="Fold batch-norms: faster, equal only to rounding."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what offramp wrote there before; anything else that is there is refused.",
    ),
]
Array = Annotated[str, typer.Option(help="Name of the inputs in npz files.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples that run at a time.")]
AllowNetwork = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-network",
        help="A host that a bundle with services may send inputs to; may be repeated.",
    ),
]
AllowTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-types",
        help="A type that classifiers of scikit-learn in the bundle may be made of, beside those "
        "that skops trusts; may be repeated. Only for bundles that you trust.",
    ),
]
AllowImport = Annotated[
    bool,
    typer.Option(
        "--allow-import",
        help="Let the bundle name Python code to import. Only for bundles that you trust.",
    ),
]


class Once(TyperCommand):
    """A command whose options are given once: of two values the parser would keep the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  (private types)
        """Read the arguments; an option that says two things is refused."""
        order = self.make_parser(ctx).parse_args(args=list(args))[2]
        for given in {id(one): one for one in order}.values():
            flag = getattr(given, "is_flag", False) and not given.secondary_opts
            repeated = given.param_type_name == "option" and not (given.multiple or flag)
            if repeated and (times := order.count(given)) > 1:
                raise InputError(
                    f"{given.opts[0]} must be given once, got it {times} times. Leave one out; an "
                    "option of several values takes them with commas."
                )
        return super().parse_args(ctx, args)


def set_threads(threads: int | None) -> None:
    """Let torch, and what takes its number from there, use so many threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def whole_numbers(option: str, text: str) -> list[int]:
    """Read whole numbers that are separated by commas.

    Raises:
        InputError: If something else stands there, or a number below 1.

    >>> whole_numbers("--batch-sizes", "1, 256")
    [1, 256]
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(
            f"{option} must be whole numbers of at least 1, separated by commas, such as 1,256; "
            f"got {text!r}."
        )
    return numbers


def by_stage(option: str, text: str, read: Callable[[str], T], what: str) -> dict[str, T]:
    """Read what is said of each of some stages: name=value, separated by commas.

    Args:
        option: Its name, for the message.
        text: What was given.
        read: Makes a value of a text; raises `ValueError` where it is none.
        what: Values in words, with an example.

    Raises:
        InputError: If something else stands there.

    >>> by_stage("--seconds", "small=0.1, large=2", float, "seconds, such as small=0.1,large=2")
    {'small': 0.1, 'large': 2.0}
    """
    found = {}
    for part in text.split(","):
        name, sign, value = part.strip().rpartition("=")
        try:
            found[name] = read(value if sign else "")
        except ValueError:
            raise InputError(
                f"{option} must be names of stages with {what}; got {text!r}."
            ) from None
    return found


def names(text: str | None) -> list[str] | None:
    """Read names that are separated by commas; None stays None.

    >>> names("last,mean")
    ['last', 'mean']
    """
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
