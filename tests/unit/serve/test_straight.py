"""What is asked most takes a shorter way, which comes to the same as the way through all routes."""

import asyncio

import pytest
from starlette.routing import Route, Router

from offramp.serve.app import Straight

PATHS = ["/m/{model}/infer", "/m/{model}/versions/{version}/infer"]


class Told:
    """An endpoint that writes down what it is asked."""

    def __init__(self, name):
        self.name, self.heard = name, []

    async def __call__(self, scope, receive, send):
        self.heard.append((self.name, {k: v for k, v in scope["path_params"].items() if v}))


class Passed:
    """Counts who takes the way through all routes."""

    def __init__(self, app):
        self.app, self.count = app, 0

    async def __call__(self, scope, receive, send):
        self.count += 1
        await self.app(scope, receive, send)


def asked(path, method, root, *, straight):
    endpoints = [Told("one"), Told("two"), Told("other")]
    ways = [Route(at, told, methods=["POST"]) for at, told in zip(PATHS, endpoints, strict=False)]
    router = Router([Route("/m/{model}", endpoints[2], methods=["POST"]), *ways])
    passed = Passed(router)
    app = Straight(passed, ways) if straight else passed
    sent = []

    async def send(message):
        sent.append(message.get("status", message["type"]))

    scope = {"type": "http", "method": method, "path": root + path, "root_path": root}
    asyncio.run(app(scope | {"headers": []}, None, send))
    return [heard for told in endpoints for heard in told.heard], sent, passed.count


@pytest.mark.parametrize("root", ["", "/behind"])
@pytest.mark.parametrize(
    ("path", "method", "short"),
    [
        ("/m/a/infer", "POST", True),
        ("/m/a/versions/3/infer", "POST", True),
        ("/m/a/infer", "GET", False),
        ("/m/a", "POST", False),
        ("/m/a/infer/b", "POST", False),
        ("/m//infer", "POST", False),
        ("/x/m/a/infer", "POST", False),
    ],
)
def test_both_ways_come_to_the_same(path, method, short, root):
    *expected, _ = asked(path, method, root, straight=False)
    *found, around = asked(path, method, root, straight=True)
    assert found == expected
    assert around == (0 if short and not root else 1)
