"""From a stage's evidence to what an escalation would be worth. Knows tables fitted offline; fits nothing itself.

For stage k with logits z of a row:
    p      = softmax(z / T_k)                                     temperature scaling (Guo et al. 2017)
    c      = max_y p[y]                                           confidence
    p_ok   = P(h_k right | c)                                     isotonic curve
    g_j    = E[1(h_j right) - 1(h_k right) | c]   for every j > k  gain of the dearer stage j
The gain is the quantity of the optimal deferral rule (Jitkrittum et al., NeurIPS 2023, arXiv 2307.02764): escalate where
it exceeds the cost of doing so. It differs from uncertainty where no stage can solve an input, and there it is the better
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Curve:
    """A piecewise linear function, constant outside its knots.

    Attributes:
        x: knots, ascending, shape [m].
        y: values at the knots, shape [m].
    """

    x: Floats
    y: Floats

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float]) -> "Curve":
        """Build a curve from plain numbers."""
        return cls(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))

    def __call__(self, at: Floats) -> Floats:
        """Values at ``at``, same shape."""
        return np.interp(at, self.x, self.y)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one batch's evidence says, row by row.

    Attributes:
        probabilities: calibrated class probabilities, [n, classes].
        confidence: the largest of them, [n].
        p_correct: probability that the stage's answer is right, [n].
        gains: gain of each dearer stage, cheapest of them first, [n, stages - 1 - k].
    """

    probabilities: Floats
    confidence: Floats
    p_correct: Floats
    gains: Floats

    def __len__(self) -> int:
        """Rows in the batch."""
        return len(self.confidence)


@dataclass(frozen=True, slots=True)
class Judge:
    """The calibrated reading of one stage's evidence.

    Attributes:
        temperature: T_k, above zero.
        p_correct: confidence to probability of being right.
        gains: confidence to gain, one curve for each dearer stage, cheapest of them first.
    """

    temperature: float
    p_correct: Curve
    gains: tuple[Curve, ...]

    def __call__(self, logits: Floats) -> Judgement:
        """Judge a batch.

        Args:
            logits: the stage's raw outputs, [n, classes].
        """
        scaled = np.divide(logits, self.temperature, dtype=np.float64)
        scaled -= scaled.max(axis=1, keepdims=True)
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(axis=1, keepdims=True)
        confidence = scaled.max(axis=1)
        gains = np.empty((len(confidence), len(self.gains)))
        for j, curve in enumerate(self.gains):
            gains[:, j] = curve(confidence)
        return Judgement(scaled, confidence, self.p_correct(confidence), gains)
