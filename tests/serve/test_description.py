"""The OpenAPI is what the server does: schemathesis asks what it allows, and what it forbids."""

import warnings

import pytest
from hypothesis import HealthCheck, given, settings

from offramp.serve.openapi import description
from support.served import make_bundle, running

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

KEPT = (
    *(checks.status_code_conformance, checks.content_type_conformance),
    *(checks.response_schema_conformance, checks.unsupported_method),
    *(checks.allow_header_conformance, checks.response_headers_conformance),
)
OPERATIONS = [
    (path, verb.upper())
    for path, methods in description(["net"], token=False)["paths"].items()
    for verb in methods
    if verb in ("get", "post")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running({"net": make_bundle(tmp_path_factory.mktemp("asked") / "net")}) as client:
        yield client


# The other variant asks ten times as often.
@pytest.mark.parametrize("count", [8, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("path", "verb"), OPERATIONS)
def test_whatever_is_asked_is_answered_as_described(server, path, verb, count):
    server("/v2/repository/models/net/load", b"")  # it may have been let go
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own
        operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[path][verb]
        modes = schemathesis.GenerationMode
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            _ask(operation, mode, count)


def _ask(operation, mode, count):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        case.call_and_validate(checks=[schemathesis.checks.not_a_server_error, *KEPT])

    try:
        ask()
    except Exception as error:
        if "Unsatisfiable" not in type(error).__name__:  # there is nothing wrong to be asked
            raise
