"""How many examples a property is tried on: by the profile, relative to hypothesis's own 100."""

from typing import Any

from hypothesis import settings


def examples(count: int, **options: Any) -> settings:
    """Settings of a property that would have `count` examples where the default is 100."""
    scaled = round(count * settings.default.max_examples / 100)
    return settings(max_examples=max(1, scaled), **options)
