"""What clients that watch see: the rules of the server, row by row, agree with the formulas over whole arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from cascade.calibration.anytime import caching_anytime, product_anytime, violations
from cascade.calibration.fitting import fit
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.watching import fit_product, scores, seen_by_rule, steadily
from cascade.errors import TableError
from cascade.policy.anytime import Product, best_so_far, centred, plain, steady
from cascade.policy.gain import Curve, Judgement

STRAIGHT = Curve.of([0, 1], [0, 1])
exits = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 5)), elements=st.floats(-9, 9))


def judgement(logits, confidence=None):
    """One stage's judgement of rows, [N, C] scores."""
    probabilities = softmax(logits, axis=1)
    sure = probabilities.max(axis=1) if confidence is None else confidence
    return Judgement(probabilities, sure, sure, np.zeros((len(logits), 0)), evidence=logits)


def shown(rule, logits, confidence=None):
    """What a rule shows of every row after each stage: probabilities [N, M, C] and confidence [N, M]."""
    rows, stages, _ = logits.shape
    seen = []
    for row in range(rows):
        before, of_row = None, []
        for stage in range(stages):
            sure = None if confidence is None else confidence[:, stage]
            before = rule(before, stage, judgement(logits[:, stage], sure), row)
            of_row.append(before)
        seen.append(of_row)
    return np.array([[s.probabilities for s in r] for r in seen]), np.array([[s.confidence for s in r] for r in seen])


@settings(max_examples=150, deadline=None)
@given(exits, st.data())
def test_the_best_so_far_is_the_surest_exit_so_far(logits, data):
    confidence = data.draw(hnp.arrays(np.float64, logits.shape[:2], elements=st.sampled_from([0.25, 0.5, 0.75, 1.0])))
    probabilities, sure = shown(best_so_far, logits, confidence)
    assert np.array_equal(probabilities, caching_anytime(softmax(logits, axis=2), confidence))
    assert np.array_equal(sure, np.maximum.accumulate(confidence, axis=1))


@settings(max_examples=150, deadline=None)
@given(exits, st.data())
def test_a_steady_answer_is_the_surest_since_the_label_last_changed(logits, data):
    confidence = data.draw(hnp.arrays(np.float64, logits.shape[:2], elements=st.sampled_from([0.25, 0.5, 0.75, 1.0])))
    own, labels = softmax(logits, axis=2), softmax(logits, axis=2).argmax(axis=2)
    probabilities, sure = shown(steady, logits, confidence)
    kept = steadily(labels, confidence)
    assert np.array_equal(probabilities, np.take_along_axis(own, kept[:, :, None], axis=1))
    assert np.array_equal(probabilities.argmax(axis=2), labels)
    for row, (of_row, shown_sure) in enumerate(zip(labels, sure, strict=True)):
        for stage in range(len(of_row)):
            since = max((k for k in range(1, stage + 1) if of_row[k] != of_row[k - 1]), default=0)
            assert shown_sure[stage] == confidence[row, since : stage + 1].max()


@settings(max_examples=150, deadline=None)
@given(exits)
def test_a_product_made_step_by_step_is_the_product(logits):
    probabilities, sure = shown(Product([STRAIGHT] * logits.shape[1]), logits)
    assert probabilities == pytest.approx(product_anytime(centred(logits)), abs=1e-12)
    assert sure == pytest.approx(probabilities.max(axis=2), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(exits, st.floats(0.1, 10.0), st.floats(-5, 5))
def test_a_product_sees_neither_level_nor_scale_of_scores(logits, scale, level):
    either = product_anytime(centred(logits))
    # Where nothing is left the softmax answers alone, and that does see the scale.
    left = (centred(logits) > 0).cumprod(axis=1).any(axis=2)
    changed = product_anytime(centred(scale * (logits + level)))
    clear = np.abs(centred(logits)).min(axis=2) > 1e-6  # a score that is its mean may fall on either side by rounding
    sound = left & np.logical_and.accumulate(clear, axis=1)
    assert changed[sound] == pytest.approx(either[sound], abs=1e-6)


def test_every_stages_own_answer_is_shown_plainly():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    probabilities, _ = shown(plain, logits)
    assert np.array_equal(probabilities, softmax(logits, axis=2))


def test_a_later_answer_must_be_surer_to_take_the_place_of_one_that_is_shown():
    logits = np.zeros((1, 3, 2))
    logits[0, :, 0] = [1.0, -1.0, 2.0]
    probabilities, sure = shown(best_so_far, logits, np.array([[0.6, 0.6, 0.61]]))
    assert probabilities.argmax(axis=2).tolist() == [[0, 0, 0]]
    assert sure.tolist() == [[0.6, 0.6, 0.61]]


# -- tables ------------------------------------------------------------------------------------------------------------


def table_of(rows: int = 1200, seed: int = 0, probs: bool = True) -> OutcomeTable:
    """Three stages that see the same rows ever more clearly, four classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    truth = 2.0 * np.eye(4)[labels]
    arrays: dict[str, np.ndarray] = {
        "stages": np.array(["a", "b", "c"]),
        "cost": np.array([1.0, 10.0, 100.0]),
        "cost_unit": np.array("MAC"),
        "labels": labels,
    }
    for stage, noise in (("a", 2.0), ("b", 1.2), ("c", 0.7)):
        seen = softmax(truth + random.normal(0, noise, (rows, 4)), axis=1)
        if probs or stage != "b":
            arrays[f"probs/{stage}"] = seen
        else:
            arrays[f"prediction/{stage}"], arrays[f"score/{stage}"] = seen.argmax(axis=1), seen.max(axis=1)
    return OutcomeTable.from_arrays(arrays)


@pytest.fixture(scope="module")
def fitted():
    table = table_of()
    return table, fit(table, dict.fromkeys(table.stages, "0" * 64), ladder="table")


def test_what_is_seen_of_a_table_is_what_the_rules_show(fitted):
    _, calibration = fitted
    table = table_of(60, seed=1)
    curves = fit_product(table, np.full(60, 2))
    seen = seen_by_rule(table, calibration, curves)
    judged = judge_table(table, calibration)
    assert np.array_equal(seen["plain"].right, judged.served)
    assert np.array_equal(seen["plain"].confidence, judged.p_correct)
    assert np.array_equal(seen["steady"].right, judged.served)
    kept = seen["best_so_far"]
    assert (np.diff(kept.confidence, axis=1) >= 0).all()
    assert np.array_equal(kept.probabilities, caching_anytime(seen["plain"].probabilities, judged.p_correct))
    assert seen["product"].probabilities == pytest.approx(product_anytime(scores(table)))
    assert np.array_equal(seen["product"].right, seen["product"].probabilities.argmax(axis=2) == table.labels[:, None])


def test_rows_that_have_stopped_fall_no_further(fitted):
    table, calibration = fitted
    seen = seen_by_rule(table, calibration)["plain"]
    everywhere = seen.violations(table.labels, 0.1)
    assert everywhere == violations(seen.probabilities, table.labels, 0.1) > 0
    walked = judge_table(table, calibration).exits([0.0, 0.05, 0.05])
    assert 0 < seen.violations(table.labels, 0.1, walked) < everywhere
    assert seen.violations(table.labels, 0.1, np.zeros_like(walked)) == 0


def test_the_confidence_of_products_is_the_share_of_them_that_are_right(fitted):
    table, calibration = fitted
    fresh = table_of(4000, seed=2)
    everyone = np.full(table.rows, 2)
    product = seen_by_rule(fresh, calibration, fit_product(table, everyone))["product"]
    assert product.confidence.mean(axis=0) == pytest.approx(product.right.mean(axis=0), abs=0.03)
    assert seen_by_rule(fresh, calibration)["product"].confidence is None


def test_stages_that_few_rows_reach_are_fitted_on_all(fitted):
    table, _ = fitted
    nobody = fit_product(table, np.zeros(table.rows, dtype=int))
    everyone = fit_product(table, np.full(table.rows, 2))
    assert [curve.y.tolist() for curve in nobody] == [curve.y.tolist() for curve in everyone]


def test_a_table_without_probabilities_cannot_be_multiplied():
    with pytest.raises(TableError, match="probs/b"):
        scores(table_of(probs=False))
