"""The numbers of several processes as those of one, in the text that Prometheus reads.

Layer: serve.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from offramp._core.optional import imported

_COUNTED = ("counter", "histogram")
_SUMMED = ("offramp_queue_examples", "offramp_workers")  # gauges of which each has a part
_CREATED = "_created"

Key = tuple[str, tuple[tuple[str, str], ...]]  # name and labels


def merged(texts: Iterable[str]) -> str:
    r"""What all have counted together; of other numbers the largest, of times of birth the first.

    >>> one = '# TYPE a_total counter\na_total{m="x"} 1.0\n# TYPE b gauge\nb 2.0\n'
    >>> two = '# TYPE a_total counter\na_total{m="x"} 4.0\n# TYPE b gauge\nb 1.0\n'
    >>> [line for line in merged([one, two]).splitlines() if line[0] != "#"]
    ['a_total{m="x"} 5.0', 'b 2.0']
    """
    return _written(_families(texts))


def lasting(texts: Iterable[str], *, without: str | None = None) -> str:
    """What was counted, which stays so after the death of whoever has counted.

    Args:
        texts: What they have said last.
        without: A model of which nothing is told any more.
    """
    kept = []
    for family in _families(texts):
        if family.type in _COUNTED:
            family.samples = [s for s in family.samples if s.labels.get("model") != without]
            kept.append(family)
    return _written(kept)


def _families(texts: Iterable[str]) -> Iterator[Any]:
    imported("prometheus_client", "serve")
    from prometheus_client.metrics_core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, tuple[Any, dict[Key, float]]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            fresh = Metric(family.name, family.documentation, family.type)
            _, values = families.setdefault(family.name, (fresh, {}))
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                held = values.get(key)
                values[key] = sample.value if held is None else _both(family, held, sample.value)
    for family, values in families.values():
        for (name, labels), value in values.items():
            family.add_sample(name, dict(labels), value)
        yield family


def _both(family: Any, one: float, other: float) -> float:  # noqa: ANN401
    if family.type in _COUNTED or family.name in _SUMMED:
        return one + other
    return min(one, other) if family.name.endswith(_CREATED) else max(one, other)


def _written(families: Iterable[Any]) -> str:
    client = imported("prometheus_client", "serve")

    class Families:
        def collect(self) -> list[Any]:
            return list(families)

    text: bytes = client.generate_latest(Families())
    return text.decode()
