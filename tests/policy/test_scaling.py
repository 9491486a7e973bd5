"""Replicas follow a need that stays, and nothing else: the law of scaling against made-up and simulated demand."""

from collections import deque
from itertools import pairwise
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.scaling import Reading, Scaler, combine
from cascade.simulation.workload import draw, parse_workload

TICK_S = 0.25
RATE = 40.0
START_S = 5.0
AVERAGE_S = 0.5


def scaler(**changes) -> Scaler:
    settings = {"min_replicas": 1, "max_replicas": 8, "up_after_s": 10.0, "down_after_s": 60.0, "target_utilisation": 0.8}
    return Scaler(**{**settings, **changes})


def demand_of(workload: str, seconds: float, seed: int = 3) -> np.ndarray:
    """What a router measures of a workload, tick by tick: the exponential average of its rate."""
    instants = draw(parse_workload(workload), seconds, seed).instants
    counts, _ = np.histogram(instants, bins=int(seconds / TICK_S), range=(0, seconds))
    averages, average, weight = [], counts[0] / TICK_S, 1 - np.exp(-TICK_S / AVERAGE_S)
    for count in counts:
        average += weight * (count / TICK_S - average)
        averages.append(average)
    return np.array(averages)


def run(demand, law: Scaler | None = None, *, target=1, true_rate=RATE, said_rate=RATE) -> np.ndarray:
    """Replicas asked for, tick by tick, of a stage whose new replicas work ``START_S`` later.

    There is a surcharge exactly while the demand is above what the replicas at work can do.
    """
    law = law or scaler()
    running, starting, targets = target, deque(), []
    for tick, now_demand in enumerate(demand):
        now_s = 1e6 + tick * TICK_S
        while starting and starting[0] <= now_s:
            starting.popleft()
            running += 1
        surcharge = 0.05 if now_demand > running * true_rate else 0.0
        wanted = law.update(now_s, Reading(surcharge, float(now_demand), said_rate), target=target, running=running)
        if wanted > target:
            starting.extend([now_s + START_S] * (wanted - target))
        elif wanted < target:
            running = min(running, wanted)
            starting.clear()
        target = wanted
        targets.append(target)
    return np.array(targets)


def flat(*levels: tuple[float, float]) -> np.ndarray:
    """A demand without noise: (rows a second, seconds) after one another."""
    return np.concatenate([np.full(int(seconds / TICK_S), rate) for rate, seconds in levels])


def turns_per_minute(targets: np.ndarray) -> float:
    """How often the direction of scaling changes: up then down, or down then up."""
    steps = np.diff(targets)
    signs = np.sign(steps[steps != 0])
    return float((signs[1:] != signs[:-1]).sum() * 60 / (len(targets) * TICK_S))


# -- up ----------------------------------------------------------------------------------------------------------------


def test_a_lasting_shortage_is_met_at_once_with_the_replicas_that_demand_needs():
    targets = run(flat((20, 30), (60, 120)))
    assert targets[int(37 / TICK_S)] == 1  # four fifths of ten seconds of shortage are not over
    assert targets[int(41 / TICK_S)] == 2  # 60 / (0.8 x 40)
    assert targets[-1] == 2


def test_replicas_at_most_double_and_wait_for_each_other():
    targets = run(flat((8 * RATE * 0.8, 200)), target=1)
    changes = np.flatnonzero(np.diff(targets)) * TICK_S
    assert sorted(set(targets.tolist())) == [1, 2, 4, 8]
    assert (np.diff(changes) >= START_S + 10).all()


def test_a_shortage_shorter_than_asked_for_adds_nothing():
    assert (run(flat((20, 30), (300, 7), (20, 30), (300, 7), (20, 30))) == 1).all()


def test_noise_may_interrupt_a_fifth_of_a_shortage():
    demand = flat((60, 60))
    demand[::8] = 0
    assert run(demand)[-1] == 2


def test_an_optimistic_rate_does_not_talk_a_shortage_away():
    targets = run(flat((60, 100)), said_rate=10 * RATE)
    assert targets[-1] == 2


def test_no_replica_is_added_while_one_that_was_asked_for_is_missing():
    law, now_s = scaler(), 0.0
    for _ in range(400):
        assert law.update(now_s, Reading(0.1, 100.0, RATE), target=2, running=1) == 2
        now_s += TICK_S


def test_a_price_that_nobody_would_pay_adds_nothing():
    law = scaler()
    assert {law.update(k * TICK_S, Reading(0.5, 0.0, 0.0), target=1, running=1) for k in range(400)} == {1}


def test_a_shortage_is_forgotten_in_a_silence():
    law, asked = scaler(), []
    for start_s in (0.0, 15.0, 30.0):
        for k in range(36):
            asked.append(law.update(start_s + k * TICK_S, Reading(0.1, 60.0, RATE), target=1, running=1))
    assert set(asked) == {1}


def test_a_clock_that_is_set_back_starts_the_wait_again():
    law = scaler()
    for k in range(36):
        law.update(1000 + k * TICK_S, Reading(0.1, 60.0, RATE), target=1, running=1)
    asked = [law.update(k * TICK_S, Reading(0.1, 60.0, RATE), target=1, running=1) for k in range(48)]
    assert asked[:40] == [1] * 40
    assert asked[-1] == 2


# -- down --------------------------------------------------------------------------------------------------------------


def test_a_step_down_returns_to_the_fewest_one_at_a_time():
    targets = run(flat((20, 600)), target=4)
    changes = np.flatnonzero(np.diff(targets)) * TICK_S
    assert np.diff(targets)[np.diff(targets) != 0].tolist() == [-1, -1, -1]
    assert changes[0] >= 59
    assert (np.diff(changes) >= 60).all()
    assert targets[-1] == 1


def test_replicas_stay_where_the_rest_would_come_near_their_capacity():
    assert (run(flat((0.72 * RATE, 300)), target=2) == 2).all()
    assert run(flat((0.68 * RATE, 300)), target=2)[-1] == 1


def test_one_peak_in_the_window_keeps_the_replicas():
    demand = np.tile(flat((10, 40), (60, 10)), 6)
    assert (run(demand, target=2) == 2).all()


def test_an_optimistic_rate_makes_replicas_turn_ever_more_rarely():
    targets = run(flat((60, 3600)), said_rate=10 * RATE)
    removals_s = np.flatnonzero(np.diff(targets) < 0) * TICK_S
    gaps_s = np.diff(removals_s)
    assert gaps_s[1] > 3 * gaps_s[0] > 9 * 60
    assert gaps_s[-1] > 900
    assert (targets == 2).mean() > 0.95


def test_patience_ends_when_a_removal_was_right_for_long():
    law = scaler()
    turning = run(flat((60, 700)), law, said_rate=10 * RATE)
    assert turning[-1] == 2
    calm = run(flat((20, 4000), (60, 30), (20, 200)), law, target=2)  # its one shortage comes long after the removal
    removals_s = np.flatnonzero(np.diff(calm) < 0) * TICK_S
    assert len(removals_s) == 2
    assert removals_s[0] > 900
    assert removals_s[1] < 4030 + 90


def test_replicas_are_removed_one_after_another_once_patience_was_had():
    law = scaler()
    run(flat((60, 700)), law, said_rate=10 * RATE)
    removals_s = np.flatnonzero(np.diff(run(flat((4, 2000)), law, target=6)) < 0) * TICK_S
    assert len(removals_s) == 5
    assert removals_s[0] > 900
    assert (np.diff(removals_s) < 62).all()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_number_outside_the_bounds_is_brought_inside_at_once():
    reading = Reading(0.0, 0.0, RATE)
    assert scaler(min_replicas=2).update(0.0, reading, target=1, running=1) == 2
    assert scaler(max_replicas=3).update(0.0, reading, target=9, running=9) == 3


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1000), st.floats(0, 100), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_whatever_comes_replicas_stay_in_bounds_and_turn_slowly(course, least, spare):
    law = scaler(min_replicas=least, max_replicas=least + spare, up_after_s=2.0, down_after_s=6.0)
    target, now_s, changes = least, 0.0, []
    for surcharge, demand, rate, ticks in course:
        for _ in range(ticks):
            wanted = law.update(now_s, Reading(surcharge, demand, rate), target=target, running=target)
            assert least <= wanted <= least + spare
            assert target - 1 <= wanted <= 2 * target
            if wanted != target:
                changes.append((now_s, wanted - target))
            target, now_s = wanted, now_s + TICK_S
    for (earlier_s, _), (later_s, step) in pairwise(changes):
        assert later_s - earlier_s >= (2.0 if step > 0 else 6.0)


# -- traffic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("burst", ["burst:20@6,160@3", "burst:10@2,80@2", "burst:30@10,240@4", "burst:20@20,160@8"])
def test_bursts_do_not_make_replicas_flap(burst, seed):
    targets = run(demand_of(burst, 3600, seed))
    assert turns_per_minute(targets) <= 0.1
    assert turns_per_minute(targets[len(targets) // 2 :]) <= 0.05
    assert targets.max() <= 8


@pytest.mark.parametrize("level", [0.65, 0.7, 0.75, 0.95, 1.0, 1.05])
def test_a_steady_demand_near_a_threshold_settles(level):
    targets = run(demand_of(f"poisson:{level * 2 * RATE}", 1800), target=3)
    assert turns_per_minute(targets) <= 1 / 30
    assert len(set(targets[len(targets) // 2 :].tolist())) == 1


def test_a_step_up_stays_and_the_step_down_undoes_it():
    targets = run(demand_of("step:20@60,120@300,20@400", 760))
    during = targets[int(120 / TICK_S) : int(360 / TICK_S)]
    assert set(during.tolist()) == {4}
    assert targets[-1] == 1
    assert turns_per_minute(targets) <= 1 / 12


def test_a_ramp_is_followed_up_and_down_with_one_turn():
    targets = run(demand_of("ramp:10-240@300,240-10@300,10-10@500", 1100))
    steps = np.diff(targets)
    signs = np.sign(steps[steps != 0]).tolist()
    assert signs == sorted(signs, reverse=True)
    assert targets.max() >= 6
    assert targets[-1] == 1


def test_a_day_turns_twice_at_most():
    targets = run(demand_of("diurnal:10-200@1200", 2400))
    assert turns_per_minute(targets) * 40 <= 3
    assert targets.max() >= 5


# -- several routers ---------------------------------------------------------------------------------------------------


def test_demands_of_routers_add_up_and_the_busy_ones_count_for_the_rest():
    assert combine([Reading(0.5, 30.0, 10.0), Reading(0.0, 10.0, 20.0)]) == Reading(0.375, 40.0, 12.5)


def test_idle_routers_are_averaged():
    assert combine([Reading(0.0, 0.0, 10.0), Reading(0.0, 0.0, 20.0)]) == Reading(0.0, 0.0, 15.0)


@pytest.mark.parametrize("wrong", [nan, inf, -inf])
def test_a_router_that_says_no_number_is_not_heard(wrong):
    good = Reading(0.1, 5.0, 10.0)
    for reading in (Reading(wrong, 5.0, 10.0), Reading(0.1, wrong, 10.0), Reading(0.1, 5.0, wrong)):
        assert combine([reading]) is None
        assert combine([reading, good]) == good
    assert combine([]) is None
