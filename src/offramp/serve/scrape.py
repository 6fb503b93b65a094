"""What the numbers of a server say, read from the text that it gives to Prometheus.

Layer: serve.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, final

from offramp._core.errors import FileFormatError
from offramp._core.optional import imported

Labels = frozenset[tuple[str, str]]


@final
@dataclass(frozen=True)
class Scrape:
    """All numbers at one moment.

    Args:
        samples: By name and labels.

    >>> text = 'offramp_queue_examples{model="m",stage="a"} 3.0'
    >>> scrape = Scrape.of(text)
    >>> scrape.total("offramp_queue_examples", model="m"), scrape.values("stage")
    (3.0, ['a'])
    """

    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def of(cls, text: str) -> "Scrape":
        """Read them.

        Raises:
            FileFormatError: If the text is not of this form.
            MissingExtraError: If prometheus_client is not installed.
        """
        imported("prometheus_client", "serve")
        from prometheus_client.parser import text_string_to_metric_families

        try:
            families = list(text_string_to_metric_families(text))
        except (ValueError, KeyError, IndexError) as error:
            raise FileFormatError(f"These are no metrics of Prometheus: {error}.") from error
        found = (sample for family in families for sample in family.samples)
        return cls({(s.name, frozenset(s.labels.items())): float(s.value) for s in found})

    def told(self) -> list[dict[str, Any]]:
        """Each sample with its name, labels and value; None where that is not finite."""
        return [
            {"name": name, "labels": dict(labels), "value": value if isfinite(value) else None}
            for (name, labels), value in self.samples.items()
        ]

    def values(self, label: str, name: str = "", **labels: str) -> list[str]:
        """All values of a label, of samples of a name and with other labels, in their order."""
        wanted = set(labels.items())
        found = {
            dict(of)[label]: None
            for (sample, of) in self.samples
            if (not name or sample == name) and wanted <= of and label in dict(of)
        }
        return list(found)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels; 0 of none."""
        wanted = set(labels.items())
        return sum(v for (sample, of), v in self.samples.items() if sample == name and wanted <= of)

    def since(self, before: "Scrape | None") -> "Scrape":
        """What counters have counted since then; gauges as they are now."""
        if before is None:
            return self
        ends = ("_total", "_count", "_sum", "_bucket")
        return Scrape(
            {
                key: value - before.samples.get(key, 0.0) if key[0].endswith(ends) else value
                for key, value in self.samples.items()
            }
        )

    def quantile(self, name: str, share: float, **labels: str) -> float:
        """The upper end of the bucket of a histogram in which a quantile lies; NaN of nothing."""
        bounds = [bound for bound in self.values("le", f"{name}_bucket", **labels) if bound]
        each = sorted((float(b), self.total(f"{name}_bucket", le=b, **labels)) for b in bounds)
        if not each or each[-1][1] <= 0:
            return float("nan")
        return next(bound for bound, count in each if count >= share * each[-1][1])
