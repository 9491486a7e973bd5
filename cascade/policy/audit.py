"""Shadow audits: is what is served as good as predicted? Chooses which answers to check, and adds up what the checks say.

A small random share of the rows that left before the last stage is also taken through all the stages that they did not
visit. There are no labels at run time; the whole ladder's answer is the best witness at hand, and its calibrated
probabilities say how far to trust it. For an answer with label y that was served with p = p(correct), let q be the class
probabilities that the whole ladder gives the row. Then

    x = q[y]            the probability, by the whole ladder, that the served answer is right
    d = 1 if argmax q is not y, else 0

and with strata h = (stage of the exit, degraded or not), w_h their shares of all answers served in the window and A_h the
audited ones among them, n_h many:

    accuracy       = mean over the served of p  +  sum_h w_h  mean over A_h of (x - p)
    disagreement   = sum over audited h of w_h  mean over A_h of d,  over the share of answers that these and the last
                     stage's strata hold
    standard error = sqrt( sum_h w_h^2 v_h / n_h ),   v_h = ( squared deviations from the mean + 1 ) / n_h

The first is the difference estimator of survey sampling (Särndal, Swensson & Wretman 1992, ch. 6) in a stratified sample:
the prediction, known for every row, carries the estimate, and the audits correct it. Exits at the last stage need no audit:
there x and p are the same number. The 1 in v_h stands for one row off by as much as can be that the sample happened to
miss; without it, a few audits that all agree would claim to be certain.

**What is measured**: whether the stages below the last keep the promise of their own calibration, on today's rows, by the
measure of the whole ladder. **What is not**: the last stage itself. Where its calibration has gone wrong too, this accuracy
is wrong with it, and only labels can tell; disagreement needs no calibration at all. Whether a loss follows from a
disagreement is open (the whole ladder may be the one that is wrong), so it lies above the loss that a certificate bounds.
Audits stop under load. Every row of a stratum that is served while there is room has the same chance of one, but what is
served under load is corrected by what the audits of its stratum found in quieter moments, and a stratum without any (as
answers degraded under load usually are) by nothing: `Estimate.covered` says what share of the answers the audits speak for.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from cascade.errors import ConfigError
from cascade.policy.gain import Judgement
from cascade.policy.request import Answer

LEAST_REST = 1e-12
"""Below this, the whole ladder leaves no probability for any label but its own."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of the answers served in the window.

    Attributes:
        served: answers served.
        predicted: mean p(correct) of them; None if there were none.
        rows: audits that ended in the window.
        covered: share of the answers in strata that were audited at least once, or that left at the last stage.
        accuracy: the audited accuracy; None without an audit.
        accuracy_se: its standard error.
        disagreement: share of the covered answers that the whole ladder would have given differently; None without an audit.
        disagreement_se: its standard error.
    """

    served: int
    predicted: float | None
    rows: int
    covered: float
    accuracy: float | None
    accuracy_se: float | None
    disagreement: float | None
    disagreement_se: float | None


class _Sums:
    """Sums over one slice of time, one entry for each stratum."""

    __slots__ = ("audited", "disagreed", "error", "error2", "predicted", "served", "started_s")

    def __init__(self, strata: int, started_s: float) -> None:
        self.started_s = started_s
        self.served = [0] * strata
        self.predicted = [0.0] * strata
        self.audited = [0] * strata
        self.error = [0.0] * strata
        self.error2 = [0.0] * strata
        self.disagreed = [0] * strata


class Auditor:
    """Chooses the answers to audit and keeps the estimates, over a sliding window.

    Args:
        stages: number of stages of the ladder.
        now: instant of the start.
        share: chance that a row is drawn for an audit, while one may begin; 0 for never.
        seed: of the draw.
        gap_s: seconds from the beginning of one audit to that of the next, at least.
        window_s: length of the window that the estimates are about.
        slices: parts in which the window moves on; it is longer than ``window_s`` by at most one of them.

    Raises:
        ConfigError: a share outside 0 to 1.
    """

    def __init__(
        self,
        stages: int,
        now: float,
        *,
        share: float = 0.01,
        seed: int = 0,
        gap_s: float = 0.1,
        window_s: float = 300.0,
        slices: int = 30,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"share: expected 0 to 1, got {share}")
        self._last = stages - 1
        self._share = share
        self._random = np.random.default_rng(seed)
        self._gap_s = gap_s
        self._window_s = window_s
        self._slice_s = window_s / slices
        self._next_s = now
        self._countdown = self._draw()
        self._newest = _Sums(2 * stages, now)
        self._slices = deque([self._newest])

    def drawn(self, answer: Answer) -> bool:
        """Take note of an answer that is served now; whether it was drawn for an audit.

        The rows until the next one drawn are geometrically distributed, so all but one in 1 / share cost a subtraction. A
        row that is drawn while no audit may begin is let go, and the next is drawn afresh: putting it off would prefer the
        rows that come when load ends.
        """
        stage = answer.stage
        stratum = 2 * stage + (answer.deferrals > answer.escalations)
        newest = self._newest
        newest.served[stratum] += 1
        newest.predicted[stratum] += float(answer.judgement.p_correct[answer.row])
        if stage == self._last:
            return False
        self._countdown -= 1
        if self._countdown > 0:
            return False
        self._countdown = self._draw()
        return True

    def drawn_among(self, answer: Answer, rows: Sequence[int]) -> list[int]:
        """The same of rows that are answered alike: which of them were drawn.

        Args:
            answer: the answer of any of them.
            rows: their rows of its judgement.
        """
        stratum = 2 * answer.stage + (answer.deferrals > answer.escalations)
        newest = self._newest
        newest.served[stratum] += len(rows)
        newest.predicted[stratum] += float(answer.judgement.p_correct[rows].sum())
        if answer.stage == self._last:
            return []
        found = []
        while self._countdown <= len(rows):
            found.append(rows[int(self._countdown) - 1])
            self._countdown += self._draw()
        self._countdown -= len(rows)
        return found

    def wants(self, now: float, spare: bool) -> bool:
        """Whether an audit of the row just drawn may begin; if so, the next one may only after the gap.

        Args:
            now: present instant.
            spare: whether the stages have capacity to spare, and no other audit is under way.
        """
        if not spare or now < self._next_s:
            return False
        self._next_s = now + self._gap_s
        return True

    def observe(self, now: float, answer: Answer, whole: Judgement) -> None:
        """An audit has ended.

        Args:
            now: present instant.
            answer: what was served, at a stage before the last.
            whole: the last stage's judgement of the row, alone, with all that the stages before it said taken in.
        """
        self._move_on(now)
        label = int(answer.judgement.probabilities[answer.row].argmax())
        right, agrees = served_is_right(label, whole)
        stratum = 2 * answer.stage + answer.degraded
        error = right - answer.confidence
        newest = self._newest
        newest.audited[stratum] += 1
        newest.error[stratum] += error
        newest.error2[stratum] += error * error
        newest.disagreed[stratum] += not agrees

    def estimate(self, now: float) -> Estimate:
        """What the window says; to be called about once a second, which also moves the window on."""
        self._move_on(now)
        parts = tuple(self._slices)
        strata = range(2 * (self._last + 1))
        served = [sum(part.served[h] for part in parts) for h in strata]
        everything = sum(served)
        if not everything:
            return Estimate(0, None, 0, 0.0, None, None, None, None)
        predicted = sum(sum(part.predicted) for part in parts) / everything
        accuracy, accuracy_variance, disagreement, disagreement_variance, covered = predicted, 0.0, 0.0, 0.0, 0.0
        rows = 0
        for h in strata:
            weight = served[h] / everything
            audited = sum(part.audited[h] for part in parts)
            if audited or h // 2 == self._last:
                covered += weight
            if not audited:
                continue
            rows += audited
            error, error_variance = _mean_and_variance(
                audited, sum(part.error[h] for part in parts), sum(part.error2[h] for part in parts)
            )
            differs = sum(part.disagreed[h] for part in parts)
            rate, rate_variance = _mean_and_variance(audited, differs, differs)
            accuracy += weight * error
            accuracy_variance += weight * weight * error_variance
            disagreement += weight * rate
            disagreement_variance += weight * weight * rate_variance
        if not rows or not covered:
            return Estimate(everything, predicted, rows, covered, None, None, None, None)
        return Estimate(
            served=everything,
            predicted=predicted,
            rows=rows,
            covered=covered,
            accuracy=min(max(accuracy, 0.0), 1.0),
            accuracy_se=sqrt(accuracy_variance),
            disagreement=disagreement / covered,
            disagreement_se=sqrt(disagreement_variance) / covered,
        )

    def _draw(self) -> float:
        return float(self._random.geometric(self._share)) if self._share else inf

    def _move_on(self, now: float) -> None:
        if now >= self._newest.started_s + self._slice_s:
            self._newest = _Sums(2 * (self._last + 1), now)
            self._slices.append(self._newest)
        # A slice is over when the next one begins, so the oldest goes once the one after it covers the window.
        while len(self._slices) > 1 and self._slices[1].started_s <= now - self._window_s:
            self._slices.popleft()


def served_is_right(label: int, whole: Judgement) -> tuple[float, bool]:
    """Probability, by the whole ladder, that a label is right, and whether it would have given the same.

    Of its own label the ladder knows p(correct) from a fitted curve, which is trusted more than the class probability; the
    others share the rest in proportion to theirs.

    Args:
        label: the label in question.
        whole: judgement of one row.
    """
    probabilities = whole.probabilities[0]
    own = int(probabilities.argmax())
    trusted = float(whole.p_correct[0])
    if own == label:
        return trusted, True
    rest = 1.0 - float(probabilities[own])
    return (1.0 - trusted) * float(probabilities[label]) / rest if rest > LEAST_REST else 0.0, False


def _mean_and_variance(n: int, total: float, squares: float) -> tuple[float, float]:
    """Mean of n values, and the variance of that mean with one unseen deviation of 1 added."""
    mean = total / n
    return mean, (max(squares - n * mean * mean, 0.0) + 1.0) / (n * n)
