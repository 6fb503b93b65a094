import asyncio
import gc
from pathlib import Path

from offramp.serve.repository import Repository
from offramp.serve.run import keep_uncollected


class Loaded:
    def __init__(self, name, version, path):
        self.name, self.version, self.path = name, version, path

    def begin(self):
        pass

    def retire(self, *, replaced):
        pass


def test_what_is_there_when_a_model_is_loaded_is_passed_over_by_the_collector():
    before = gc.get_freeze_count()
    try:
        keep_uncollected()
        assert gc.get_freeze_count() > 1000
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        if before:
            gc.freeze()


def test_each_load_tells_that_a_model_answers():
    told = []

    async def load_twice():
        repository = Repository({"m": Path()}, Loaded)
        await repository.load("m")  # nobody wants to know
        repository.on_load = lambda: told.append(repository.get("m").version)
        await repository.load("m")

    asyncio.run(load_twice())
    assert told == ["2"]
