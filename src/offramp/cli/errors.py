"""Which error ends the program with which exit code: one table.

    0    done
    1    something unexpected, or a full disk
    2    wrong usage or input: an argument, a configuration, a file
    3    there is no answer: a cascade is not worth it here
    130  interrupted
    143  told to end (SIGTERM)

Layer: cli.
"""

from typing import final

from offramp._core.errors import OfframpError, StorageError
from offramp._core.files import is_full

UNEXPECTED = 1
WRONG_INPUT = 2
NO_ANSWER = 3
INTERRUPTED = 130
TERMINATED = 143


@final
class Terminated(KeyboardInterrupt):
    """The process was told to end; what is half done is cleared away as after an interrupt."""


#: The most specific class of an error decides.
EXIT_CODES: dict[type[BaseException], int] = {
    StorageError: UNEXPECTED,
    OfframpError: WRONG_INPUT,
    FileNotFoundError: WRONG_INPUT,
    IsADirectoryError: WRONG_INPUT,
    NotADirectoryError: WRONG_INPUT,
    PermissionError: WRONG_INPUT,
    Terminated: TERMINATED,
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
        return "Terminated." if isinstance(error, Terminated) else "Interrupted."
    if isinstance(error, OfframpError) or exit_code(error) != UNEXPECTED:
        return in_shell_words(str(error))
    if is_full(error):
        return f"No space is left on a disk: {error}"
    return (
        f"{type(error).__name__}: {error}\n"
        "This was not expected. `offramp --debug ...` shows where it happened."
    )


def in_shell_words(text: str) -> str:
    """A message with the names of options in place of those of Python's arguments.

    >>> in_shell_words("Choose another path, or pass overwrite=True to replace it.")
    'Choose another path, or pass --overwrite to replace it.'
    """
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


_OPTIONS = {"overwrite=True": "--overwrite", "resume=False": "--restart"}
