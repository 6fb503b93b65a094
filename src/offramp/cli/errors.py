"""Which error ends the program with which exit code: one table.

    0    done
    1    something unexpected, for instance a full disk
    2    wrong usage or input: an argument, a configuration, a file
    3    there is no answer: a cascade is not worth it here
    130  interrupted

Layer: cli.
"""

from offramp._core.errors import OfframpError

UNEXPECTED = 1
WRONG_INPUT = 2
NO_ANSWER = 3
INTERRUPTED = 130

#: The most specific class of an error decides.
EXIT_CODES: dict[type[BaseException], int] = {
    OfframpError: WRONG_INPUT,
    FileNotFoundError: WRONG_INPUT,
    IsADirectoryError: WRONG_INPUT,
    NotADirectoryError: WRONG_INPUT,
    PermissionError: WRONG_INPUT,
    KeyboardInterrupt: INTERRUPTED,
    BaseException: UNEXPECTED,
}


def exit_code(error: BaseException) -> int:
    """The exit code of an error.

    >>> exit_code(FileNotFoundError()), exit_code(ZeroDivisionError())
    (2, 1)
    """
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def message(error: BaseException) -> str:
    """What to tell people: the message; of an unexpected error its type as well."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if exit_code(error) != UNEXPECTED:
        return str(error)
    return (
        f"{type(error).__name__}: {error}\n"
        "This was not expected. `offramp --debug ...` shows where it happened."
    )
