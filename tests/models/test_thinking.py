"""A stage that thinks: each row under its own pressure, and how long it took beside what it found."""

import numpy as np
import pytest
import torch
from torch import nn

from cascade.models.halting import PonderNetwork
from cascade.models.stage import StageResult
from cascade.models.thinking import DEPTH, PRESSURE, ThinkingStage


class Plus(nn.Module):
    def forward(self, features):
        return features + torch.tensor([0.0, 1.0])


class Halting(nn.Module):
    """Half of the doubt goes with every step, as in halting probabilities of 1/2."""

    def forward(self, features):
        return torch.zeros(len(features), 1)


def network():
    """Answers with (first number of the row, steps): doubt is 1/2, 1/4, 1/8 behind the steps."""
    return PonderNetwork(nn.Identity(), Plus(), Halting(), nn.Identity(), steps=4, epsilon=0.01)


def rows(*values):
    return {"x": np.array([[value, 0.0] for value in values], np.float32)}


def test_each_row_thinks_under_its_own_pressure_and_says_how_long():
    stage = ThinkingStage(network(), ["x"])
    result = stage.run(rows(7, 8, 9) | {PRESSURE: np.array([0.0, 0.3, 1.0], np.float32)})
    assert result.logits.tolist() == [[7, 4], [8, 2], [9, 1]]
    assert result.state[DEPTH].tolist() == [4, 2, 1]
    assert result.run_s > 0


def test_without_pressure_rows_think_as_long_as_they_like():
    stage = ThinkingStage(network(), ["x"])
    stage.warm_up({"x": np.zeros((1, 2), np.float32)}, [1, 3])
    assert stage.run(rows(7, 8)).state[DEPTH].tolist() == [4, 4]


@pytest.mark.parametrize("how", [{"precision": "bfloat16"}, {"precision": "bfloat16", "cast": True}])
def test_a_lower_precision_changes_no_depth(how):
    from cascade.models.stage import Execution

    execution = Execution(cast_weights="cast" in how)
    stage = ThinkingStage(network(), ["x"], precision=how["precision"], execution=execution)
    result = stage.run(rows(7, 8, 9) | {PRESSURE: np.array([0.0, 0.3, 1.0], np.float32)})
    assert result.state[DEPTH].tolist() == [4, 2, 1]


def test_a_part_of_a_result_has_the_depths_of_its_rows():
    result = StageResult(np.zeros((3, 2), np.float32), 0.3, state={DEPTH: np.array([1, 2, 3])})
    assert result.part(slice(1, 3)).state[DEPTH].tolist() == [2, 3]


def test_a_network_that_does_not_think_is_refused():
    with pytest.raises(TypeError, match="Linear has no method think"):
        ThinkingStage(nn.Linear(2, 2), ["x"])
