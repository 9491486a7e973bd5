"""What an escalation is worth, against the definition written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.price import continuation_value

UNIT = st.integers(-8, 16).map(lambda i: i / 16)


def by_definition(gains: list[float], stage: int, open_stages: list[int], prices: list[float]) -> float:
    following = open_stages[0]
    return max(gains[j - stage - 1] - sum(prices[i] for i in open_stages if following < i <= j) for j in open_stages)


@given(st.data())
def test_the_value_is_the_best_over_all_dearer_open_stages(data):
    stages = data.draw(st.integers(2, 6))
    stage = data.draw(st.integers(0, stages - 2))
    open_stages = sorted(data.draw(st.sets(st.integers(stage + 1, stages - 1), min_size=1)))
    prices = data.draw(st.lists(UNIT, min_size=stages, max_size=stages))
    gains = data.draw(st.lists(st.lists(UNIT, min_size=stages - 1 - stage, max_size=stages - 1 - stage), max_size=5))
    array = np.array(gains, dtype=float).reshape(len(gains), stages - 1 - stage)
    before = array.copy()
    value = continuation_value(array, stage, open_stages, prices)
    assert value.tolist() == [by_definition(row, stage, open_stages, prices) for row in gains]
    assert (array == before).all()


def test_a_stage_that_adds_nothing_is_worth_passing_for_the_one_behind_it():
    gains = np.array([[0.0, 0.5], [0.0, 0.1]])
    assert continuation_value(gains, 0, [1, 2], [0.0, 0.05, 0.25]).tolist() == [0.25, 0.0]


def test_a_stage_that_is_out_costs_nothing_to_pass():
    gains = np.array([[0.0, 0.5]])
    assert continuation_value(gains, 0, [2], [0.0, 9.0, 0.25]).tolist() == [0.5]
