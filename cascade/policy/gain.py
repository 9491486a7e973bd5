"""From a stage's evidence to what an escalation would be worth. Knows tables fitted offline; fits nothing itself.

For stage k with logits z of a row, and q the probabilities that the stages before gave it:
    p      = softmax(z / T_k)                    temperature scaling (Guo et al. 2017), or with the stages passed combined
    p      ∝ softmax(z / T_k) q^v                log-linear pool of both, v >= 0
    c      = max_y p[y]                          confidence
    p_ok   = P(answer right | c)                 isotonic curve
    g_j    = E[1(j right) - 1(k right) | evidence]   for every j > k: gain of the dearer stage j
The gain is the quantity of the optimal deferral rule (Jitkrittum et al., NeurIPS 2023, arXiv 2307.02764): escalate where
it exceeds the cost of doing so. It differs from uncertainty where no stage can solve an input, and there it is the better
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

LEAST_GAIN = 1e-6
"""A smaller gain is none: rounding makes such between two knots of a curve, and at a price of 0 they would send rows on."""
LEAST = float(np.finfo(np.float32).tiny)
"""A probability below this counts as this: its logarithm must be finite."""


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
class LogisticGain:
    """A gain learned from several features of the evidence: a curve over the index P(mended) - P(spoilt).

    The two probabilities are a softmax over mended, spoilt and neither, linear in the features.

    Attributes:
        mended: weights of "the dearer stage is right where this one is wrong", the constant first, [1 + features].
        spoilt: weights of the reverse, [1 + features].
        curve: index to gain. A softmax is never quite 0; the curve is, where the stages never differed.
    """

    mended: Floats
    spoilt: Floats
    curve: Curve

    def __call__(self, features: Floats) -> Floats:
        """Gains of rows with these features, [n, features] -> [n]; see `evidence_features`."""
        return self.curve(self.index(features))

    def index(self, features: Floats) -> Floats:
        """P(mended) - P(spoilt), [n, features] -> [n]."""
        scores = np.zeros((len(features), 3))
        scores[:, 0] = self.mended[0] + features @ self.mended[1:]
        scores[:, 1] = self.spoilt[0] + features @ self.spoilt[1:]
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        index: Floats = (scores[:, 0] - scores[:, 1]) / scores.sum(axis=1)
        return index


def evidence_features(probabilities: Floats, earlier: NDArray[np.integer] | None) -> Floats:
    """What a learned gain reads: top probability, margin, entropy (nats), agreement, and the predicted class as 0/1 each.

    Args:
        probabilities: [n, classes], at least two classes.
        earlier: [n] class that the stages before predicted; None at the first stage, whose agreement is 1.

    Returns:
        [n, 4 + classes].
    """
    rows, classes = probabilities.shape
    features = np.zeros((rows, 4 + classes))
    two = np.partition(probabilities, classes - 2, axis=1)[:, -2:]
    features[:, 0] = two[:, 1]
    features[:, 1] = two[:, 1] - two[:, 0]
    features[:, 2] = -(probabilities * np.log(np.maximum(probabilities, LEAST))).sum(axis=1)
    predicted = probabilities.argmax(axis=1)
    features[:, 3] = 1.0 if earlier is None else predicted == earlier
    features[np.arange(rows), 4 + predicted] = 1.0
    return features


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one batch's evidence says, row by row.

    Attributes:
        probabilities: calibrated class probabilities, [n, classes].
        confidence: how sure the answer is, usually the largest of them, [n].
        p_correct: probability that the answer is right, [n].
        gains: gain of each dearer stage, cheapest of them first, [n, stages - 1 - k].
        recalled: rows whose answer stays the one that a stage before gave, [n]; None where no stage does that.
        evidence: the stage's own class scores, [n, classes]; None where nobody keeps them.
    """

    probabilities: Floats
    confidence: Floats
    p_correct: Floats
    gains: Floats
    recalled: NDArray[np.bool_] | None = None
    evidence: Floats | None = None

    def __len__(self) -> int:
        """Rows in the batch."""
        return len(self.confidence)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The answers that the rows of a batch already have.

    Attributes:
        probabilities: class probabilities of each row's answer so far, [n, classes].
        p_correct: probability that it is right, [n].
    """

    probabilities: Floats
    p_correct: Floats


@dataclass(frozen=True, slots=True)
class Judge:
    """The calibrated reading of one stage's evidence.

    Attributes:
        temperature: T_k, above zero.
        p_correct: confidence to probability of being right.
        gains: confidence to gain, or features to gain, one for each dearer stage, cheapest of them first.
        history_weight: exponent v of the probabilities that the stages before gave; 0 leaves them out.
        recall: confidence to the probability that this stage's *own* answer is right; an earlier answer that is more
            probably right is kept, and ``confidence`` is then the larger of the two probabilities. None never looks back.
    """

    temperature: float
    p_correct: Curve
    gains: tuple[Curve | LogisticGain, ...]
    history_weight: float = 0.0
    recall: Curve | None = None

    @property
    def looks_back(self) -> bool:
        """Whether `__call__` needs the answers that the rows already have."""
        learned = any(isinstance(gain, LogisticGain) for gain in self.gains)
        return learned or self.history_weight > 0 or self.recall is not None

    def __call__(self, logits: Floats, earlier: Earlier | None = None) -> Judgement:
        """Judge a batch.

        Args:
            logits: the stage's raw outputs, [n, classes].
            earlier: what the stages before made of the rows; None for the first stage of a row's walk.
        """
        scaled = np.divide(logits, self.temperature, dtype=np.float64)
        if earlier is not None and self.history_weight:
            scaled += self.history_weight * np.log(np.maximum(earlier.probabilities, LEAST))
        scaled -= scaled.max(axis=1, keepdims=True)
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(axis=1, keepdims=True)
        return self.read(scaled, scaled.max(axis=1), earlier)

    def read(self, probabilities: Floats, confidence: Floats, earlier: Earlier | None = None) -> Judgement:
        """Judge a batch of known confidence.

        Args:
            probabilities: [n, classes]; [n, 0] if all that is known is a score, and then no gain may be a learned one.
            confidence: [n].
            earlier: see `__call__`.
        """
        recalled = None
        if earlier is not None and self.recall is not None:
            own = self.recall(confidence)
            recalled = earlier.p_correct > own
            probabilities = np.where(recalled[:, None], earlier.probabilities, probabilities)
            confidence = np.where(recalled, earlier.p_correct, own)
        gains = np.empty((len(confidence), len(self.gains)))
        features = None
        for j, gain in enumerate(self.gains):
            if isinstance(gain, Curve):
                gains[:, j] = gain(confidence)
            else:
                if features is None:
                    before = None if earlier is None else earlier.probabilities.argmax(axis=1)
                    features = evidence_features(probabilities, before)
                gains[:, j] = gain(features)
        gains[np.abs(gains) < LEAST_GAIN] = 0.0
        return Judgement(probabilities, confidence, self.p_correct(confidence), gains, recalled)
