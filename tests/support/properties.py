"""How many examples a property is tried on: by the profile, relative to hypothesis's own 100."""

from collections.abc import Sequence

from hypothesis import HealthCheck, settings


def examples(count: int, *, allow: Sequence[HealthCheck] = ()) -> settings:
    """Candidates of a property that would have `count` examples where the default is 100."""
    usual = settings.default
    return settings(
        max_examples=max(1, round(count * usual.max_examples / 100)),
        suppress_health_check=[*usual.suppress_health_check, *allow],
    )
