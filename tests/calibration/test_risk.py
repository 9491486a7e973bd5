"""Tests and bounds against worked numbers, against exact enumeration, and in simulations with their trials stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cascade.calibration.judged import JudgedTable, price_path
from cascade.calibration.risk import (
    binomial_p,
    clopper_pearson,
    covering_losses,
    fixed_sequence,
    hoeffding_bentkus_p,
    hoeffding_p,
    pareto_order,
    pareto_test,
    price_families,
    rows_needed,
    simultaneous_bounds,
)
from cascade.errors import ConfigError
from tests.calibration.judged_cases import difficulty_ladder

levels = st.floats(0.005, 0.6)
Floats = NDArray[np.float64]


def most(trials: int, delta: float) -> int:
    """Failures among so many trials that a promise of delta exceeds with probability 0.001 only."""
    return int(stats.binom.ppf(0.999, trials, delta))


# -- p-values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "rows", "losses", "p"),
    [
        (binomial_p, 1000, 30, 1.277068e-3),
        (hoeffding_bentkus_p, 1000, 30, 3.471431e-3),
        (hoeffding_p, 1000, 30, 7.564450e-3),
        (binomial_p, 500, 15, 1.985838e-2),
        (hoeffding_bentkus_p, 500, 15, 5.398067e-2),
    ],
)
def test_worked_p_values_for_a_risk_of_five_percent(test, rows, losses, p):
    assert float(test(rows, losses, 0.05)) == pytest.approx(p, rel=5e-7)


@pytest.mark.parametrize("test", [binomial_p, hoeffding_bentkus_p, hoeffding_p])
@given(rows=st.integers(1, 300), max_loss=levels, delta=st.floats(0.01, 0.5))
@settings(max_examples=60, deadline=None)
def test_a_p_value_is_small_no_oftener_than_it_says(test, rows, max_loss, delta):
    losses = np.arange(rows + 1)
    fooled = test(rows, losses, max_loss) <= delta
    assert stats.binom.pmf(losses, rows, max_loss)[fooled].sum() <= delta * (1 + 1e-9)


def test_no_p_value_is_above_one_where_the_risk_is_the_level_but_for_rounding():
    found = hoeffding_bentkus_p(200, np.arange(201), 0.005000000000000001)
    assert found.max() == 1.0
    assert np.all(np.diff(found) >= 0)


@given(rows=st.integers(1, 500), max_loss=levels, data=st.data())
@settings(max_examples=100, deadline=None)
def test_p_values_rise_with_losses_and_the_binomial_is_the_smallest(rows, max_loss, data):
    losses = np.arange(rows + 1)
    exact, mixed = binomial_p(rows, losses, max_loss), hoeffding_bentkus_p(rows, losses, max_loss)
    assert np.all(np.diff(exact) >= 0)
    assert np.all(np.diff(mixed) >= 0)
    assert np.all(exact <= mixed + 1e-12)
    assert np.all(mixed <= 1)


def test_the_rounding_error_of_a_sum_costs_no_power():
    seven = np.array([0.7] * 10).cumsum()[-1] * (1 + 1e-12)
    assert np.ceil(seven) == 8
    assert hoeffding_bentkus_p(20, seven, 0.6) == pytest.approx(float(hoeffding_bentkus_p(20, 7, 0.6)))
    assert hoeffding_bentkus_p(2000, 7.5, 0.01) > hoeffding_bentkus_p(2000, 7, 0.01)


@pytest.mark.parametrize(
    ("call", "mentions"),
    [
        (lambda: binomial_p(0, 0, 0.1), "rows"),
        (lambda: binomial_p(10, 11, 0.1), "losses must lie between 0 and 10"),
        (lambda: binomial_p(10, -1, 0.1), "losses"),
        (lambda: binomial_p(10, 1, 0.0), "max_loss"),
        (lambda: hoeffding_bentkus_p(10, 1, 1.0), "max_loss"),
        (lambda: clopper_pearson(10, 1, 1.0), "delta"),
        (lambda: rows_needed(0.01, 1.0), "confidence"),
        (lambda: rows_needed(0.0, 0.9), "max_loss"),
    ],
)
def test_arguments_out_of_range_are_named(call, mentions):
    with pytest.raises(ConfigError, match=mentions):
        call()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_worked_upper_bounds():
    assert float(clopper_pearson(500, 15, 0.05)) == pytest.approx(0.045820, abs=5e-7)
    assert float(clopper_pearson(100, 0, 0.05)) == pytest.approx(0.029513, abs=5e-7)
    assert float(clopper_pearson(100, 0, 0.05)) == pytest.approx(1 - 0.05**0.01)
    assert float(clopper_pearson(100, 100, 0.05)) == 1.0


@given(rows=st.integers(1, 2000), share=st.floats(0, 1), delta=st.floats(1e-6, 0.5))
@settings(max_examples=200, deadline=None)
def test_at_the_upper_bound_so_few_losses_are_just_unlikely(rows, share, delta):
    losses = min(int(share * rows), rows - 1)
    bound = float(clopper_pearson(rows, losses, delta))
    assert losses / rows < bound < 1
    assert stats.binom.cdf(losses, rows, bound) == pytest.approx(delta, rel=1e-6)


@given(rows=st.integers(1, 300), risk=st.floats(0.001, 0.999), delta=st.floats(0.01, 0.5))
@settings(max_examples=100, deadline=None)
def test_the_upper_bound_is_below_the_risk_no_oftener_than_it_says(rows, risk, delta):
    losses = np.arange(rows + 1)
    bounds = clopper_pearson(rows, losses, delta)
    assert np.all(np.diff(bounds) > 0)
    assert stats.binom.pmf(losses, rows, risk)[bounds < risk].sum() <= delta * (1 + 1e-9)


@pytest.mark.parametrize(
    ("max_loss", "confidence", "rows"), [(0.01, 0.9, 230), (0.05, 0.95, 59), (0.5, 0.75, 2), (0.9, 0.999, 3)]
)
def test_worked_numbers_of_rows(max_loss, confidence, rows):
    assert rows_needed(max_loss, confidence) == rows


@given(max_loss=st.floats(0.001, 0.9), delta=st.floats(0.001, 0.9))
@settings(max_examples=200, deadline=None)
def test_the_rows_needed_certify_without_a_loss_and_one_row_less_does_not(max_loss, delta):
    rows = rows_needed(max_loss, 1 - delta)
    assert binomial_p(rows, 0, max_loss) <= delta * (1 + 1e-9)
    if rows > 1:
        assert binomial_p(rows - 1, 0, max_loss) > delta * (1 - 1e-9)


# -- tests of many settings --------------------------------------------------------------------------------------------


def test_testing_stops_at_the_first_failure():
    assert fixed_sequence([0.01, 0.1, 0.11, 0.0], delta=0.1) == 2
    assert fixed_sequence([0.2, 0.0], delta=0.1) == 0
    assert fixed_sequence([0.0, 0.1], delta=0.1) == 2


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_pareto_order_is_what_brute_force_finds(pairs):
    loss, cost = np.array(pairs, dtype=np.float64).T
    order = pareto_order(loss, cost)
    beaten = [
        any((a <= x and b <= y) and ((a, b) != (x, y) or j < i) for j, (a, b) in enumerate(pairs))
        for i, (x, y) in enumerate(pairs)
    ]
    assert sorted(order) == [i for i, b in enumerate(beaten) if not b]
    assert np.all(np.diff(loss[order]) > 0)
    assert np.all(np.diff(cost[order]) < 0)


def test_the_pareto_test_takes_the_last_certified_setting():
    order = np.array([2, 0, 3, 1])
    losses = np.array([5, 0, 0, 40])
    assert pareto_test(order, 1000, losses, max_loss=0.02, delta=0.1) == 0
    assert pareto_test(order[2:], 1000, losses, max_loss=0.02, delta=0.1) is None


def test_the_price_families_reach_from_hardly_any_change_to_stopping_everything():
    judged = difficulty_ladder(rows=500)
    families = price_families(judged.cost)
    assert len(families) == 200
    assert np.all(judged.exits(families[39]) == 0)
    assert judged.exits(families[0]).mean() > 1.9
    assert price_families(judged.cost[:1]) == []


# -- losses that cover all lower prices --------------------------------------------------------------------------------

tables = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())


def any_table(seed: int, stages: int, combined: bool, rows: int = 40) -> JudgedTable:
    """Rows of arbitrary rightness and gains; where answers are combined, what is served has nothing to do with ``right``."""
    random = np.random.default_rng(seed)
    right = random.random((rows, stages)) < 0.6
    served = random.random((rows, stages)) < 0.6 if combined else right
    gains = np.triu(random.uniform(-0.3, 1, (rows, stages, stages)), k=1)
    names = tuple(f"s{k}" for k in range(stages))
    return JudgedTable(names, 3.0 ** np.arange(stages), "MAC", right, served, np.full((rows, stages), 0.5), gains)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_the_covering_loss_is_the_largest_loss_from_there_on(table):
    judged = any_table(*table)
    covering = covering_losses(judged)
    losses = np.column_stack([judged.stop_at(stage).losses for stage in range(len(judged.stages))])
    for stage in range(len(judged.stages)):
        assert np.array_equal(covering[:, stage], losses[:, stage:].any(axis=1))


@given(table=tables, data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_way_of_moving_prices_below_a_point_loses_more_than_it_covers(table, data):
    judged = any_table(*table)
    price = st.floats(0, 1)
    stages = len(judged.stages)
    top = np.array(data.draw(st.lists(price, min_size=stages, max_size=stages)))
    shares = [np.array(data.draw(st.lists(price, min_size=stages, max_size=stages))) for _ in range(3)]
    covered = covering_losses(judged)[np.arange(judged.rows), judged.exits(top)]
    worst = np.any([judged.walk(top * share).losses for share in shares], axis=0)
    assert np.all(worst <= covered), "even when the prices are chosen with the row's loss in view"


# -- the promises, simulated on a synthetic cascade --------------------------------------------------------------------

ERRORS, COST = np.array([0.9, 0.5, 0.1]), np.array([1.0, 4.0, 16.0])


def truth(vectors: list[Floats]) -> tuple[Floats, Floats]:
    """Risk and mean cost of `difficulty_ladder` at each price vector, by integration over the difficulty."""
    u = (np.arange(20_000) + 0.5) / 20_000
    right = 1 - ERRORS * u[:, None] ** 2
    gains = np.triu(right[:, None, :] - right[:, :, None], k=1)
    known = JudgedTable(("stage0", "stage1", "stage2"), COST, "MAC", right > 0.5, right > 0.5, right, gains)
    exits = [known.exits(prices) for prices in vectors]
    at = np.arange(len(u))
    risks = [(right[:, 2] * (1 - right[at, stops]) * (stops < 2)).mean() for stops in exits]
    return np.array(risks), np.array([np.cumsum(COST)[stops].mean() for stops in exits])


def losing(judged: JudgedTable, vectors: list[Floats]) -> NDArray[np.bool_]:
    """[N, G] losses of each row at each price vector."""
    return np.column_stack([judged.walk(prices).losses for prices in vectors])


@pytest.fixture(scope="module")
def stream() -> JudgedTable:
    """Fresh rows for every trial, cut from one long table."""
    return difficulty_ladder(rows=1_000_000, seed=11)


def test_along_a_path_the_test_keeps_its_promise_and_the_naive_choice_does_not(stream):
    """400 trials of 1,000 rows; risk 3 %, confidence 90 %."""
    trials, rows, max_loss, delta = 400, 1000, 0.03, 0.1
    vectors = price_path(COST, points=240)[108:175]
    risks, cost = truth(vectors)
    losses = losing(stream.select(np.arange(trials * rows)), vectors).reshape(trials, rows, -1).sum(axis=1)
    certified = np.array([fixed_sequence(binomial_p(rows, count, max_loss), delta) for count in losses])
    mixed = np.array([fixed_sequence(hoeffding_bentkus_p(rows, count, max_loss), delta) for count in losses])
    naive = np.array([np.flatnonzero(count <= max_loss * rows)[-1] for count in losses])
    assert certified.min() > 0
    assert np.sum(risks[certified - 1] > max_loss) <= most(trials, delta)
    assert np.sum(risks[mixed - 1] > max_loss) <= most(trials, delta)
    assert np.mean(risks[naive] > max_loss) > 0.35
    assert cost[naive].mean() < cost[certified - 1].mean() < cost[mixed - 1].mean() < COST.sum()


def test_taking_the_first_failing_point_breaks_the_promise_on_a_coarse_path(stream):
    """400 trials of 1,000 rows; four points, the third of which has a risk just above the target."""
    trials, rows, delta = 400, 1000, 0.1
    vectors = price_path(COST, points=80)[32:68:9]
    risks, _ = truth(vectors)
    max_loss = 0.98 * risks[2]
    losses = losing(stream.select(np.arange(trials * rows)), vectors).reshape(trials, rows, -1).sum(axis=1)
    certified = np.array([fixed_sequence(binomial_p(rows, count, max_loss), delta) for count in losses])
    assert np.sum(risks[certified - 1] > max_loss) <= most(trials, delta)
    assert np.mean(risks[np.minimum(certified, len(risks) - 1)] > max_loss) > 0.8


def test_pareto_testing_keeps_its_promise_at_less_cost_than_testing_every_setting(stream):
    """200 trials of 2,000 rows; 169 price vectors, risk 3 %, confidence 90 %."""
    trials, rows, max_loss, delta = 200, 2000, 0.03, 0.1
    steps = np.geomspace(0.03, 0.6, 13)
    vectors = [np.array([0.0, a, b]) for a in steps for b in steps]
    risks, cost = truth(vectors)
    drawn = stream.select(np.arange(trials * rows))
    walks = [drawn.walk(prices) for prices in vectors]
    exits = np.column_stack([walked.exits.astype(np.int8) for walked in walks])
    lost = np.column_stack([walked.losses for walked in walks])
    chosen, every, naive = [], [], []
    for trial in range(trials):
        first = slice(trial * rows, trial * rows + rows // 2)
        second = slice(trial * rows + rows // 2, (trial + 1) * rows)
        both = lost[first.start : second.stop].sum(axis=0)
        paid = np.cumsum(COST)[exits[first]].mean(axis=0)
        choice = pareto_test(
            pareto_order(lost[first].mean(axis=0), paid), rows // 2, lost[second].sum(axis=0), max_loss, delta
        )
        assert choice is not None
        chosen.append(choice)
        passed = np.flatnonzero(binomial_p(rows, both, max_loss) <= delta / len(vectors))
        every.append(passed[np.argmin(cost[passed])])
        fits = np.flatnonzero(both <= max_loss * rows)
        naive.append(fits[np.argmin(cost[fits])])
    assert np.sum(risks[chosen] > max_loss) <= most(trials, delta)
    assert np.mean(risks[naive] > max_loss) > 0.35
    assert cost[risks <= max_loss].min() < cost[chosen].mean() < cost[every].mean()


def test_bounds_of_six_operating_points_hold_at_once_and_for_every_mixture(stream):
    """500 trials of 1,000 rows; a random mixture of the points each."""
    trials, rows, delta = 500, 1000, 0.1
    vectors = price_path(COST, points=80)[20:80:10]
    risks, _ = truth(vectors)
    losses = losing(stream.select(np.arange(trials * rows)), vectors).reshape(trials, rows, -1).sum(axis=1)
    bounds = np.array([simultaneous_bounds(rows, count, delta) for count in losses])
    shares = np.random.default_rng(5).dirichlet(np.ones(len(vectors)), trials)
    broken = np.any(risks > bounds, axis=1)
    alone = np.any(risks > clopper_pearson(rows, losses, delta), axis=1)
    mixtures = shares @ risks > (shares * bounds).sum(axis=1)
    assert broken.sum() <= most(trials, delta)
    assert alone.sum() > most(trials, delta), "bounds that each hold alone do not hold together"
    assert mixtures.sum() <= broken.sum()


def test_load_that_comes_with_harder_rows_breaks_the_mixture_but_not_the_covering_bound():
    """One draw of 4,000 rows, and 200,000 rows served: the hard ones at bold prices, the others at safe ones."""
    rows, delta = 4000, 0.1
    safe, bold = price_path(COST, points=80)[20], price_path(COST, points=80)[60]
    calibration, served = difficulty_ladder(rows=rows, seed=1), difficulty_ladder(rows=200_000, seed=2)
    bounds = simultaneous_bounds(rows, losing(calibration, [safe, bold]).sum(axis=0), delta)
    covering = covering_losses(calibration)[np.arange(rows), calibration.exits(bold)].sum()
    hard = served.p_correct[:, 0] < 0.5
    risk = np.where(hard, served.walk(bold).losses, served.walk(safe).losses).mean()
    assert risk > (1 - hard.mean()) * bounds[0] + hard.mean() * bounds[1]
    assert risk <= clopper_pearson(rows, covering, delta)


def test_a_score_that_is_calibrated_over_all_rows_is_too_sure_on_the_rows_passed_on():
    """200,000 rows; two stages that each see the difficulty through their own noise."""
    random = np.random.default_rng(3)
    difficulty = random.normal(size=200_000)
    views = difficulty[:, None] + random.normal(size=(200_000, 2))
    right = random.random(200_000) < stats.norm.cdf(1.0 - difficulty)
    # Given its view v, the difficulty is normal with mean v / 2 and variance 1 / 2.
    score = stats.norm.cdf((1.0 - views[:, 1] / 2) / np.sqrt(1.5))
    passed_on = views[:, 0] > np.quantile(views[:, 0], 0.67)
    assert score.mean() == pytest.approx(right.mean(), abs=0.005)
    assert score[passed_on].mean() - right[passed_on].mean() > 0.04
