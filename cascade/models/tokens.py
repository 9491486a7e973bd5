"""Texts, as a request brings them, to the pieces that networks over text read. Knows no network.

A text is one BYTES element, which torch has no tensors for, so this happens on the CPU.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.errors import BadRequest, ConfigError

MAX_CHARS = 2_000
"""What lies beyond so many characters of a text is not read, so that no text keeps a stage busy."""


def decoded(texts: NDArray[np.object_], max_chars: int = MAX_CHARS) -> list[str]:
    """The strings in a BYTES array, cut to a length.

    Args:
        texts: bytes [rows] or [rows, 1].
        max_chars: characters of each that are kept.

    Raises:
        BadRequest: one is not UTF-8.
        ConfigError: a row holds more than one text.
    """
    flat = texts.reshape(-1)
    if len(flat) != len(texts):
        raise ConfigError(f"a row must hold one text, shape [rows] or [rows, 1], got {list(texts.shape)}")
    strings = []
    for row, text in enumerate(flat):
        try:
            strings.append(text.decode()[:max_chars])
        except UnicodeDecodeError as error:
            raise BadRequest(f"row {row}: the text is not UTF-8: {error.reason} at byte {error.start}") from None
    return strings


class Tokenizer:
    """Texts to token ids.

    Args:
        path: ``tokenizer.json`` of the package ``tokenizers``.
        max_tokens: longer texts are cut; the marks at both ends count.

    Raises:
        ConfigError: the package is not installed, or the file is none of its.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            from tokenizers import Tokenizer as Rust
        except ImportError as error:
            raise ConfigError("the Python package 'tokenizers' is not installed; run `pip install tokenizers`") from error
        try:
            self._rust = Rust.from_file(str(path))
        except Exception as error:  # the package raises bare Exceptions
            raise ConfigError(f"{path}: no tokenizer: {error}") from error
        self._rust.no_padding()
        self._rust.enable_truncation(max_tokens)

    @property
    def pieces(self) -> int:
        """How many different tokens there are."""
        return int(self._rust.get_vocab_size())

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, the marks at both ends among them."""
        # One by one: the package's own batches use every core, whatever a stage was given.
        return [self._rust.encode(text).ids for text in texts]

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids [rows, longest], 0 beyond a row's own, and how many are each row's own [rows]."""
        rows = self.ids(texts)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        tokens = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=np.int64)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = row
        return tokens, lengths
