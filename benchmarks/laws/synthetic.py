"""A three-stage ladder whose truth is known: latent difficulty, answers, confidences, and gain tables learned from labels.

Knows no law, no load and no time. Row n has a difficulty z ~ N(0, 1), or N(shift, 1) after a drift. With M_k the margin at
which stage k fails half of the time,

    P(stage k right | z) = Phi((M_k - z) / WIDTH)          score of stage k = M_k - z + e_k,   e_k ~ N(0, NOISE_k^2)

The router sees only scores. A cheaper stage sees what the dearer one sees, less clearly: e_k = e_(k+1) + more noise, so the
latest score says all that the scores before it said. With ``nested=False`` the e_k are independent, and a router that reads
only the latest score forgets something. A share of the rows may be unsolvable: every stage scores them as very hard ones,
and guesses.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from cascade.calibration.judged import JudgedTable
from cascade.calibration.scores import equal_mass_bins
from cascade.policy.gain import Curve

Floats = NDArray[np.float64]

ACCURACY = (0.752, 0.861, 0.951)
COST = (1.0, 6.0, 25.0)
STAGES = ("small", "medium", "large")
WIDTH = 0.4
NOISE = np.array([0.5, 0.4, 0.3])
GUESS = 0.1
UNSOLVABLE_Z = 2.5
BINS = 64
LABELLED = 20_000
MARGINS = np.array([brentq(lambda m, a=a: norm.cdf(m / np.hypot(1.0, WIDTH)) - a, -5, 9) for a in ACCURACY])
"""P(right) over z ~ N(0, 1) is Phi(M / sqrt(1 + WIDTH^2)): the margins at which the stages have the accuracies wanted."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows drawn from the ladder's world, with what nobody in it knows.

    Attributes:
        scores: [N, S] what the router sees.
        right: [N, S] whether each stage's answer is right.
        shift: how much harder than usual the rows are, in standard deviations.
        unsolvable: share of rows that no stage solves.
        nested: whether the latest score says all.
    """

    scores: Floats
    right: NDArray[np.bool_]
    shift: float = 0.0
    unsolvable: float = 0.0
    nested: bool = True

    def true_p(self, seen: int) -> Floats:
        """P(each stage right | scores of the first ``seen`` stages), [N, S]: the best that any router could know.

        Scores and z are jointly normal. Given a sum h of independent looks at z, of variance v, z is normal with precision
        1 + 1 / v; the unsolvable rows are a second component, weighed by Bayes.
        """
        looks = MARGINS[:seen] - self.scores[:, :seen]
        weights = 1.0 / np.square(NOISE[:seen])
        if self.nested:
            weights[:-1] = 0.0
        noise = 1.0 / weights.sum()
        look = looks @ weights * noise
        var = 1.0 / (1.0 + 1.0 / noise)
        mean = var * (self.shift + look / noise)
        solved = norm.cdf((MARGINS - mean[:, None]) / np.hypot(WIDTH, np.sqrt(var)))
        if not self.unsolvable:
            return solved
        spread = np.sqrt(1.0 + noise)
        likelihood = norm.pdf(look, UNSOLVABLE_Z, spread) / norm.pdf(look, self.shift, spread)
        odds = self.unsolvable / (1 - self.unsolvable) * likelihood
        lost = (odds / (1 + odds))[:, None]
        return lost * GUESS + (1 - lost) * solved

    def take(self, rows: NDArray[np.intp]) -> "Sample":
        """The sample of only some rows, which may repeat."""
        return replace(self, scores=self.scores[rows], right=self.right[rows])


def draw(rows: int, rng: np.random.Generator, *, shift: float = 0.0, unsolvable: float = 0.0, nested: bool = True) -> Sample:
    """Draw rows.

    Args:
        rows: how many.
        rng: source.
        shift: added to the difficulty, in its standard deviations.
        unsolvable: share of rows that no stage solves.
        nested: see the module.
    """
    lost = rng.random(rows) < unsolvable
    z = rng.standard_normal(rows) + np.where(lost, UNSOLVABLE_Z, shift)
    p = norm.cdf((MARGINS - z[:, None]) / WIDTH)
    p[lost] = GUESS
    right = rng.random(p.shape) < p
    noise = rng.standard_normal(p.shape)
    if nested:
        added = np.sqrt(np.square(NOISE) - np.square(np.append(NOISE[1:], 0.0)))
        noise = np.cumsum((noise * added)[:, ::-1], axis=1)[:, ::-1]
    else:
        noise = noise * NOISE
    return Sample(MARGINS - z[:, None] + noise, right, shift, unsolvable, nested)


def learned_table(sample: Sample, labelled: Sample, *, order: str = "gain") -> JudgedTable:
    """Judge rows by tables learned from other, labelled rows: means of 64 bins of equal mass, joined by lines.

    Args:
        sample: the rows to judge.
        labelled: the rows to learn from.
        order: ``gain`` is what the product does; with ``uncertainty`` the gains are replaced by 1 - P(right | score), scaled
            to the same mean, so that a router orders by how unsure it is and not by what can be done about it.
    """
    stages = len(STAGES)
    p_correct = np.empty(sample.scores.shape)
    gains = np.zeros((len(sample.scores), stages, stages))
    for k in range(stages):
        by_score = np.argsort(labelled.scores[:, k])
        score, right = labelled.scores[by_score, k], labelled.right[by_score].astype(np.float64)

        def learned(target: Floats, k: int = k, score: Floats = score) -> Floats:
            x, y, _ = equal_mass_bins(score, target, np.ones(len(score)), BINS)
            return np.asarray(Curve(x, y)(sample.scores[:, k]))

        p_correct[:, k] = learned(right[:, k])
        for j in range(k + 1, stages):
            difference = right[:, j] - right[:, k]
            if order == "gain":
                gains[:, k, j] = learned(difference)
            else:
                doubt = 1.0 - p_correct[:, k]
                gains[:, k, j] = doubt * (difference.mean() / doubt.mean())
    return JudgedTable(STAGES, np.asarray(COST), "ms", sample.right, sample.right, p_correct, gains)
