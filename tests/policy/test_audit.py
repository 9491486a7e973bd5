"""Audits of a synthetic ladder whose truth is known: the estimate is unbiased, its error honest, and a shift is seen.

The ladder has three classes and two stages. Of every row the whole ladder says a probability for each class, and those are
true: labels are drawn from them. The cheap stage answers with p(correct) equal to the mean of what the whole ladder would
say of its answer; a shift makes it worse than that, and what it says of itself does not change.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pytest

from cascade.errors import ConfigError
from cascade.policy.audit import Auditor, Estimate, served_is_right
from cascade.policy.gain import Judgement
from cascade.policy.request import Answer, ExitReason

TRUST = 0.95
"""p(correct) that the whole ladder gives its own label."""


def judgement(probabilities, p_correct) -> Judgement:
    probabilities = np.atleast_2d(np.asarray(probabilities, dtype=float))
    return Judgement(probabilities, probabilities.max(axis=1), np.atleast_1d(p_correct), np.zeros((len(probabilities), 0)))


def answer(stage: int, of: Judgement, row: int = 0, degraded: bool = False) -> Answer:
    reason = ExitReason.PRICE if degraded else ExitReason.CONFIDENT
    return Answer(stage, reason, of, row, 1.0, deferrals=stage + degraded, escalations=stage, spans=())


@dataclass
class Traffic:
    """Answers, what an audit of each would say, and whether each is right."""

    answers: list[Answer]
    whole: list[Judgement]
    right: np.ndarray


def traffic(random: np.random.Generator, rows: int, *, shift: float = 0.0, dear_share: float = 0.3, degraded: float = 0.0):
    dear = random.random(rows) < dear_share
    whole_label = random.integers(0, 3, rows)
    whole_probabilities = np.full((rows, 3), (1 - TRUST) / 2)
    whole_probabilities[np.arange(rows), whole_label] = TRUST

    # The cheap stage says p; it agrees so often that the mean of what the whole ladder says of it is p, less the shift.
    p = random.uniform(0.5, 0.94, rows)
    agrees_mean = (p - shift - (1 - TRUST) / 2) / (TRUST - (1 - TRUST) / 2)
    agrees = (random.random(rows) < agrees_mean) | dear
    label = np.where(agrees, whole_label, (whole_label + 1) % 3)
    truth = (random.random((rows, 1)) > whole_probabilities.cumsum(axis=1)).sum(axis=1)

    is_degraded = (random.random(rows) < degraded) & ~dear
    said = np.full((rows, 3), 0.1)
    said[np.arange(rows), label] = 0.8
    batch = judgement(said, np.where(dear, TRUST, p))
    answers = [answer(int(dear[row]), batch, row, bool(is_degraded[row])) for row in range(rows)]
    whole = [judgement(whole_probabilities[row], TRUST) for row in range(rows)]
    return Traffic(answers, whole, label == truth)


def audit(auditor: Auditor, served: Traffic, now: float = 0.0, seconds: float = 100.0, spare=lambda row: True) -> Estimate:
    """Serve it evenly over the time, auditing at once what the auditor wants."""
    for row, (one, whole) in enumerate(zip(served.answers, served.whole, strict=True)):
        at = now + seconds * row / len(served.answers)
        if auditor.drawn(one) and auditor.wants(at, spare(row)):
            auditor.observe(at, one, whole)
    return auditor.estimate(now + seconds)


def auditor(share: float, seed: int = 0, **changes) -> Auditor:
    return Auditor(2, 0.0, share=share, seed=seed, **{"gap_s": 0.0, "window_s": 1000.0, **changes})


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_of_rows_that_are_answered_alike_the_same_are_drawn_as_one_by_one(share):
    random = np.random.default_rng(3)
    together, alone = auditor(share, seed=7), auditor(share, seed=7)
    for size in (1, 2, 40, 1, 300, 5, 5):
        batch = judgement(np.full((400, 3), 1 / 3), random.uniform(0.3, 1.0, 400))
        rows = sorted(random.choice(400, size, replace=False).tolist())
        stage = int(random.random() < 0.2)
        one_by_one = [row for row in rows if alone.drawn(answer(stage, batch, row))]
        assert together.drawn_among(answer(stage, batch, rows[0]), rows) == one_by_one
    found, expected = together.estimate(1.0), alone.estimate(1.0)
    assert (found.served, found.covered) == (expected.served, expected.covered)
    assert found.predicted == pytest.approx(expected.predicted)


@pytest.mark.parametrize("shift", [0.0, 0.12])
def test_the_audited_accuracy_is_unbiased_and_its_error_is_honest(shift):
    random = np.random.default_rng(1)
    runs, errors, standardised, differs = 100, [], [], []
    for seed in range(runs):
        served = traffic(random, 800, shift=shift)
        estimate = audit(auditor(0.2, seed), served)
        assert 50 < estimate.rows < 160
        errors.append(estimate.accuracy - served.right.mean())
        # The truth of a run scatters about what the ladder's probabilities say of it, as labels drawn from them do.
        luck = served.right.mean() * (1 - served.right.mean()) / len(served.right)
        standardised.append(errors[-1] / sqrt(estimate.accuracy_se**2 + luck))
        share = np.mean(
            [int(one.judgement.probabilities[one.row].argmax()) != int(w.probabilities[0].argmax())
             for one, w in zip(served.answers, served.whole, strict=True)]
        )  # fmt: skip
        differs.append((estimate.disagreement - share) / estimate.disagreement_se)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / sqrt(runs)
    assert abs(np.mean(differs)) < 3 * np.std(differs) / sqrt(runs)
    assert 0.7 < np.std(standardised) < 1.15
    assert 0.7 < np.std(differs) < 1.15


def test_the_predicted_accuracy_is_the_mean_of_everything_served():
    served = traffic(np.random.default_rng(2), 400)
    estimate = audit(auditor(0.0), served)
    assert estimate.served == 400
    assert estimate.predicted == pytest.approx(np.mean([one.confidence for one in served.answers]))
    assert (estimate.rows, estimate.accuracy, estimate.disagreement) == (0, None, None)
    assert estimate.covered == pytest.approx(np.mean([one.stage == 1 for one in served.answers]))


def test_a_cheap_stage_that_became_worse_is_seen_and_a_good_one_is_not_blamed():
    random = np.random.default_rng(4)
    one = auditor(0.06, window_s=100.0)
    before = audit(one, traffic(random, 12_000), seconds=100.0)
    assert abs(before.accuracy - before.predicted) < 3 * before.accuracy_se
    after = audit(one, traffic(random, 12_000, shift=0.12), now=100.0, seconds=120.0)
    assert after.predicted == pytest.approx(before.predicted, abs=0.01)  # it does not know
    assert after.predicted - after.accuracy > 4 * after.accuracy_se
    assert after.accuracy == pytest.approx(before.predicted - 0.7 * 0.12, abs=3 * after.accuracy_se + 0.01)
    assert after.disagreement > before.disagreement + 3 * before.disagreement_se


def test_every_row_before_the_last_stage_is_drawn_equally_often():
    served = traffic(np.random.default_rng(5), 60)
    times = np.zeros(60)
    runs = 1500
    for seed in range(runs):
        one = auditor(0.05, seed)
        times += [one.drawn(each) for each in served.answers]
    dear = np.array([each.stage == 1 for each in served.answers])
    assert not times[dear].any()
    scatter = (times[~dear] - 0.05 * runs) / sqrt(0.05 * 0.95 * runs)
    assert abs(scatter).max() < 4
    assert abs(scatter.mean()) < 3 / sqrt((~dear).sum())


def test_nothing_is_audited_without_spare_capacity_and_degraded_answers_are_not_spoken_for():
    """Half of the time there is load: then answers are degraded, and nobody checks them."""
    random = np.random.default_rng(6)
    calm, busy = traffic(random, 4000), traffic(random, 4000, degraded=1.0)
    one = auditor(0.05)
    audit(one, calm, seconds=100.0)
    rows = one.estimate(100.0).rows
    estimate = audit(one, busy, now=100.0, seconds=100.0, spare=lambda row: False)
    assert estimate.rows == rows
    degraded = np.mean([each.degraded for each in calm.answers + busy.answers])
    assert estimate.covered == pytest.approx(1 - degraded)


def test_load_that_comes_and_goes_does_not_bias_the_estimate():
    random, errors = np.random.default_rng(7), []
    for seed in range(100):
        served = traffic(random, 600, shift=0.1)
        estimate = audit(auditor(0.5, seed), served, spare=lambda row: row // 100 % 3 == 0)
        errors.append(estimate.accuracy - served.right.mean())
    assert abs(np.mean(errors)) < 3 * np.std(errors) / 10


def test_audits_begin_no_closer_together_than_the_gap():
    one = auditor(1.0, gap_s=0.5)
    begun = [at for at in np.arange(0, 10, 0.125) if one.wants(at, True)]
    assert begun == list(np.arange(0, 10, 0.5))
    assert not one.wants(10.5, False)
    assert one.wants(10.5, True)  # what was not begun has no gap behind it


def test_a_few_audits_that_all_agree_claim_no_certainty():
    one = auditor(1.0)
    sure = judgement([0.8, 0.1, 0.1], 0.9)
    for _ in range(5):
        one.drawn(answer(0, sure))
        one.observe(0.0, answer(0, sure), judgement([0.8, 0.1, 0.1], 0.9))
    estimate = one.estimate(0.0)
    assert (estimate.accuracy, estimate.disagreement) == (pytest.approx(0.9), 0.0)
    assert estimate.accuracy_se == estimate.disagreement_se == pytest.approx(1 / 5)


def test_the_estimate_of_a_few_answers_by_hand():
    """Six at the cheap stage of which two are audited, two degraded there and not audited, two at the last."""
    one = auditor(0.0)
    cheap, dear = judgement([0.8, 0.1, 0.1], 0.7), judgement([0.9, 0.05, 0.05], 0.9)
    for served in [answer(0, cheap)] * 6 + [answer(0, cheap, degraded=True)] * 2 + [answer(1, dear)] * 2:
        one.drawn(served)
    one.observe(0.0, answer(0, cheap), dear)
    one.observe(0.0, answer(0, cheap), judgement([0.05, 0.9, 0.05], 0.8))
    estimate = one.estimate(0.0)
    assert (estimate.served, estimate.rows) == (10, 2)
    assert estimate.predicted == pytest.approx(0.74)
    assert estimate.covered == pytest.approx(0.8)
    off = np.array([0.9 - 0.7, 0.2 / 2 - 0.7])
    assert estimate.accuracy == pytest.approx(0.74 + 0.6 * off.mean())
    assert estimate.accuracy_se == pytest.approx(0.6 * sqrt((((off - off.mean()) ** 2).sum() + 1) / 4))
    assert estimate.disagreement == pytest.approx(0.6 * 0.5 / 0.8)
    assert estimate.disagreement_se == pytest.approx(0.6 * sqrt(1.5 / 4) / 0.8)


def test_the_window_forgets_and_holds_a_bounded_number_of_slices():
    random = np.random.default_rng(8)
    one = auditor(0.5, window_s=60.0, slices=6)
    for minute in range(20):
        audit(one, traffic(random, 120, shift=0.3 if minute == 0 else 0.0), now=60.0 * minute, seconds=60.0)
        for second in range(60):
            one.estimate(60.0 * (minute + 1) + second / 60)
    assert len(one._slices) <= 8
    estimate = one.estimate(1200.0)
    assert estimate.served <= 120 * 7 / 6 + 1
    one.estimate(5000.0)
    assert one.estimate(5061.0) == Estimate(0, None, 0, 0.0, None, None, None, None)


def test_what_the_whole_ladder_says_of_a_label():
    whole = judgement([0.7, 0.2, 0.1], 0.85)
    assert served_is_right(0, whole) == (0.85, True)
    assert served_is_right(1, whole) == (pytest.approx(0.15 * 2 / 3), False)
    assert served_is_right(2, whole) == (pytest.approx(0.15 / 3), False)
    assert served_is_right(1, judgement([1.0, 0.0, 0.0], 0.99)) == (0.0, False)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="share"):
        auditor(share)
