"""What a window's answers saved against the top stage: cost always, energy only where it was measured."""

import pytest

from cascade.policy.meter import Recent, RecentStage
from cascade.policy.savings import DAY_S, savings


def stage(rows_per_s: float, joules_per_row: float | None = None, idle: float | None = None) -> RecentStage:
    return RecentStage(0.5, rows_per_s, 4.0, 0.01, 0.001, joules_per_row, idle)


def window(*stages: RecentStage, cost: float | None = 12.0, answered_per_s: float = 100.0) -> Recent:
    return Recent(10.0, 100.0, answered_per_s, 0.0, 0.0, 0.0, 0.1, 0.0, cost, stages, ())


def test_cost_is_set_beside_that_of_the_top_stage_alone():
    found = savings(window(stage(100), stage(20)), 100.0, (False, False))
    assert (found.cost_top, found.cost_ratio) == (100.0, 0.12)
    assert found.cost_saved_per_day == pytest.approx(88.0 * 100 * DAY_S)
    assert found[3:] == (None, None, None)


def test_a_ladder_that_costs_more_than_its_top_stage_saves_less_than_nothing():
    found = savings(window(stage(100), stage(100), cost=110.0), 100.0, (False, False))
    assert found.cost_ratio == pytest.approx(1.1)
    assert found.cost_saved_per_day < 0


def test_without_answers_nothing_is_known_but_what_the_top_stage_costs():
    nothing = window(RecentStage(None, 0.0, None, None, None), cost=None, answered_per_s=0.0)
    assert savings(nothing, 100.0, (False,)) == (100.0, None, None, None, None, None)


def test_energy_is_set_beside_the_top_stage_without_the_time_in_which_nothing_ran():
    # 100 rows of 1 J (half of it idle) and 20 rows of 10 J (a fifth idle) for 100 answers; the top stage alone: 8 J each.
    found = savings(window(stage(100, 1.0, 0.5), stage(20, 10.0, 0.2)), 100.0, (False, False))
    assert found.joules_top == pytest.approx(8.0)
    assert found.energy_ratio == pytest.approx((100 * 0.5 + 20 * 8.0) / 100 / 8.0)
    assert found.joules_saved_per_day == pytest.approx((8.0 - 2.1) * 100 * DAY_S)


def test_energy_is_not_made_up_for_a_stage_that_measures_none():
    found = savings(window(stage(100), stage(20, 10.0, 0.0)), 100.0, (False, False))
    assert (found.joules_top, found.energy_ratio, found.joules_saved_per_day) == (10.0, None, None)
    idle = savings(window(stage(0), stage(20, 10.0, 0.0)), 100.0, (False, False))
    assert idle.energy_ratio == pytest.approx(0.2)  # one that ran nothing took nothing for the answers


def test_the_top_stage_of_a_chain_takes_the_segments_before_it():
    stages = (stage(100, 1.0, 0.0), stage(50, 2.0, 0.0), stage(10, 4.0, 0.0))
    assert savings(window(*stages), 100.0, (False, True, True)).joules_top == 7.0
    assert savings(window(*stages), 100.0, (False, False, True)).joules_top == 6.0
