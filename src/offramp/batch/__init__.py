"""Answers for a whole collection, on a cluster: Ray Data (docs/how-to/cluster.md).

Needs the extra `ray`.

Layer: batch.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.batch.answering import Loading as Loading
    from offramp.batch.datasets import classify as classify
    from offramp.batch.shards import Shard as Shard
    from offramp.batch.shards import predict_shards as predict_shards

_HOME = {
    "Loading": "offramp.batch.answering",
    "Shard": "offramp.batch.shards",
    "classify": "offramp.batch.datasets",
    "predict_shards": "offramp.batch.shards",
}

__all__ = [*sorted(_HOME)]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
