r"""Names that people and file systems gave, made fit for files, tables and terminals.

File names on Linux are bytes; those that are no UTF-8 reach Python with *surrogates*, characters
that no file in UTF-8 can hold. Everything that offramp writes down holds `utf8_name(name)`.

Layer: _core.
"""

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]|\\ud[89a-f][0-9a-f]{2}")
# What moves the cursor, rings, or turns the direction of writing; line ends and tabs may stay.
_UNSEEN = ("Cc", "Cf", "Zl", "Zp")
_KEPT = "\n\t\u200c\u200d"  # the joiners belong to letters and signs of many scripts


def utf8_name(name: str) -> str:
    r"""The name itself if it is Unicode; else with its odd bytes escaped, as in `caf\xe9.png`.

    Different names stay different: where a byte is escaped, and where a name looks as if one were,
    each backslash is doubled first.

    >>> utf8_name("café.png")
    'café.png'
    >>> print(utf8_name("caf\udce9.png"))
    caf\xe9.png
    >>> print(utf8_name(r"caf\xe9.png"))
    caf\\xe9.png
    """
    if not _SURROGATE.search(name) and not _ESCAPED.search(name):
        return name
    doubled = name.replace("\\", r"\\")
    try:
        return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as only Windows has them in names
        return doubled.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    r"""Text for a terminal: control characters and odd bytes are written out, lines stay lines.

    >>> print(printable("a\x1b[31mb\udce9"))
    a\x1b[31mb\xe9
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _KEPT or not _unseen(c) else _written_out(c) for c in text)


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in (*_UNSEEN, "Cs")


def _written_out(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte of a file name that it stands for
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
