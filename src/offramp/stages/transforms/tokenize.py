"""Texts as token ids, by a tokenizer that goes along as data.

Layer: stages.
"""

from typing import Any, final

from torch import nn

from offramp._core.batch import RowList
from offramp._core.checks import check_choice, check_positive_int
from offramp._core.errors import InputError
from offramp._core.optional import imported
from offramp._core.schema import stored
from offramp._core.types import Raw

#: What a tokenizer tells of each token, by the name that networks give it.
_FIELDS = {"input_ids": "ids", "token_type_ids": "type_ids"}


@final
@stored("tokenize", brief=True)
class Tokenize(nn.Module):
    """Each text as a dict of lists, one entry for each token; `Pad` makes tensors of them.

    Args:
        tokenizer: The content of a file "tokenizer.json", as fast tokenizers of Hugging Face are
            stored. Its special tokens are added; its own padding and truncation are not used.
        length: Most tokens of a text, special ones included; of longer texts the end is cut off.
            None cuts nothing.
        fields: Of "input_ids" and "token_type_ids", what the network reads.
        cut: "right" cuts off the end of longer texts, "left" their beginning.

    Raises:
        InputError: If that is no tokenizer, or `length`, `fields` or `cut` are outside their
            domains.
        MissingExtraError: Without the extra "huggingface".
    """

    reads_rows = True

    def __init__(
        self,
        tokenizer: str,
        length: int | None = None,
        fields: tuple[str, ...] = ("input_ids",),
        cut: str = "right",
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.length = None if length is None else check_positive_int("length", length)
        self.fields = tuple(check_choice("fields", name, _FIELDS) for name in fields)
        self.cut = check_choice("cut", cut, ("right", "left"))
        if not self.fields:
            raise InputError("fields must have at least one entry, got none.")
        self._tokenizer = self._opened()

    def forward(self, rows: Raw) -> RowList:
        """Tokenize a list of texts.

        Raises:
            InputError: If a row is no text; it is named.
        """
        texts = list(rows) if isinstance(rows, list) else [rows]
        for k, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(
                    f"Tokenize takes a list of texts, got {type(text).__name__} as row {k}. Of a "
                    "table or mapping take a column first: [Columns('text'), Tokenize(...)]."
                )
            if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
                raise InputError(
                    f"Row {k} is no valid text: it has half a character, {text!r:.80}."
                )
        found = self._tokenizer.encode_batch_fast(texts)
        return RowList({name: getattr(row, _FIELDS[name]) for name in self.fields} for row in found)

    def extra_repr(self) -> str:
        """Its arguments but the tokenizer, for printing."""
        return f"length={self.length!r}, fields={self.fields!r}, cut={self.cut!r}"

    def _opened(self) -> Any:  # noqa: ANN401  (of an optional package)
        tokenizers = imported("tokenizers", "huggingface")
        try:
            found = tokenizers.Tokenizer.from_str(self.tokenizer)
            found.no_padding()
            found.no_truncation()
            if self.length is not None:
                found.enable_truncation(self.length, direction=self.cut)
        except Exception as error:
            raise InputError(
                f"tokenizer must be the content of a tokenizer.json, with length above the number "
                f"of its special tokens: {error}."
            ) from error
        return found
