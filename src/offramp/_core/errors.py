"""The error tree; each leaf is also the builtin that a caller would expect.

    OfframpError
    ├── InputError (ValueError)            an argument is outside its documented domain
    │   ├── SplitOverlapError              an example stands in two splits
    │   └── TopologyError                  stages and edges do not form a legal cascade
    ├── UnknownNameError (KeyError)        a name is not registered, a stage does not exist
    ├── FileFormatError (ValueError)       a file is truncated, changed, foreign or too new
    ├── NotFittedError (RuntimeError)      used before it was fitted
    ├── MissingExtraError (ImportError)    an optional stack is not installed
    ├── UnsupportedError (RuntimeError)    this machine or model cannot do what was asked
    ├── BusyError (RuntimeError)           another process is writing the same thing
    ├── ServiceError (RuntimeError)        a service cannot be used as it is set up
    ├── SpendingError (RuntimeError)       a ceiling on spending was reached
    └── StorageError (OSError)             the disk is full

Layer: _core.
"""


class OfframpError(Exception):
    """Root of every error raised on purpose."""


class InputError(OfframpError, ValueError):
    """An argument is outside its documented domain."""


class SplitOverlapError(InputError):
    """An example stands in two splits."""


class TopologyError(InputError):
    """Stages and edges do not form a legal cascade."""


class UnknownNameError(OfframpError, KeyError):
    """A name is not registered, or a stage does not exist."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument; a message should read as a message.
        return str(self.args[0]) if self.args else ""


class FileFormatError(OfframpError, ValueError):
    """A file is truncated, changed, foreign, or written by a newer version."""


class NotFittedError(OfframpError, RuntimeError):
    """Used before it was fitted."""


class MissingExtraError(OfframpError, ImportError):
    """An optional stack is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. It comes with an extra: pip install 'offramp[{extra}]'."
        )


class UnsupportedError(OfframpError, RuntimeError):
    """This machine or this model cannot do what was asked."""


class BusyError(OfframpError, RuntimeError):
    """Another process is writing the same thing; wait for it, or choose another path."""


class ServiceError(OfframpError, RuntimeError):
    """A service cannot be used as it is set up: no key, refused, not found, sent elsewhere."""


class SpendingError(OfframpError, RuntimeError):
    """A ceiling on spending was reached; what was paid for is kept."""


class StorageError(OfframpError, OSError):
    """The disk is full, or the user's share of it; the message names what was being written."""


#: What running or following a network raises when it meets something that it cannot do.
FAILURES = (
    *(AssertionError, AttributeError, IndexError, KeyError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)


def why_unreadable(error: Exception) -> str:
    """Why numpy cannot read a file, without its advice to unpickle what it does not know.

    >>> why_unreadable(ValueError("... load it unsafely using allow_pickle=True"))
    'it holds no plain arrays, and pickled objects are never read'
    """
    said = str(error) or type(error).__name__
    return (
        "it holds no plain arrays, and pickled objects are never read" if "pickle" in said else said
    )
