"""A cascade as an application of Ray Serve: each stage scales by what survives to it.

One deployment takes requests, as `offramp serve` does, and has the scheduler: survivors of all
requests gather there until a stage has a full batch. Small stages run there; the others are
deployments of their own, which are sent whole batches. Who left is sent nowhere (docs/adr/0059).

Needs the extra `ray`.

Layer: serve.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp._core.checks import check_known
from offramp._core.cluster import check_is_there, ray_module
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.files import sha256
from offramp._core.threads import one_thread
from offramp.bundle.names import MANIFEST
from offramp.bundle.pictures import ImageFiles
from offramp.runtime import Adaptive
from offramp.runtime.elsewhere import (
    Asked,
    Elsewhere,
    Visited,
    packed,
    unpacked,
    visit_there,
)
from offramp.runtime.program import Program
from offramp.serve.app import make_app
from offramp.serve.gears import all_gears
from offramp.serve.inputs import Inputs
from offramp.serve.model import load_served
from offramp.serve.parts import FRONT, parts_of
from offramp.serve.settings import Settings, token_from
from offramp.serve.whole import Alone

_AHEAD = 2  # batches that a replica is sent: one runs, the next waits there
_AGAIN = 8  # times that a batch is sent anew because the replica that had it has died
_PAUSE = 0.1  # seconds before that, and then twice as many
_LOOK = 0.02  # seconds between looks at whether the model is loaded
_OPTIONS = ("autoscaling_config", "num_replicas", "ray_actor_options")
_REFUSED = frozenset({"workers", "part", "host", "port", "engines"})


def build_app(
    bundle: Path | str,
    *,
    name: str | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    fuse: str | Sequence[Sequence[str]] = "auto",
    gear: str | None = None,
    threads: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401  (ray.serve.Application; Ray is optional)
    """An application for `ray.serve.run`, with the addresses of `offramp serve`.

    Args:
        bundle: A folder that every machine of the cluster can read.
        name: What clients call the model; by default as the folder.
        stages: By the name of a stage, the options of the deployment that runs it:
            `num_replicas`, `autoscaling_config` and `ray_actor_options` of Ray Serve.
        fuse: Which stages share a deployment: "auto" those between which more bytes are carried
            than the raw input has, and with "offramp", which takes requests, the first that keep up
            with it and have no options in `stages`; "none"; or groups of names, "offramp" in one of
            them.
        gear: That answers, of a bundle with gears; None to move along them under load. The
            `user_config` of the deployment "offramp", `{"gear": ...}`, changes it while it runs.
        threads: CPU threads of each replica of a stage; as many CPUs are asked for. "offramp" asks
            for one more, if stages run there.
        settings: Others of `offramp.serve.settings.Settings`, by name; `token_env` names the
            variable that holds the token.

    Returns:
        The application.

    Raises:
        MissingExtraError: If Ray is not installed.
        InputError: If the bundle is not there, or an argument is outside its domain.
        OfframpError: As `offramp.load`.
    """
    serve = ray_module("ray.serve")
    path, told = Path(bundle).absolute(), dict(settings or {})
    if odd := sorted(_REFUSED & told.keys()):
        raise InputError(f"settings must leave {odd} to Ray Serve.")
    plan = _Plan(bundle=path, digest=_digest(path), threads=threads, settings=told)
    model = plan.model()
    plan.made()  # what is wrong with the settings is said here
    with one_thread():
        front, parts = parts_of(model, plan.inputs(model), fuse, apart=(stages or {}).keys())
    options = _options(front, parts, stages or {})
    lanes, handles = dict[str, tuple[str, int]](), dict[str, Any]()
    for part, given in zip(parts, options, strict=True):
        title = "-".join(part)
        room = _AHEAD * _replicas(given)
        lanes |= dict.fromkeys(part, (title, room))
        actor = {"num_cpus": threads, **given.pop("ray_actor_options", {})}
        handles[title] = (
            serve.deployment(_Stages)
            .options(
                name=title,
                max_ongoing_requests=_AHEAD,
                ray_actor_options=actor,
                **given,
            )
            .bind(plan, part)
        )
    return (
        serve.deployment(_Front)
        .options(
            name=FRONT,
            num_replicas=1,
            max_ongoing_requests=plan.made().max_queue,
            ray_actor_options={"num_cpus": 1 + threads if front else 1},
            user_config={"gear": gear},
        )
        .bind(plan, path.name if name is None else name, lanes, handles)
    )


def app(args: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """`serve run offramp.serve.ray:app bundle=... gear=...`: `build_app`, with texts for values."""
    known = ("bundle", "name", "stages", "fuse", "gear", "threads", "settings")
    for key in args:
        check_known("argument", key, known)
    if "bundle" not in args:
        raise InputError("bundle must be given: serve run offramp.serve.ray:app bundle=FOLDER.")
    given = dict(args)
    if "threads" in given:
        given["threads"] = int(given["threads"])
    return build_app(given.pop("bundle"), **given)


@final
@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every process of an application knows."""

    bundle: Path
    digest: str
    threads: int
    settings: Mapping[str, Any]

    def made(self) -> Settings:
        given = dict(self.settings)
        tuples = ("allow_network", tuple), ("allow_types", tuple)
        for name, kind in (("watch", Path), *tuples):  # as JSON and YAML have them
            if given.get(name) is not None:
                given[name] = kind(given[name])
        variable = given.pop("token_env", None)
        if variable is not None:
            given["token"] = token_from(variable, os.environ)
        try:
            return Settings(**given)
        except TypeError as error:
            raise InputError(f"settings must be those of offramp serve: {error}.") from None

    def check(self) -> None:
        """Raise `InputError` unless the bundle is there, and still the same."""
        if _digest(self.bundle) != self.digest:
            raise InputError(
                f"bundle must be the same on every machine, and stay as it is while it is served; "
                f"{self.bundle} is another than this application was built of. Write the new "
                "bundle beside it, and deploy that."
            )

    def model(self) -> Adaptive:
        """The model; raises as `check` does."""
        self.check()
        return load_served(self.bundle, self.made())

    def inputs(self, model: Adaptive) -> Inputs:
        return Inputs(model, self.made().max_pixels, ImageFiles.of(self.bundle))


class _Stages:
    """Replicas of some stages: they visit them, for whoever asks.

    Args:
        plan: Of the application.
        part: Names of the stages.
    """

    def __init__(self, plan: _Plan, part: tuple[str, ...]) -> None:
        torch.set_num_threads(plan.threads)
        model = plan.inputs(plan.model()).model
        gears = all_gears(model).items()
        self._programs: dict[str | None, Program] = {name: each.program for name, each in gears}
        self._programs[None] = model.program
        self._part = frozenset(model.policy.topology.index(name) for name in part)
        self._turn = threading.Lock()  # one batch runs, and the next arrives meanwhile

    @torch.inference_mode()
    def visit(self, gear: str | None, asked: bytes) -> bytes:
        """Visit the stage at the end of a path, and those here that follow."""
        with self._turn:
            return packed(visit_there(self._programs[gear], unpacked(asked), self._part))


@final
class _Remote:
    """Stages in other deployments, as the scheduler sees them."""

    def __init__(
        self,
        lanes: Mapping[str, tuple[str, int]],
        handles: Mapping[str, Any],
        names: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.lanes, self._handles, self._names, self._pause = lanes, handles, names, pause
        self._loop = loop  # of the replica: Ray may route there alone

    def __call__(self, gear: str | None, asked: Asked) -> Visited:
        """Have a batch visit a stage; if the replica that has it dies, another is asked."""
        from ray.exceptions import RayActorError, RayTaskError

        lane, _ = self.lanes[self._names[asked.path[-1]]]
        sent = packed(asked)
        for k in range(_AGAIN):
            try:
                found = asyncio.run_coroutine_threadsafe(
                    self._asked(lane, gear, sent), self._loop
                ).result()
            except RayActorError:
                self._pause(_PAUSE * 2**k)
            except RayTaskError as error:  # as the stage has raised it
                raise error.cause from None
            else:
                return unpacked(found)  # type: ignore[no-any-return]
        raise UnsupportedError(f"The replicas of {lane!r} have died {_AGAIN} times over a batch.")

    async def _asked(self, lane: str, gear: str | None, asked: bytes) -> bytes:
        found: bytes = await self._handles[lane].visit.remote(gear, asked)
        return found


class _Front:
    """Takes requests: the application of `offramp serve`, whose stages run elsewhere.

    Args:
        plan: Of the application.
        name: Of the model.
        lanes: For each stage that runs elsewhere its deployment, and how many batches that is sent
            at a time.
        handles: Of the deployments.
    """

    def __init__(
        self,
        plan: _Plan,
        name: str,
        lanes: Mapping[str, tuple[str, int]],
        handles: Mapping[str, Any],
    ) -> None:
        torch.set_num_threads(plan.threads)

        def elsewhere(model: Adaptive) -> Elsewhere:
            return _Remote(lanes, handles, model.stage_names, self._loop)

        self._name = name
        self._app = make_app({name: plan.bundle}, plan.made(), whole=_Deployed, elsewhere=elsewhere)
        plan.check()  # it is the bundle that the stages have
        self._through = _Through(self._app)
        self._running: Any = None
        self._loop: asyncio.AbstractEventLoop

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take another gear, while requests come; loads the model when it is first called."""
        for key in user_config:
            check_known("entry of user_config", key, ("gear",))
        if self._running is None:
            await self._begin()
        repository = self._app.state.serving.repository
        served = repository.get(self._name)
        if user_config.get("gear") is not None or served.controller is not None:
            served.hold(user_config.get("gear"))

    async def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = self._app.router.lifespan_context(self._app)
        await self._running.__aenter__()
        while not self._app.state.serving.repository.ready:
            if self._app.state.failed is not None:
                raise self._app.state.failed
            await asyncio.sleep(_LOOK)

    async def __call__(self, request: Request) -> Response:
        """Answer a request over HTTP."""
        return self._through

    async def __del__(self) -> None:
        """Answer whoever was taken in, and end."""
        if self._running is not None:
            await self._running.__aexit__(None, None, None)


@final
class _Through(Response):
    """A response that another application gives, whole as it is."""

    def __init__(self, inner: ASGIApp) -> None:
        super().__init__()
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        await self._inner(scope, receive, send)


@final
class _Deployed(Alone):
    """A server whose stages run elsewhere: others would go on with the networks that they have."""

    async def load(self, name: str) -> str:
        """Refuse."""
        raise UnsupportedError("Models on Ray are loaded by deploying the application again.")

    async def unload(self, name: str) -> None:
        """Refuse."""
        raise UnsupportedError("Models on Ray are let go by deleting the application.")


def _digest(bundle: Path) -> str:
    """Of the manifest, which has those of everything else.

    Raises:
        InputError: If the bundle is not there.
    """
    manifest = bundle / MANIFEST
    check_is_there(bundle, manifest.is_file())
    return sha256(manifest)


def _options(
    front: Sequence[str],
    parts: Sequence[Sequence[str]],
    stages: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The options of each part, of whichever of its stages they are said."""
    names = [*front, *(name for part in parts for name in part)]
    for name, given in stages.items():
        check_known("stage", name, names)
        for key in given:
            check_known(f"option of stage {name!r}", key, _OPTIONS)
        if name in front:
            raise InputError(
                f"stages must hold no options of {name!r}, which fuse lets run in {FRONT!r}."
            )
    found = list[dict[str, Any]]()
    for part in parts:
        said = [name for name in part if name in stages]
        if len(said) > 1:
            raise InputError(
                f"stages must hold options of one of {list(part)}, which share a deployment, got "
                f"some of {said}."
            )
        found.append(dict(stages[said[0]]) if said else {})
    return found


def _replicas(options: Mapping[str, Any]) -> int:
    """How many replicas there may be."""
    scaling = options.get("autoscaling_config")
    if scaling is not None:
        return int(scaling.get("max_replicas", 1))
    return int(options.get("num_replicas", 1))
