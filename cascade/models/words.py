"""A bag of words beside VADER's rules: a linear model over which word pieces, and which pairs of neighbours, a text holds.

Pieces and pairs are what linear models of text have long been good at (Wang & Manning, ACL 2012); pairs share a table by
their hash, as in fastText (Joulin et al., arXiv 1607.01759), so that the table has one size whatever was seen in training.
The rules see what the words of the training never named, so the two are fitted together. Knows no ladder, no spec, no Ray.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.bert import folder_of, named_file
from cascade.models.tokens import Tokenizer, decoded
from cascade.models.vader import VaderRules

PAIR_FACTOR = 1_000_003
"""A prime: a pair (a, b) falls into bucket (a * PAIR_FACTOR + b) modulo their number."""


class RulesAndWords(nn.Module):
    """Logits of VADER's scores plus, over the n features F of a text, sum_{f in F} w_f / sqrt(n).

    F is a set: the text's pieces, the marks at both ends among them, and its pairs of neighbours. Divided by sqrt(n) it has
    length 1 as a vector, so that long texts are not surer of themselves for being long.

    Attributes:
        rules: VADER's scores and their weights.
        words: weights of the features, [pieces + pairs, classes].

    Args:
        tokenizer: cuts texts into pieces.
        pairs: buckets that the pairs of neighbours share.
        classes: width of the logits.

    Raises:
        ConfigError: the package ``vaderSentiment`` is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, pairs: int, classes: int) -> None:
        super().__init__()
        self.rules = VaderRules(classes)
        self.words = nn.EmbeddingBag(tokenizer.pieces + pairs, classes, mode="sum")
        nn.init.zeros_(self.words.weight)
        self._tokenizer, self._pieces, self._pairs = tokenizer, tokenizer.pieces, pairs

    def features(self, tokens: Sequence[int]) -> list[int]:
        """The features of one text, rising."""
        pairs = (self._pieces + (first * PAIR_FACTOR + second) % self._pairs for first, second in pairwise(tokens))
        return sorted({*tokens, *pairs})

    def prepare(self, texts: NDArray[np.object_]) -> tuple[Tensor, Tensor, Tensor]:
        """What `logits` takes, of BYTES [rows] or [rows, 1].

        Returns:
            VADER's scores [rows, 4]; the features of all rows, one row's behind the other's, int64 [total]; and how many
            are each row's, int64 [rows].

        Raises:
            BadRequest: a text is not UTF-8.
        """
        strings = decoded(texts)
        scores = self.rules.scores(strings)
        rows = [self.features(tokens) for tokens in self._tokenizer.ids(strings)]
        # By way of numpy, which takes lists of ints four times as fast.
        features = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        return scores, torch.from_numpy(features).to(scores.device), torch.from_numpy(counts).to(scores.device)

    def logits(self, scores: Tensor, features: Tensor, counts: Tensor) -> Tensor:
        """Logits [rows, classes], see `prepare`."""
        sums = self.words(features, counts.cumsum(0) - counts)
        answered: Tensor = self.rules.head(scores) + sums / counts[:, None].sqrt()
        return answered

    def forward(self, texts: NDArray[np.object_]) -> Tensor:
        """Logits [rows, classes] of BYTES [rows] or [rows, 1]."""
        return self.logits(*self.prepare(texts))


def rules_and_words(
    *, package: str, folder: str, sha256: Mapping[str, str], pairs: int, classes: int, max_tokens: int = 64
) -> RulesAndWords:
    """A `RulesAndWords` over the pieces of an encoder that an installed Python package brings; factory for a spec.

    Args:
        package: import name of the package.
        folder: folder in it with ``tokenizer.json``.
        sha256: what that file must be, by its name.
        pairs: see `RulesAndWords`.
        classes: see `RulesAndWords`.
        max_tokens: longer texts are cut.

    Raises:
        ConfigError: a package is missing, or the file is not that one.
    """
    if pairs < 1 or max_tokens < 2:
        raise ConfigError(f"pairs must be at least 1 and max_tokens at least 2, got {pairs} and {max_tokens}")
    tokenizer = Tokenizer(named_file(folder_of(package, folder), "tokenizer.json", sha256), max_tokens)
    return RulesAndWords(tokenizer, pairs, classes)
