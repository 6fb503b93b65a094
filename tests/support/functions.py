"""Functions on rows that bundles and configurations of tests can import."""

import numpy as np

from offramp.data.digits import FILES

NAMES = ("short", "middle", "long")


def _length(row):
    return len(row["text"] if isinstance(row, dict) else row)


def rough(rows):
    """Labels with confidences; too short texts are refused, huge ones are no class."""
    labels, sure = [], []
    for row in rows:
        n = _length(row)
        labels.append(None if n == 0 else "huge" if n > 60 else "short" if n < 12 else "long")
        sure.append(None if n == 0 else min(0.99, 0.4 + abs(n - 12) / 20))
    return labels, sure


def exact(rows):
    """Labels with confidences of 1."""
    return [label_of(row) for row in rows], np.ones(len(rows))


def label_of(row):
    """What is right."""
    n = _length(row)
    return "short" if n < 10 else "middle" if n < 20 else "long"


def rough_labels(rows):
    """The labels of `rough` alone."""
    return rough(rows)[0]


def exact_labels(rows):
    """The labels of `exact` alone."""
    return exact(rows)[0]


def probabilities(rows):
    """Probabilities, zeros among them, as lists."""
    return [[float(name == label_of(row)) for name in NAMES] for row in rows]


def broken(rows):
    """A row too few."""
    return exact_labels(rows)[1:]


MOODS = ("glad", "sad", "neither")
_WORDS = {"good": 0, "fine": 0, "happy": 0, "bad": 1, "poor": 1, "lost": 1}


def moods(rows):
    """Probabilities by the words that are known."""
    return [_mood(row.split()) for row in rows]


def hasty_moods(rows):
    """By the first three words alone."""
    return [_mood(row.split()[:3]) for row in rows]


def _mood(words):
    found = [_WORDS.get(word.strip(".,!").lower(), 2) for word in words]
    weights = [1 + 8 * found.count(0), 1 + 8 * found.count(1), 1 + found.count(2)]
    return [weight / sum(weights) for weight in weights]


def _languages():
    lines = (FILES / "words.tsv").read_text(encoding="utf-8").splitlines()
    lists = dict(line.split("\t") for line in lines)
    return {word: code for code, words in lists.items() for word in words.split()}


def quick_language(texts):
    """By the first word, and unsure of single ones."""
    known = _languages()
    return [known[t.split()[0]] for t in texts], [0.5 + 0.1 * min(4, t.count(" ")) for t in texts]


def slow_language(texts):
    """The same by every word, each of them looked up anew."""
    found = [[_languages()[word] for word in text.split()] for text in texts]
    return [each[0] for each in found], [0.9] * len(texts)
