"""Learned halting: worked numbers, agreement with the offline formulas, and what pressure does to depth."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from cascade.calibration import anytime
from cascade.errors import ConfigError
from cascade.models.halting import PonderNetwork, Steps, Thinks
from cascade.models.halting_losses import (
    ActLoss,
    PonderLoss,
    act_loss,
    act_weights,
    ponder_divergence,
    ponder_loss,
    ponder_weights,
)
from cascade.models.halting_networks import pondering_images
from cascade.models.training import TensorRows, accuracies, train
from cascade.models.training_options import TrainingOptions

ACT = torch.tensor([[0.1, 0.3, 0.4, 0.5]], dtype=torch.float64)
PONDER = torch.tensor([[0.2, 0.5, 0.5, 0.9]], dtype=torch.float64)

halting = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(0.001, 0.999))


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on busy cores make a tiny step take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestFormulas:
    def test_act(self):
        weights, cost = act_weights(ACT)
        assert weights[0].tolist() == pytest.approx([0.1, 0.3, 0.4, 0.2])
        assert cost.item() == pytest.approx(4.2)

    def test_ponder(self):
        weights = ponder_weights(PONDER)
        assert weights[0].tolist() == pytest.approx([0.2, 0.4, 0.2, 0.2])
        assert float(weights @ torch.arange(1.0, 5.0, dtype=torch.float64)) == pytest.approx(2.4)
        assert ponder_divergence(PONDER, 0.4).item() == pytest.approx(0.160465, abs=5e-7)

    @settings(max_examples=80, deadline=None)
    @given(halting, st.floats(0.05, 0.95))
    def test_they_are_those_of_the_offline_tables(self, rows, prior):
        weights, cost = act_weights(torch.tensor(rows))
        pondered, divergence = ponder_weights(torch.tensor(rows)), ponder_divergence(torch.tensor(rows), prior)
        for place, row in enumerate(rows):
            act, ponder = anytime.act(row), anytime.ponder(row)
            assert weights[place].numpy() == pytest.approx(act.weights, abs=1e-12)
            assert cost[place].item() == pytest.approx(act.cost)
            assert pondered[place].numpy() == pytest.approx(ponder.weights, abs=1e-12)
            assert divergence[place].item() == pytest.approx(anytime.ponder_divergence(row, prior), abs=1e-6)

    def test_the_remainder_has_a_gradient_and_the_number_of_steps_has_none(self):
        """d(N + R)/dh_n is -1 before the last step and 0 from there on."""
        h = ACT.clone().requires_grad_()
        act_weights(h)[1].sum().backward()
        assert h.grad.tolist() == [[-1, -1, -1, 0]]

    def test_certain_halting_has_finite_gradients(self):
        h = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
        ponder_divergence(h, 0.3).sum().backward()
        assert torch.isfinite(h.grad).all()


class TestLosses:
    @pytest.fixture
    def steps(self):
        random = torch.Generator().manual_seed(0)
        return Steps(torch.randn(5, 4, 3, generator=random), torch.rand(5, 4, generator=random))

    LABELS = torch.tensor([0, 1, 2, 0, 1])

    def test_act(self, steps):
        expected = []
        for row, label in enumerate(self.LABELS):
            found = anytime.act(steps.halting[row].double().numpy())
            answer = torch.tensor(found.weights).float() @ steps.logits[row]
            expected.append(float(F.cross_entropy(answer[None], label[None])) + 0.1 * found.cost)
        assert float(act_loss(steps, self.LABELS, ponder_cost=0.1)) == pytest.approx(np.mean(expected), rel=1e-5)

    def test_ponder(self, steps):
        expected = []
        for row, label in enumerate(self.LABELS):
            lambdas = steps.halting[row].double().numpy()
            entropies = [float(F.cross_entropy(y[None], label[None])) for y in steps.logits[row]]
            divergence = anytime.ponder_divergence(lambdas, 0.4)
            expected.append(float(anytime.ponder(lambdas).weights @ entropies) + 0.2 * divergence)
        assert float(ponder_loss(steps, self.LABELS, prior=0.4, beta=0.2)) == pytest.approx(np.mean(expected), rel=1e-5)

    @pytest.mark.parametrize(
        ("make", "named"),
        [
            (lambda: ActLoss(-0.1), "cost of a step"),
            (lambda: PonderLoss(prior=1.0), "prior"),
            (lambda: PonderLoss(beta=-1.0), "divergence"),
            (lambda: PonderLoss().attached(nn.Linear(1, 1), ()), "PonderNetwork, got Linear"),
        ],
    )
    def test_what_cannot_be_is_refused(self, make, named):
        with pytest.raises(ConfigError, match=named):
            make()


class Counting(nn.Module):
    """A block that notes how many rows it was run on, and adds one to each."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, features):
        self.rows.append(len(features))
        return features + torch.tensor([0.0, 1.0])


class ByTable(nn.Module):
    """Halting logits that a table gives: features are (row of the table, step)."""

    def __init__(self, table) -> None:
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, features):
        place, step = features.long().unbind(dim=1)
        return torch.logit(self.table[place, step - 1])[:, None]


class Naming(nn.Module):
    """Logits that say which row and which step they are of."""

    def forward(self, features):
        return features.clone()


def thinking(table, **more):
    """A network whose row k halts by row k of a table, and answers with (k, step)."""
    return PonderNetwork(nn.Identity(), Counting(), ByTable(table), Naming(), steps=len(table[0]), **more).eval()


def starting(*rows):
    return torch.tensor([[float(row), 0.0] for row in rows])


class TestThinking:
    TABLE = ((0.2, 0.5, 0.5, 0.9), (0.95, 0.5, 0.5, 0.5), (0.1, 0.1, 0.1, 0.1))

    def test_rows_halt_when_their_doubt_is_at_most_epsilon_and_pressure(self):
        """Doubt of row 0: .8, .4, .2, then the last step; of row 1: .05; of row 2: .9, .81, .729."""
        network = thinking(self.TABLE, epsilon=0.1)
        for pressure, depth in ((0.0, [4, 1, 4]), (0.15, [3, 1, 4]), (0.35, [2, 1, 4]), (0.71, [1, 1, 2]), (5.0, [1, 1, 1])):
            thought = network.think(starting(0, 1, 2), pressure=torch.full((3,), pressure))
            assert thought.depth.tolist() == depth
            assert thought.logits.tolist() == [[row, step] for row, step in enumerate(depth)]

    def test_a_row_that_has_halted_leaves_the_batch(self):
        network = thinking(self.TABLE, epsilon=0.1)
        network.think(starting(0, 1, 2, 1), pressure=torch.tensor([0.35, 0.0, 0.0, 0.0]))
        assert network.block.rows == [4, 2, 1, 1]
        network.block.rows.clear()
        network.think(starting(1, 1), pressure=torch.zeros(2))
        assert network.block.rows == [2]

    def test_each_row_has_its_own_pressure(self):
        network = thinking(self.TABLE, epsilon=0.1)
        thought = network.think(starting(0, 0, 0), pressure=torch.tensor([0.0, 0.15, 5.0]))
        assert thought.depth.tolist() == [4, 3, 1]

    def test_scale_says_what_a_unit_of_pressure_is_worth(self):
        depth = [
            thinking(self.TABLE, epsilon=0.1, scale=scale).think(starting(0), pressure=torch.tensor([0.15])).depth.item()
            for scale in (0.0, 1.0, 3.0)
        ]
        assert depth == [4, 3, 2]

    @settings(max_examples=60, deadline=None)
    @given(halting, st.sampled_from([0.01, 0.1, 0.3]))
    def test_act_answers_with_the_weighted_mean(self, table, epsilon):
        network = thinking(table.astype(np.float32).tolist(), rule="act", epsilon=epsilon)
        thought = network.think(starting(*range(len(table))), pressure=torch.zeros(len(table)))
        for row, line in enumerate(table.astype(np.float32)):
            summed = np.cumsum(line)
            if (np.abs(1 - epsilon - summed) < 1e-5).any():
                continue  # either side is right
            halted = anytime.act(line, epsilon)
            assert thought.depth[row].item() == np.flatnonzero(halted.weights).max() + 1
            assert thought.logits[row].tolist() == pytest.approx(
                [row, float(halted.weights @ np.arange(1, len(line) + 1))], abs=1e-5
            )

    @settings(max_examples=60, deadline=None)
    @given(halting, st.sampled_from(["act", "ponder"]), st.lists(st.floats(0, 1), min_size=2, max_size=4))
    def test_more_pressure_never_means_more_thought(self, table, rule, pressures):
        network = thinking(table.tolist(), rule=rule)
        depths = [
            network.think(starting(*range(len(table))), pressure=torch.full((len(table),), pressure)).depth
            for pressure in sorted(pressures)
        ]
        for less, more in pairwise(depths):
            assert (more <= less).all()

    def test_without_pressure_it_is_a_network_like_any_other(self):
        network = thinking(self.TABLE, epsilon=0.1)
        assert network(starting(2, 0, 1)).tolist() == [[2, 4], [0, 4], [1, 1]]
        assert isinstance(network, Thinks)
        assert not isinstance(nn.Linear(1, 1), Thinks)

    @pytest.mark.parametrize("more", [{"epsilon": 1.0}, {"scale": -1.0}, {"rule": "dice"}])
    def test_arguments_out_of_range_are_refused(self, more):
        with pytest.raises(ValueError, match=r"epsilon|scale|rule"):
            thinking(self.TABLE, **more)


def lines(count, seed):
    """Images 8 x 8 with a bright line across (0) or down (1)."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    labels, place = random.integers(0, 2, count), random.integers(0, 8, count)
    for row in range(count):
        if labels[row]:
            image[row, :, place[row]] = 255
        else:
            image[row, place[row]] = 255
    return TensorRows([torch.from_numpy(image)], labels)


@pytest.mark.parametrize(("rule", "objective"), [("ponder", PonderLoss(prior=0.5)), ("act", ActLoss(0.02))])
def test_what_is_trained_thinks_less_under_pressure(rule, objective):
    torch.manual_seed(0)
    network = pondering_images(channels=8, steps=3, patch=2, classes=2, rule=rule)
    rows = lines(300, 0)
    train(network, rows, objective, TrainingOptions(epochs=8, batch_size=32, lr=0.01))
    assert accuracies(network, lines(200, 1))[0] > 0.9
    inputs, _ = rows.batch(torch.arange(200), None)
    with torch.inference_mode():
        thoughts = [network.think(*inputs, pressure=torch.full((200,), pressure)) for pressure in (0.0, 0.5, 1.0)]
    depths = [thought.depth.double().mean().item() for thought in thoughts]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1.0 < depths[0]
