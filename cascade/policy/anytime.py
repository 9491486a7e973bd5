"""What a client that watches is shown of a row as its answers come: rules by which answers do not silently get worse.

A rule takes what was shown of the row before and what a stage has just said of it, and gives what is shown now. Rules work
row by row; they know stages by number, and decide nothing about the row's way, which is the same under every rule.

    plain        the stage's own answer, as it would leave
    steady       the surer of two answers that agree, the earlier one on ties; but any answer with another label at once
    best so far  the surest answer of all that came, the earlier one on ties: *caching-anytime*
    product      p_m(y) ∝ prod_{k<=m} max(0, f_k(y)): *product-anytime* (both Jazbec et al., NeurIPS 2023, arXiv 2306.02652)

A surest answer is chosen for being sure, so it is less often right than it says, and an answer that a dearer stage has gone
against is so most of all. Steady therefore believes the later of two that differ: its labels are those of plain.

In the product, f are the stage's class scores less their mean. A softmax, and so training, leaves their level open, and
tables of outcomes keep probabilities; less its mean, a score is the same whichever of the two it came from.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple, Protocol

import numpy as np

from cascade.policy.gain import Curve, Floats, Judgement


class Shown(NamedTuple):
    """What is shown of a row.

    Attributes:
        stage: the stage whose answer it is; in a product, the last that was multiplied in.
        probabilities: of the classes, [classes].
        confidence: calibrated probability that the answer is right.
        log_product: sum of the logarithms of the factors so far, [classes]; None outside of products.
    """

    stage: int
    probabilities: Floats
    confidence: float
    log_product: Floats | None = None


class Rule(Protocol):
    """How what is shown of a row follows from its answers."""

    def __call__(self, before: Shown | None, stage: int, judgement: Judgement, row: int) -> Shown:
        """What is shown once a stage has answered.

        Args:
            before: what was shown until now; None at the first answer.
            stage: the stage that has answered.
            judgement: of the batch that the row was part of there.
            row: its place in that batch.
        """
        ...


def plain(before: Shown | None, stage: int, judgement: Judgement, row: int) -> Shown:  # noqa: ARG001 - a rule's form
    """Show every stage's own answer."""
    return Shown(stage, judgement.probabilities[row], float(judgement.p_correct[row]))


def steady(before: Shown | None, stage: int, judgement: Judgement, row: int) -> Shown:
    """Keep what was shown if the new answer has its label and is no surer: confidence falls only where the label changes."""
    if (
        before is not None
        and judgement.p_correct[row] <= before.confidence
        and judgement.probabilities[row].argmax() == before.probabilities.argmax()
    ):
        return before
    return plain(before, stage, judgement, row)


def best_so_far(before: Shown | None, stage: int, judgement: Judgement, row: int) -> Shown:
    """Keep what was shown unless the new answer is more probably right."""
    if before is not None and judgement.p_correct[row] <= before.confidence:
        return before
    return plain(before, stage, judgement, row)


class Product:
    """Multiply the positive parts of all stages' scores.

    A class that one stage gives less than its mean score is out for good, so probability can only gather on those that
    are left. Where none is left, the stage that answered last is shown alone, by the softmax of its scores. Early products
    are less sure than they should be; a curve for each stage makes a probability of being right of them.

    Args:
        p_correct: largest probability of the product after a stage, to the probability that it is right; one for each.
    """

    def __init__(self, p_correct: Sequence[Curve]) -> None:
        self._p_correct = tuple(p_correct)

    def __call__(self, before: Shown | None, stage: int, judgement: Judgement, row: int) -> Shown:
        """What is shown; see `Rule`. The judgement must hold the stage's evidence."""
        assert judgement.evidence is not None, "a product is made of the stages' own scores"
        scores = centred(judgement.evidence[row])
        factor = np.log(scores, out=np.full(len(scores), -inf), where=scores > 0)
        total = factor if before is None or before.log_product is None else before.log_product + factor
        most = total.max()
        shares = np.exp(total - most) if most > -inf else np.exp(scores - scores.max())
        shares /= shares.sum()
        return Shown(stage, shares, float(self._p_correct[stage](shares.max())), total)


def centred(scores: Floats) -> Floats:
    """Class scores less their mean over the classes, [..., classes]."""
    values = np.asarray(scores, dtype=np.float64)
    return np.asarray(values - values.mean(axis=-1, keepdims=True))
