"""Any-time predictors and halting: worked numbers, and what each promises about later exits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from cascade.calibration.anytime import act, caching_anytime, ponder, ponder_divergence, product_anytime, violations
from cascade.errors import ConfigError

THREE_EXITS = np.array([[[2, 1, -1], [1, 3, 0.5], [0.5, 4, -2]]])

exits = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-9, 9))


def overthinking(rows: int, seed: int):
    """Logits of four exits that drift at random, and labels the last exit favours."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, rows)
    logits = random.normal(1.0, 2.0, size=(rows, 4, 5))
    logits[np.arange(rows), :, labels] += np.array([1.0, 2.0, 3.0, 4.0])
    return logits, labels


def test_product_of_three_exits() -> None:
    expected = [[2 / 3, 1 / 3, 0], [0.4, 0.6, 0], [0.076923, 0.923077, 0]]
    assert product_anytime(THREE_EXITS)[0] == pytest.approx(np.array(expected), abs=5e-7)


def test_where_the_product_vanishes_the_exit_answers_alone() -> None:
    logits = np.array([[[1.0, -1.0], [-2.0, 1.0], [3.0, 1.0]]])
    product = product_anytime(logits)[0]
    assert product[0] == pytest.approx([1, 0])
    assert product[1:] == pytest.approx(softmax(logits[0, 1:], axis=1))


def test_hundreds_of_exits_do_not_overflow() -> None:
    product = product_anytime(np.tile([1e5, 2e5, -1.0], (1, 400, 1)))
    assert product[0, -1] == pytest.approx([0, 1, 0])


@settings(max_examples=100, deadline=None)
@given(exits)
def test_a_class_once_out_stays_out(logits) -> None:
    product = product_anytime(logits)
    assert product.sum(axis=2) == pytest.approx(np.ones(product.shape[:2]))
    out = np.logical_or.accumulate(logits <= 0, axis=1)
    some_left = ~out.all(axis=2, keepdims=True)
    assert np.all(product[out & some_left] == 0)


@settings(max_examples=100, deadline=None)
@given(exits)
def test_the_cached_answer_is_the_surest_so_far(logits) -> None:
    probs = softmax(logits, axis=2)
    cached = caching_anytime(probs)
    for row, served in zip(probs, cached, strict=True):
        for exit_ in range(len(row)):
            surest = row[: exit_ + 1].max(axis=1).argmax()
            assert served[exit_].tolist() == row[surest].tolist()


def test_violations_count_rows_whose_truth_falls_between_any_two_exits() -> None:
    truth = np.array([[0.2, 0.5, 0.9], [0.9, 0.8, 0.7], [0.3, 0.9, 0.4], [0.5, 0.5, 0.5]])
    probs = np.stack([truth, 1 - truth], axis=2)
    labels = np.zeros(4, dtype=int)
    assert [violations(probs, labels, tau) for tau in (0.0, 0.15, 0.25, 0.6)] == [0.5, 0.5, 0.25, 0.0]


def test_anytime_predictors_break_the_promise_less_often() -> None:
    """One draw of 4,000 rows."""
    logits, labels = overthinking(4000, seed=1)
    plain = softmax(logits, axis=2)
    broken = violations(plain, labels, 0.1)
    assert broken > 0.3
    assert violations(caching_anytime(plain), labels, 0.1) < 0.8 * broken
    assert violations(product_anytime(logits), labels, 0.1) < 0.8 * broken


class TestHalting:
    def test_act(self) -> None:
        halted = act(np.array([0.1, 0.3, 0.4, 0.5]))
        assert halted.weights == pytest.approx([0.1, 0.3, 0.4, 0.2])
        assert halted.cost == pytest.approx(4.2)

    def test_act_stops_early_or_at_the_last_step(self) -> None:
        early = act(np.array([0.5, 0.495, 0.9]))
        assert early.weights == pytest.approx([0.5, 0.5, 0.0])
        assert early.cost == pytest.approx(2.5)
        never = act(np.array([0.1, 0.1]))
        assert never.weights == pytest.approx([0.1, 0.9])
        assert never.cost == pytest.approx(2.9)

    def test_ponder(self) -> None:
        halted = ponder(np.array([0.2, 0.5, 0.5, 0.9]))
        assert halted.weights == pytest.approx([0.2, 0.4, 0.2, 0.2])
        assert halted.cost == pytest.approx(2.4)
        assert ponder_divergence(np.array([0.2, 0.5, 0.5, 0.9]), 0.4) == pytest.approx(0.160465, abs=5e-7)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: product_anytime(np.ones((2, 3))), "logits: expected"),
        (lambda: caching_anytime(np.full((1, 2, 3), np.nan)), "probs: expected finite"),
        (lambda: violations(np.ones((2, 1, 2)), np.zeros(3, dtype=int), 0.1), "labels: expected one for each of 2"),
        (lambda: act(np.array([0.5, 1.5])), "halting: expected"),
        (lambda: ponder_divergence(np.array([0.5]), 1.0), "prior: expected"),
    ],
)
def test_what_cannot_be_is_refused(make, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()
