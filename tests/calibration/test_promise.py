"""The promise is kept: certificates from resampled splits of a real outcome table, held against the table as the truth.

The shipped ladder's 10,000 test rows are taken for the whole world. A split draws 2,000 of them with replacement, so
that they are independent rows of that world, whose risks are known exactly: the means over the table. 300 splits, fixed
seed, confidence 90 %. A count of broken promises fails the test if a promise of 10 % would exceed it with probability
0.001 only: Binomial(300, 0.1) gives 47.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from cascade.calibration.artefact import Calibration
from cascade.calibration.certificate import Certificate
from cascade.calibration.certify import certify
from cascade.calibration.judged import JudgedTable, price_path
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.risk import Floats, clopper_pearson, covering_losses

SHIPPED = Path(__file__).parents[2] / "deployments" / "fashion" / "calibration"
SPLITS, ROWS, DELTA = 300, 2000, 0.1
ALLOWED = int(stats.binom.ppf(0.999, SPLITS, DELTA))
assert ALLOWED == 47


@dataclass(frozen=True)
class World:
    """The table as the truth, and what 300 splits of it were told."""

    judged: JudgedTable
    path: list[Floats]
    grid: list[Floats]
    """What the Pareto choice tries beside the path."""
    risk: Floats
    """[G] true risk at each point of the path."""
    risk_below: Floats
    """[G] true mean of the covering loss."""
    max_loss: float
    draws: NDArray[np.intp]
    """[300, 2000] rows of each split."""
    certificates: list[Certificate]

    def broken(self, broken: Callable[[Certificate], bool]) -> int:
        return sum(broken(certificate) for certificate in self.certificates)

    def risk_at(self, prices: tuple[float, ...]) -> float:
        return float(self.judged.walk(prices).losses.mean())


@pytest.fixture(scope="module")
def world() -> World:
    """Asked for 2 % less than the risk of the first point of the path that loses more than a percent."""
    table = OutcomeTable.read(SHIPPED / "test-outcomes.npz")
    judged = judge_table(table, Calibration.read(SHIPPED / "calibration.json"))
    judged = replace(judged, group=np.where(table.labels < 5, "first five", "last five"))
    path = price_path(judged.cost)
    walks = [judged.walk(prices) for prices in path]
    risk = np.array([walked.losses.mean() for walked in walks])
    covering = covering_losses(judged)[np.arange(judged.rows), [walked.exits for walked in walks]]
    max_loss = float(0.98 * risk[np.argmax(risk > 0.01)])
    random = np.random.default_rng(2024)
    grid = [np.array([0, *prices]) for prices in random.uniform(0.1, 1, (30, 4)) ** 4]
    draws = random.integers(judged.rows, size=(SPLITS, ROWS))
    certificates = [
        certify(judged.select(rows), max_loss=max_loss, confidence=1 - DELTA, prices_grid=grid, seed=split)
        for split, rows in enumerate(draws)
    ]
    return World(judged, path, grid, risk, covering.mean(axis=1), max_loss, draws, certificates)


def test_the_chosen_prices_lose_more_than_certified_no_oftener_than_promised(world):
    chosen = [certificate.chosen for certificate in world.certificates]
    assert world.broken(lambda c: c.chosen is not None and world.risk[c.chosen] > world.max_loss) <= ALLOWED
    assert sum(choice is not None and choice > 0 for choice in chosen) > 0.9 * SPLITS, "the test certifies something"


def test_the_largest_price_with_few_enough_losses_breaks_the_promise(world):
    def naive(certificate: Certificate) -> bool:
        fits = [index for index, point in enumerate(certificate.path) if point.loss <= world.max_loss]
        return bool(fits) and world.risk[fits[-1]] > world.max_loss

    assert world.broken(naive) > 3 * ALLOWED // 2


def test_the_pareto_choice_keeps_the_promise_and_the_cheapest_fit_does_not(world):
    risks = [world.risk_at(c.pareto.prices) for c in world.certificates if c.pareto is not None]
    assert len(risks) > 0.8 * SPLITS
    assert sum(risk > world.max_loss for risk in risks) <= ALLOWED

    walks = [world.judged.walk(prices) for prices in [*world.path, *world.grid]]
    losses, cost = np.array([walked.losses for walked in walks]), np.array([walked.cost for walked in walks])
    seen = np.array([losses[:, rows].mean(axis=1) for rows in world.draws])
    naive = np.where(seen <= world.max_loss, cost, np.inf).argmin(axis=1)
    assert np.sum(losses.mean(axis=1)[naive] > world.max_loss) > 3 * ALLOWED // 2


def test_bounds_at_all_points_hold_at_once_and_bounds_for_one_point_each_do_not(world):
    assert world.broken(lambda c: any(r > p.bound for r, p in zip(world.risk, c.path, strict=True))) <= ALLOWED
    losses = np.array([[point.losses for point in certificate.path] for certificate in world.certificates])
    alone = clopper_pearson(ROWS, losses, DELTA)
    assert np.any(alone < world.risk, axis=1).sum() > ALLOWED


def test_bounds_on_all_lower_prices_hold_at_once(world):
    assert world.broken(lambda c: any(r > p.bound_below for r, p in zip(world.risk_below, c.path, strict=True))) <= ALLOWED


def test_prices_that_move_freely_below_the_cap_lose_no_more_than_promised(world):
    assert world.broken(lambda c: c.price_cap is not None and world.risk_below[c.price_cap] > world.max_loss) <= ALLOWED
    assert world.broken(lambda c: c.price_cap is not None) > 0.9 * SPLITS


def test_groups_keep_the_promise_together(world):
    losses = {
        name: np.array([world.judged.walk(prices).losses[world.judged.group == name].mean() for prices in world.path])
        for name in ("first five", "last five")
    }

    def bound_broken(c: Certificate) -> bool:
        return any(losses[group.name][c.chosen] > group.bound for group in c.groups)

    def test_broken(c: Certificate) -> bool:
        return any(group.certified and losses[group.name][c.chosen] > world.max_loss for group in c.groups)

    assert world.broken(bound_broken) <= ALLOWED
    assert world.broken(test_broken) <= ALLOWED
    assert world.broken(lambda c: any(group.certified for group in c.groups)) > SPLITS // 2
