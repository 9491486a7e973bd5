"""VADER as a stage: scores by rules and a lexicon (Hutto & Gilbert, ICWSM 2014), and a logistic regression on them.

The rules are those of the package ``vaderSentiment``, unchanged; they read a text alone, so rows do not touch each other.
Knows texts and their scores; no ladder, no spec, no Ray.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.tokens import decoded

SCORES = ("compound", "pos", "neg", "neu")
"""The four scores: the normalised sum, and the shares of a text that are positive, negative and neutral."""


class VaderRules(nn.Module):
    """Logits from VADER's scores of a text.

    Args:
        classes: width of the logits.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ConfigError(
                "the Python package 'vaderSentiment' is not installed; run `pip install vaderSentiment==3.3.2`"
            ) from error
        self._analyzer: Any = SentimentIntensityAnalyzer()
        self.head = nn.Linear(len(SCORES), classes)

    def scores(self, texts: Sequence[str]) -> Tensor:
        """Scores [rows, 4], in the order of `SCORES`; an empty text has four zeros."""
        scores = np.zeros((len(texts), len(SCORES)), dtype=np.float32)
        for row, text in enumerate(texts):
            found = self._analyzer.polarity_scores(text)
            scores[row] = [found[name] for name in SCORES]
        return torch.from_numpy(scores).to(self.head.weight)

    def prepare(self, texts: NDArray[np.object_]) -> Tensor:
        """The `scores` of BYTES [rows] or [rows, 1].

        Raises:
            BadRequest: a text is not UTF-8.
        """
        return self.scores(decoded(texts))

    def forward(self, texts: NDArray[np.object_]) -> Tensor:
        """Logits [rows, classes] of BYTES [rows] or [rows, 1]."""
        logits: Tensor = self.head(self.prepare(texts))
        return logits
