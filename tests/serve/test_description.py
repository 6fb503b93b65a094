"""The OpenAPI is what the server does: schemathesis asks whatever it allows, and what it forbids."""

import pytest
from hypothesis import HealthCheck, Phase, settings

from support.served import NAMES, SECONDS, make_bundle, running

schemathesis = pytest.importorskip("schemathesis")
