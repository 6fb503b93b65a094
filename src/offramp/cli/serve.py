"""`offramp serve`: bundles behind HTTP.

Layer: cli.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from offramp._core.errors import InputError
from offramp._core.optional import imported
from offramp.cli import options
from offramp.cli.output import Output, note


def command(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles to serve, by the names of their folders.")
    ],
    host: Annotated[
        str, typer.Option(help="Where to listen; by default only this machine can ask.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="There; 0 takes any that is free.")
    ] = 8000,
    backend: options.Backend = None,
    threads: options.Threads = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that answer at this port. Each has its own weights, queue and batches, "
            "and its share of the threads.",
        ),
    ] = 1,
    hang_seconds: Annotated[
        float,
        typer.Option(
            help="After which a worker is started anew that answers nothing, or whose stage has "
            "not come to the end of a batch."
        ),
    ] = 60.0,
    load_seconds: Annotated[
        float,
        typer.Option(
            help="After which a worker is started anew that has not come to the end of loading; "
            "after three times the server ends."
        ),
    ] = 600.0,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Examples that may wait, of each model in each worker; others get 429."
        ),
    ] = 4096,
    max_rows: Annotated[int, typer.Option(min=1, help="Examples of one request.")] = 1024,
    deadline: Annotated[
        float | None,
        typer.Option(help="Milliseconds for requests that give no time of their own."),
    ] = None,
    gears: Annotated[
        str,
        typer.Option(
            help="auto moves along the gears of a bundle under load, if it has some; on refuses "
            "bundles without; off stays in one; the name of a gear holds that one."
        ),
    ] = "auto",
    audit: Annotated[
        float, typer.Option(help="Share of the examples that the reference answers as well.")
    ] = 0.0,
    on_alarm: Annotated[
        str,
        typer.Option(help="What answers once a promise is broken: reference, or keep what did."),
    ] = "keep",
    watch: Annotated[
        Path | None,
        typer.Option(help="Folder where audits are kept over a restart."),
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the token that requests have to bring."),
    ] = None,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    json: options.Json = False,
) -> None:
    """Serve bundles over HTTP, by the Open Inference Protocol and plain requests.

    In: one or several bundles; name=folder gives one another name than that of its folder.

    Out: answers, until Ctrl+C or SIGTERM; then what was accepted is answered first. With --json
    one object with the address and the models, once it listens.

    Requests share batches at every stage. The address /docs says how to ask.

    Example: offramp serve runs/demo/bundle --port 8000
    """
    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        imported(package, "serve")
    from offramp.serve.settings import Settings, token_from

    settings = Settings(
        host=host,
        port=port,
        backend=backend,
        allow_import=allow_import,
        allow_network=tuple(allow_network or ()),
        allow_types=tuple(allow_types or ()),
        workers=workers,
        hang_seconds=hang_seconds,
        load_seconds=load_seconds,
        max_queue=max_queue,
        max_rows=max_rows,
        deadline=None if deadline is None else deadline / 1000,
        gears=gears,
        audit=audit,
        on_alarm=on_alarm,  # type: ignore[arg-type]  # it looks for itself
        watch=watch,
        token=None if token_env is None else token_from(token_env, os.environ),
    )
    sources, output = sources_of(bundles), Output(as_json=json)

    def told(url: str) -> None:
        note(f"listening at {url}")
        output.result({"url": url, "models": list(sources)})

    if workers > 1:  # each loads torch, and this process does not
        from offramp.serve.workers import serve_many

        serve_many(sources, settings, threads=threads, log=True, told=told)
        return
    from offramp.serve.run import serve

    serve(sources, settings, threads=threads, log=True, told=told)


def sources_of(bundles: list[Path]) -> dict[str, Path]:
    """For each name the folder of its bundle.

    Raises:
        InputError: If two have one name.

    >>> sources_of([Path("runs/cats"), Path("other=runs/dogs")])
    {'cats': PosixPath('runs/cats'), 'other': PosixPath('runs/dogs')}
    """
    found: dict[str, Path] = {}
    for given in bundles:
        name, sign, folder = str(given).partition("=")
        path = Path(folder) if sign else given
        name = name if sign else path.resolve().name
        if name in found:
            raise InputError(
                f"Bundles must have different names, got {name!r} for {found[name]} and {path}. "
                "Name one: other=folder."
            )
        found[name] = path
    return found
