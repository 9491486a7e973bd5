"""The Adaptive Oracle: worked numbers, exactness of its recursions, and bounds that must never be broken."""

import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascade.calibration.oracle import Oracle, measured_alpha
from cascade.errors import ConfigError

_ROWS = ("111", "111", "101", "110", "011", "011", "001", "010", "000", "000")
TEN_INPUTS = np.array([[c == "1" for c in row] for row in _ROWS])
COST = np.array([1.0, 4.0, 16.0])


def random_joint(random: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Correctness of 2 to 6 dependent states on up to 300 inputs, and their costs."""
    states, rows = int(random.integers(2, 7)), int(random.integers(5, 300))
    ease = random.normal(size=(rows, 1))
    right = random.normal(size=(rows, states)) + random.normal(size=states) + random.uniform(0, 3) * ease > 0
    return right, np.cumsum(random.exponential(size=states) + 0.01)


class TestTenInputs:
    oracle = Oracle.exact(TEN_INPUTS, COST)

    def test_shares_solved(self) -> None:
        assert TEN_INPUTS.mean(axis=0) == pytest.approx([0.4, 0.6, 0.6])
        assert self.oracle.solved == pytest.approx([0.4, 0.7, 0.8])
        assert measured_alpha(TEN_INPUTS) == pytest.approx([0.75, 5 / 7])

    def test_unsolved_inputs_use_the_cheapest_state(self) -> None:
        assert self.oracle.router_cost == pytest.approx(3.4)
        assert self.oracle.sequential_cost == pytest.approx(4.2)
        assert self.oracle.exit_shares == pytest.approx([0.6, 0.3, 0.1])
        assert self.oracle.router_gain == pytest.approx(16 / 3.4)
        assert self.oracle.sequential_gain == pytest.approx(16 / 4.2)

    def test_unsolved_inputs_use_the_final_state_where_asked(self) -> None:
        final = Oracle.exact(TEN_INPUTS, COST, fallback="final")
        assert final.router_cost == pytest.approx(6.4)
        assert final.sequential_cost == pytest.approx(8.2)
        assert final.exit_shares == pytest.approx([0.4, 0.3, 0.3])
        assert final.accuracy == pytest.approx(0.8)

    def test_nested(self) -> None:
        nested = Oracle.nested(TEN_INPUTS.mean(axis=0), COST)
        assert nested.router_cost == pytest.approx(1.6)
        assert nested.accuracy == pytest.approx(0.6)

    def test_router_frontier(self) -> None:
        costs, accuracies = self.oracle.frontier(sequential=False)
        assert costs == pytest.approx([1.0, 1.9, 3.4])
        assert accuracies == pytest.approx([0.4, 0.7, 0.8])
        assert self.oracle.accuracy_at(2.65, sequential=False) == pytest.approx(0.75)
        assert self.oracle.cost_at(0.75, sequential=False) == pytest.approx(2.65)

    def test_sequential_frontier_pays_every_state_on_the_way(self) -> None:
        costs, _ = self.oracle.frontier(sequential=True)
        assert costs == pytest.approx([1.0, 1 + 0.3 * 4, 1 + 0.3 * 4 + 0.1 * 20])

    def test_what_lies_outside_of_the_frontier(self) -> None:
        assert self.oracle.accuracy_at(np.array([0.5, 100.0]), sequential=True) == pytest.approx([0.4, 0.8])
        assert self.oracle.cost_at(0.1, sequential=True) == 1.0
        assert self.oracle.cost_at(0.8, sequential=True) == pytest.approx(4.2)
        assert self.oracle.cost_at(0.81, sequential=True) == np.inf


@pytest.mark.parametrize(
    ("alpha", "solved", "router", "gain", "sequential"),
    [
        (1.0, [0.6, 0.7, 0.8, 0.85], 4.05, 9.8765, 5.25),
        (0.95, [0.6, 0.73, 0.8365, 0.891825], 4.376175, 9.1404, 5.706725),
        (0.9, [0.6, 0.76, 0.876, 0.9376], 4.7664, 8.3921, 6.2528),
    ],
)
def test_constant_alpha_of_four_states(
    alpha: float, solved: list[float], router: float, gain: float, sequential: float
) -> None:
    oracle = Oracle.constant_alpha((0.6, 0.7, 0.8, 0.85), (1, 3, 10, 40), alpha)
    assert oracle.solved == pytest.approx(solved)
    assert oracle.router_cost == pytest.approx(router)
    assert oracle.router_gain == pytest.approx(gain, abs=5e-5)
    assert oracle.sequential_cost == pytest.approx(sequential)


class TestRandomJoints:
    """400 random joint distributions."""

    joints: ClassVar = [random_joint(np.random.default_rng(seed)) for seed in range(400)]

    def test_measured_alpha_makes_the_recursion_exact(self) -> None:
        for right, cost in self.joints:
            alpha = np.nan_to_num(measured_alpha(right), nan=1.0)
            derived = Oracle.constant_alpha(right.mean(axis=0), cost, alpha)
            exact = Oracle.exact(right, cost)
            assert derived.solved == pytest.approx(exact.solved, abs=1e-12)
            assert derived.router_cost == pytest.approx(exact.router_cost, rel=1e-12)

    def test_nested_models_never_promise_more_than_the_exact_frontier(self) -> None:
        strictly_below = 0
        for right, cost in self.joints:
            exact, nested = Oracle.exact(right, cost), Oracle.nested(right.mean(axis=0), cost)
            for sequential, paid in ((False, nested.router_cost), (True, nested.sequential_cost)):
                slack = float(exact.accuracy_at(paid, sequential=sequential)) - nested.accuracy
                assert slack >= -1e-12
                strictly_below += slack > 1e-3
        assert strictly_below > 200

    def test_the_cost_is_that_of_the_first_right_state_of_every_row(self) -> None:
        for right, cost in self.joints:
            first = np.where(right.any(axis=1), right.argmax(axis=1), 0)
            oracle = Oracle.exact(right, cost)
            assert oracle.router_cost == pytest.approx(cost[first].mean())
            assert oracle.sequential_cost == pytest.approx(np.cumsum(cost)[first].mean())

    def test_accuracy_beyond_the_last_state_is_what_it_breaks(self) -> None:
        for right, cost in self.joints:
            broken = (right[:, :-1].any(axis=1) & ~right[:, -1]).mean()
            assert Oracle.exact(right, cost).accuracy == pytest.approx(right[:, -1].mean() + broken)


@pytest.mark.parametrize("sequential", [False, True])
def test_no_assignment_of_inputs_to_states_is_above_the_frontier(sequential: bool) -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        right, cost = random.random((5, 3)) < 0.5, np.cumsum(random.exponential(size=3) + 0.05)
        oracle = Oracle.exact(right, cost)
        paid = np.cumsum(cost) if sequential else cost
        best = 0.0
        for states in itertools.product(range(3), repeat=5):
            chosen = np.array(states)
            accuracy = right[np.arange(5), chosen].mean()
            limit = float(oracle.accuracy_at(paid[chosen].mean(), sequential=sequential))
            assert accuracy <= limit + 1e-12
            best = max(best, float(accuracy))
        assert best == pytest.approx(oracle.accuracy)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1))
def test_impossible_alphas_are_clipped(accuracy: list[float], alpha: float) -> None:
    """A constant alpha on a fine ladder asks for more than everything; what is left is a distribution."""
    oracle = Oracle.constant_alpha(accuracy, np.arange(1.0, len(accuracy) + 1), alpha)
    assert np.all(np.diff(oracle.solved) >= 0)
    assert max(accuracy) - 1e-12 <= oracle.accuracy <= 1.0
    assert oracle.exit_shares.sum() == pytest.approx(1.0)


def test_independent_guessers_look_like_an_oracle() -> None:
    right = np.array(list(itertools.product([False, True], repeat=6)))
    assert Oracle.exact(right, np.arange(1.0, 7.0)).accuracy == pytest.approx(1 - 0.5**6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Oracle.exact(TEN_INPUTS, (1, 4)), "cost: expected one for each of 3"),
        (lambda: Oracle.exact(TEN_INPUTS, (1, 4, 4)), "rising"),
        (lambda: Oracle.exact(TEN_INPUTS, (0, 4, 8)), "positive"),
        (lambda: Oracle.exact(TEN_INPUTS[:0], COST), "at least one row"),
        (lambda: Oracle.exact(TEN_INPUTS[0], COST), "shape"),
        (lambda: Oracle.nested((0.5, 1.2), (1, 2)), "accuracy: expected shares"),
        (lambda: Oracle.constant_alpha((0.5, 0.6), (1, 2), np.nan), "alpha: expected shares"),
        (lambda: Oracle.constant_alpha((0.5, 0.6), (1, 2), (0.5, 0.5)), "alpha: expected one value or 1"),
    ],
)
def test_what_cannot_be_is_refused(make, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()
