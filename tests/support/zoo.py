"""Packages of networks, for tests that skip without them."""

import json
from pathlib import Path

import pytest


def wanted(package):
    """The package, or a skip that says what is missing."""
    return pytest.importorskip(package, reason=f"{package} is not installed")


def photographs(count=3, seed=0):
    """Images of several sizes with smooth and sharp places, as a camera gives them."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    found = []
    for k in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        found.append(coarse.resize((300 + 40 * k, 260 - 30 * k), Image.Resampling.BICUBIC))
    return found


def real(*parts):
    """A path in the real data that lies beside the repository, or a skip."""
    for parent in Path(__file__).resolve().parents:
        path = parent.joinpath("shared", "data", *parts)
        if path.exists():
            return path
    pytest.skip(f"the real data {'/'.join(parts)} is not beside the repository")


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very", "plot", "##s", ".")


def tokenizer_json():
    """A fast tokenizer of eleven words, as its file would hold it."""
    pytest.importorskip("tokenizers")
    special = [
        {"id": k, "content": WORDS[k], "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for k in range(4)
    ]
    around = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    ids = {
        name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]}
        for name in ("[CLS]", "[SEP]")
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": around,
                "pair": around,
                "special_tokens": ids,
            },
            "decoder": None,
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {word: k for k, word in enumerate(WORDS)},
            },
        }
    )
