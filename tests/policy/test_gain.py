"""From evidence to gains: the calibrated reading of a stage's logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from cascade.policy.gain import LEAST, Curve, Earlier, Judge, LogisticGain

LOGITS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-1024, 1024, width=16),
)
RISING = Curve.of([0.2, 0.6, 1.0], [0.1, 0.5, 0.9])
FALLING = Curve.of([0.25, 1.0], [0.6, -0.1])


@given(LOGITS, st.floats(0.05, 20))
def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(logits, temperature):
    before = logits.copy()
    judgement = Judge(temperature, RISING, (FALLING, RISING))(logits)
    expected = softmax(logits.astype(np.float64) / temperature, axis=1)
    np.testing.assert_allclose(judgement.probabilities, expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(judgement.confidence, expected.max(axis=1), rtol=1e-12)
    np.testing.assert_allclose(judgement.p_correct, np.interp(judgement.confidence, RISING.x, RISING.y))
    np.testing.assert_allclose(judgement.gains[:, 0], np.interp(judgement.confidence, FALLING.x, FALLING.y))
    np.testing.assert_allclose(judgement.gains[:, 1], np.interp(judgement.confidence, RISING.x, RISING.y))
    assert len(judgement) == len(logits)
    assert (logits == before).all()


def test_logits_far_beyond_exp_do_not_overflow():
    judgement = Judge(0.01, RISING, ())(np.array([[1e30, -1e30], [-1e30, -1e30]]))
    assert judgement.probabilities.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_whole_number_logits_are_read_too():
    judgement = Judge(2.0, RISING, ())(np.array([[2, 0]]))
    np.testing.assert_allclose(judgement.probabilities, softmax([[1.0, 0.0]], axis=1))


def test_the_last_stage_has_no_gains():
    assert Judge(1.0, RISING, ())(np.zeros((3, 4))).gains.shape == (3, 0)


def test_an_empty_batch_is_judged_as_empty():
    judgement = Judge(1.0, RISING, (FALLING,))(np.zeros((0, 4)))
    assert len(judgement) == 0
    assert judgement.gains.shape == (0, 1)


def test_a_curve_is_linear_between_its_knots_and_constant_outside_them():
    curve = Curve.of([1, 2, 4], [0, 1, -1])
    assert curve(np.array([-5.0, 1.0, 1.5, 2.0, 3.0, 4.0, 99.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 0.0, -1.0, -1.0]


def test_a_curve_of_one_knot_is_a_constant():
    assert Curve.of([0.5], [0.25])(np.array([0.0, 0.5, 1.0])).tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_higher_temperature_never_makes_a_row_more_confident(temperature):
    logits = np.random.default_rng(0).normal(size=(64, 10)) * 4
    cool, warm = (Judge(t, RISING, ())(logits).confidence for t in (temperature, 2 * temperature))
    assert (warm <= cool + 1e-12).all()


def test_the_pool_multiplies_the_probabilities_of_the_stages_passed():
    logits, weight = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), 0.4
    earlier = Earlier(np.array([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]), np.array([0.5, 0.9]))
    judge = Judge(2.0, RISING, (), history_weight=weight)
    assert judge.looks_back
    expected = softmax(logits / 2.0 + weight * np.log(np.maximum(earlier.probabilities, LEAST)), axis=1)
    np.testing.assert_allclose(judge(logits, earlier).probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(judge(logits).probabilities, softmax(logits / 2.0, axis=1), rtol=1e-12)


def test_an_earlier_answer_is_kept_only_where_it_is_more_probably_right():
    earlier = Earlier(np.array([[0.1, 0.9], [0.1, 0.9]]), np.array([0.8, 0.2]))
    judge = Judge(1.0, RISING, (FALLING,), recall=RISING)
    judgement = judge(np.log([[0.6, 0.4], [0.6, 0.4]]), earlier)
    assert judgement.recalled.tolist() == [True, False]
    assert judgement.probabilities.argmax(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(judgement.confidence, [0.8, 0.5])
    np.testing.assert_allclose(judgement.gains[:, 0], FALLING(np.array([0.8, 0.5])))
    assert judge(np.zeros((1, 2))).recalled is None, "there is nothing to recall at the first stage"


def test_a_learned_gain_is_a_curve_over_the_difference_of_two_probabilities():
    bent = Curve.of([-1.0, 0.0, 1.0], [-0.5, 0.0, 1.0])
    gain = LogisticGain(np.array([1.0, 2.0, 0.0]), np.array([0.0, 0.0, -1.0]), bent)
    features = np.array([[0.5, 0.0], [800.0, 1.0], [-1.0, -800.0]])
    scores = np.column_stack([1 + 2 * features[:, 0], -features[:, 1], np.zeros(3)])
    expected = softmax(scores, axis=1)
    np.testing.assert_allclose(gain(features), bent(expected[:, 0] - expected[:, 1]), rtol=1e-12)


def test_learned_gains_read_the_evidence_and_curves_the_confidence():
    weights = np.zeros(1 + 4 + 2)
    weights[4] = 3.0  # agreement with the stage before
    judge = Judge(1.0, RISING, (FALLING, LogisticGain(weights, np.zeros(7), Curve.of([-1, 1], [-1, 1]))))
    assert judge.looks_back
    assert not Judge(1.0, RISING, (FALLING,)).looks_back
    earlier = Earlier(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0.5, 0.5]))
    gains = judge(np.log([[0.8, 0.2], [0.8, 0.2]]), earlier).gains
    np.testing.assert_allclose(gains[:, 0], FALLING(np.array([0.8, 0.8])))
    agree = softmax([3.0, 0.0, 0.0])
    np.testing.assert_allclose(gains[:, 1], [agree[0] - agree[1], 0.0], atol=1e-12)


def test_a_gain_that_only_rounding_makes_is_none():
    steep = Curve.of([0.5, 0.75 + 1e-9], [1.0, 0.0])
    judge = Judge(1.0, RISING, (steep,))
    assert steep(np.array([0.75]))[0] > 0
    assert judge(np.log([[0.75, 0.25], [0.6, 0.4]])).gains[:, 0].tolist() == [0.0, pytest.approx(0.6)]
