"""Recording: a cascade run over data, once, into a trace.

The layer and its one verb have the same name. Importing any module of the layer binds the name
`offramp.record` to this package, whatever the top-level module says, so the package itself can be
called: `offramp.record(cascade, loader)` works in every order of imports (docs/adr/0011).

Layer: record.
"""

import sys
from types import ModuleType

from offramp.record.record import record

__all__ = ["record"]


class _CallablePackage(ModuleType):
    __call__ = staticmethod(record)


sys.modules[__name__].__class__ = _CallablePackage
