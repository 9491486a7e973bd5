"""The frontier of a cascade between chance and the oracle, on tables of known truth."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_cases import difficulty_ladder

from cascade.calibration.frontier import LOSSES, Frontier, frontier, pareto, sweep, upper_hull
from cascade.calibration.gains import deferral_curve
from cascade.calibration.judged import JudgedTable
from cascade.calibration.oracle import Oracle, measured_alpha
from cascade.errors import ConfigError
from cascade.report.frontier import frontier_figure
from cascade.report.style import pyplot

points = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)


def columns(drawn: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    cost, accuracy = np.array(drawn, dtype=np.float64).T
    return cost, accuracy


def omniscient(rows: int = 3000, seed: int = 3) -> JudgedTable:
    """Gains that say what is true: the policy is the oracle wherever going on pays."""
    table = difficulty_ladder(rows, seed=seed)
    right = table.right.astype(np.float64)
    gains = np.triu(right[:, None, :] - right[:, :, None], k=1)
    return JudgedTable(table.stages, table.cost, "MAC", table.right, table.right, right, gains)


def ignorant(rows: int = 20_000, seed: int = 4) -> JudgedTable:
    """Gains drawn without looking at the rows."""
    table = difficulty_ladder(rows, seed=seed)
    gains = np.triu(np.random.default_rng(seed).random((rows, 3, 3)), k=1)
    return JudgedTable(table.stages, table.cost, "MAC", table.right, table.right, table.p_correct, gains)


@settings(max_examples=200, deadline=None)
@given(points)
def test_pareto_keeps_exactly_what_no_other_point_beats(drawn) -> None:
    cost, accuracy = columns(drawn)
    kept = pareto(cost, accuracy)
    beaten = {
        i
        for i, j in itertools.permutations(range(len(cost)), 2)
        if cost[j] <= cost[i] and accuracy[j] >= accuracy[i] and (cost[j], accuracy[j]) != (cost[i], accuracy[i])
    }
    assert {drawn[i] for i in kept} == {drawn[i] for i in set(range(len(drawn))) - beaten}
    assert len({drawn[i] for i in kept}) == len(kept)
    assert np.all(np.diff(cost[kept]) > 0)


@settings(max_examples=200, deadline=None)
@given(points)
def test_the_hull_is_concave_and_above_every_point(drawn) -> None:
    cost, accuracy = columns(drawn)
    hull = upper_hull(cost, accuracy)
    slopes = np.diff(accuracy[hull]) / np.diff(cost[hull])
    assert np.all(np.diff(slopes) < 0)
    within = cost >= cost[hull[0]]
    assert np.all(np.interp(cost[within], cost[hull], accuracy[hull]) >= accuracy[within] - 1e-9)


class TestASweep:
    swept = sweep(difficulty_ladder(unsolvable=0.1), points=40)

    def test_goes_from_every_escalation_that_may_pay_to_none(self) -> None:
        assert len(self.swept.points) == 40
        costs = [point.cost for point in self.swept.points]
        assert costs == sorted(costs, reverse=True)
        assert self.swept.points[-1].exit_shares == (1.0, 0.0, 0.0)
        assert self.swept.points[-1].cost == 1.0

    def test_lies_between_chance_and_the_oracle(self) -> None:
        for point in self.swept.best:
            assert point.accuracy <= self.swept.oracle.accuracy_at(point.cost, sequential=True) + 1e-12
        middle = self.swept.best[len(self.swept.best) // 2]
        assert middle.accuracy > self.swept.random_at(middle.cost) + 3 * middle.accuracy_se
        share = self.swept.mean_accuracy_share
        assert share is not None
        assert 0 < share < 1

    def test_points_say_what_the_rows_say(self) -> None:
        judged, point = self.swept.judged, self.swept.points[20]
        walked = judged.walk(point.prices)
        assert point.accuracy == walked.right.mean()
        assert point.loss == pytest.approx(judged.right[:, -1].mean() - walked.right.mean())
        paired = judged.right[:, -1].astype(float) - walked.right
        assert point.loss_se == pytest.approx(np.sqrt(paired.var() / judged.rows))
        assert point.cost == pytest.approx(np.dot(point.exit_shares, np.cumsum(judged.cost)))

    def test_gains_at_equal_accuracy(self) -> None:
        for loss in LOSSES:
            cheapest = min((p.cost for p in self.swept.points if p.loss <= loss), default=None)
            gain = self.swept.gain(loss)
            assert (gain is None) == (cheapest is None)
            if gain is not None and cheapest is not None:
                assert gain == pytest.approx(16.0 / cheapest)
                assert gain <= self.swept.oracle_gain(loss)

    def test_random_escalation_is_the_best_mixture_of_stopping_places(self) -> None:
        costs, accuracies = self.swept.random
        assert costs.tolist() == [1.0, 5.0, 21.0]
        assert accuracies == pytest.approx(self.swept.judged.served.mean(axis=0))


def test_who_knows_the_truth_reaches_the_oracle() -> None:
    swept = sweep(omniscient())
    assert swept.most_accurate.accuracy == pytest.approx(swept.oracle.accuracy)
    assert swept.most_accurate.cost == pytest.approx(swept.oracle.sequential_cost)
    assert swept.accuracy_share(swept.most_accurate.cost) == pytest.approx(1.0)
    gain = swept.gain()
    assert gain is not None
    assert gain <= swept.oracle_gain()
    share = swept.cost_share()
    assert share is not None
    assert 0.6 < share <= 1


def test_who_knows_nothing_does_not_beat_chance() -> None:
    swept = sweep(ignorant())
    for point in swept.best:
        assert point.accuracy <= swept.random_at(point.cost) + 4 * point.accuracy_se
    share = swept.mean_accuracy_share
    assert share is not None
    assert share < 0.02


def test_a_cascade_that_never_reaches_the_top_stage_says_so() -> None:
    """A cheap stage that claims to be always right, so nothing is ever escalated."""
    right = np.array([[False, True]] * 5 + [[True, True]] * 5)
    judged = JudgedTable(("a", "b"), np.array([1.0, 8.0]), "MAC", right, right, right * 1.0, np.zeros((10, 2, 2)))
    swept = sweep(judged)
    assert swept.gain() is None
    assert swept.cost_share() is None
    assert swept.most_accurate.loss == 0.5
    assert swept.most_accurate.cost == 1.0
    assert swept.oracle_gain() == pytest.approx(8 / (1 + 0.5 * 8))
    assert json.loads(json.dumps(swept.document()))["gains"][0]["gain"] is None


def test_where_the_oracle_leads_by_nothing_there_is_no_share_of_it() -> None:
    right = np.ones((10, 2), dtype=bool)
    judged = JudgedTable(("a", "b"), np.array([1.0, 8.0]), "MAC", right, right, right * 1.0, np.zeros((10, 2, 2)))
    swept = sweep(judged)
    assert swept.mean_accuracy_share is None
    assert swept.gain() == swept.oracle_gain() == 8.0


class TestAFrontier:
    table = difficulty_ladder(errors=(0.8, 0.6, 0.3), unsolvable=0.05)
    made = frontier({"best": table, "replace": table.select(np.arange(table.rows))}, operating_prices=(0, 0.02, 0.08))

    def test_has_single_models_and_bounds(self) -> None:
        assert self.made.accuracy == pytest.approx(self.table.right.mean(axis=0))
        assert self.made.router.accuracy == self.table.right.any(axis=1).mean()
        constant = self.made.constant_alpha
        assert constant is not None
        mean_alpha = float(measured_alpha(self.table.right).mean())
        assert constant.solved == pytest.approx(
            Oracle.constant_alpha(self.made.accuracy, self.table.cost, mean_alpha).solved
        )
        assert self.made.nested.accuracy == pytest.approx(self.made.accuracy[-1])

    def test_has_the_operating_point(self) -> None:
        operating = self.made.operating
        assert operating is not None
        assert operating.accuracy == self.table.walk((0, 0.02, 0.08)).accuracy

    def test_is_plain_json(self) -> None:
        document = json.loads(json.dumps(self.made.document(), allow_nan=False))
        assert set(document["sweeps"]) == {"best", "replace"}
        assert [stage["name"] for stage in document["stages"]] == list(self.table.stages)
        assert any(point["best"] for point in document["sweeps"]["best"]["points"])

    @pytest.mark.parametrize("operating", [None, (0, 0.02, 0.08)])
    def test_is_drawn_with_every_model_named(self, operating) -> None:
        figure = frontier_figure(frontier({"best": self.table}, points=5, operating_prices=operating))
        axes = figure.axes[0]
        assert [text.get_text() for text in axes.texts] == list(self.table.stages)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert ("cascade as configured, unloaded" in labels) == (operating is not None)
        pyplot().close(figure)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: sweep(difficulty_ladder(10), points=2), "at least 3"),
        (lambda: sweep(difficulty_ladder(10).select(np.zeros(10, dtype=bool))), "no rows"),
        (lambda: frontier({}), "needs a judged table"),
        (lambda: frontier({"a": difficulty_ladder(10), "b": difficulty_ladder(11)}), "'b' has other"),
        (lambda: frontier({"a": difficulty_ladder(10)}, operating_prices=(0, 1)), "price for each of 3"),
    ],
)
def test_what_cannot_be_is_refused(make, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make()


def specialist(rows: int, seed: int) -> tuple[JudgedTable, np.ndarray]:
    """A dear stage, brilliant on half of the rows and poor on the rest, which the cheap one's confidence does not tell.

    Returns the table, with the true gain given what the cheap stage sees, and the cheap stage's true confidence.
    """
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.5, 1.0, rows)
    known = random.random(rows) < 0.5
    chances = np.stack([confidence, np.where(known, 0.98, 0.6)], axis=1)
    right = random.random((rows, 2)) < chances
    gains = np.zeros((rows, 2, 2))
    gains[:, 0, 1] = chances[:, 1] - chances[:, 0]
    return JudgedTable(("cheap", "dear"), np.array([1.0, 9.0]), "MAC", right, right, chances, gains), confidence


def test_with_a_specialist_gain_beats_uncertainty_and_deferring_everything_is_not_best() -> None:
    """One draw of 50,000 rows; the differences are more than ten standard errors."""
    judged, confidence = specialist(50_000, seed=7)
    difference = judged.right[:, 1].astype(float) - judged.right[:, 0]
    by_gain = deferral_curve(judged.gains[:, 0, 1], difference)
    by_uncertainty = deferral_curve(-confidence, difference)
    by_truth = deferral_curve(difference, difference)
    assert by_truth(0.2) > by_gain(0.2) + 0.05
    assert by_gain(0.2) > by_uncertainty(0.2) + 0.02
    assert by_gain(0.5) > by_gain(1.0) + 0.02
    swept = sweep(judged)
    assert swept.most_accurate.exit_shares[1] == pytest.approx(0.58, abs=0.02)
    gain = swept.gain()
    assert gain is not None
    assert swept.most_accurate.loss < -0.05
    assert isinstance(Frontier({"only": swept}).document(), dict)
