"""The models of a server, by name: loaded, replaced and let go while requests come.

On the thread of the event loop; loading itself is not, so requests go on being answered meanwhile.

Layer: serve.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from offramp._core.checks import check_known
from offramp._core.errors import InputError, OfframpError, UnknownNameError
from offramp.serve.errors import RequestError
from offramp.serve.model import ServedModel
from offramp.serve.settings import NAME, check_name

_log = logging.getLogger(__name__)

#: Loads a bundle: its name, its version and where it lies.
Load = Callable[[str, str, Path], ServedModel]


@final
class Repository:
    """Names, where their bundles lie, and which of them are loaded.

    Args:
        sources: For each name the folder of its bundle.
        load: Loads one; runs in a thread of its own.

    Raises:
        InputError: If there is none, or a name is none that an address can hold.
    """

    def __init__(self, sources: Mapping[str, Path], load: Load) -> None:
        if not sources:
            raise InputError("There must be at least one bundle to serve.")
        for name in sources:
            check_name(name)
        self.sources, self._load = dict(sources), load
        self._models: dict[str, ServedModel] = {}
        self._why: dict[str, str] = {}
        self._loaded: Counter[str] = Counter()  # how often each was: the last is its version
        self._prepared: dict[str, ServedModel] = {}  # and not yet taken
        self._turns = {name: asyncio.Lock() for name in sources}
        self.on_load: Callable[[], object] | None = None  # called once a model answers

    @property
    def models(self) -> Sequence[ServedModel]:
        """Those that are loaded."""
        return list(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether all are loaded that were asked for, and not unloaded since."""
        known = self._models.keys() | self._why.keys()
        return bool(self._models) and known >= self.sources.keys()

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """A model that is loaded.

        Raises:
            UnknownNameError: If there is no such model, or not in this version.
            RequestError: If it is not loaded now.
        """
        self._check(name)
        model = self._models.get(name)
        if model is None:
            why = self._why.get(name, "it was not loaded")
            raise RequestError(503, f"Model {name!r} is not ready: {why}.")
        if version is not None and version != model.version:
            raise UnknownNameError(
                f"Model {name!r} has no version {version!r}; it has {model.version!r}."
            )
        return model

    async def load(self, name: str) -> ServedModel:
        """Load a model, or load it again; until the new one is warm, the old one answers.

        Raises:
            UnknownNameError: If there is no such name.
            OfframpError: As `offramp.load`; then the old one, if there is one, goes on.
        """
        self._check(name)
        async with self._turns[name]:
            number = self._loaded[name] + 1
            return self._put(name, number, await self._made(name, number))

    async def prepare(self, name: str, number: int) -> None:
        """Load a model, which answers nothing until it is taken; raises as `load`.

        Args:
            name: Its name.
            number: How often it was loaded then.
        """
        self._check(name)
        async with self._turns[name]:
            self.drop(name)
            self._prepared[name] = await self._made(name, number)

    def drop(self, name: str) -> None:
        """Do not take what was prepared."""
        made = self._prepared.pop(name, None)
        if made is not None:
            made.executor.close(answer=False)

    async def take(self, name: str, number: int) -> None:
        """Let answer what was prepared, or is loaded now; raises as `load`."""
        async with self._turns[name]:
            now = self._models.get(name)
            if now is None or now.version != str(number):
                made = self._prepared.pop(name, None) or await self._made(name, number)
                self._put(name, number, made)

    async def _made(self, name: str, number: int) -> ServedModel:
        try:
            return await asyncio.to_thread(self._load, name, str(number), self.sources[name])
        except Exception as error:
            said = str(error) if isinstance(error, OfframpError) else type(error).__name__
            if name not in self._models:
                self._why[name] = f"it could not be loaded: {said}"
            _log.error("Model %r could not be loaded: %s", name, error)
            raise

    def _put(self, name: str, number: int, made: ServedModel) -> ServedModel:
        made.begin()
        self._loaded[name] = number
        self._why.pop(name, None)
        old = self._models.get(name)
        self._models[name] = made
        if old is not None:
            old.retire(replaced=True)
        if self.on_load is not None:
            self.on_load()
        _log.info("Model %r is ready, version %s, from %s.", name, number, self.sources[name])
        return made

    async def unload(self, name: str) -> None:
        """Let a model go, once it has answered what it has accepted.

        Raises:
            UnknownNameError: If there is no such name.
        """
        self._check(name)
        async with self._turns[name]:
            old = self._models.pop(name, None)
            self._why[name] = "it was unloaded"
            if old is not None:
                old.retire(replaced=False)

    def index(self, *, ready: bool = False) -> list[dict[str, Any]]:
        """Name, version, state and reason of each, as the protocol tells them."""
        found = []
        for name in self.sources:
            model = self._models.get(name)
            if model is not None:
                found.append({"name": name, "version": model.version, "state": "READY"})
            elif not ready:
                reason = self._why.get(name, "")
                loading = self._turns[name].locked() or not reason
                state = "LOADING" if loading else "UNAVAILABLE"
                found.append({"name": name, "state": state, "reason": reason})
        return found

    def _check(self, name: str) -> None:
        check_known("model", name if NAME.fullmatch(name) else name[:40], self.sources)
