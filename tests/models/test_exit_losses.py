"""Losses over exits: each against its formula, and gradients against what the formula says they must be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exit_cases import Chain, blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from cascade.errors import ConfigError
from cascade.models.exit_losses import (
    DistillationLoss,
    EquilibriumLoss,
    JointLoss,
    distillation_loss,
    equilibrium_logits,
    exit_cross_entropies,
    full_head_gradients,
    head_parameters,
    joint_loss,
    scale_gradient,
)

LOG = float(np.log(3))
TWO_EXITS = torch.tensor([[[0.0, 0.0], [LOG, 0.0]]])
"""One row: the first exit says 1/2 1/2, the last 3/4 1/4."""

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 5), st.integers(0, 2**31))


def drawn(rows, exits, classes, seed):
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (rows, exits, classes)), random.integers(0, classes, rows)


def test_cross_entropies_of_two_exits():
    assert exit_cross_entropies(TWO_EXITS, torch.tensor([0])).tolist() == pytest.approx([np.log(2), np.log(4 / 3)])
    assert exit_cross_entropies(TWO_EXITS, torch.tensor([1])).tolist() == pytest.approx([np.log(2), np.log(4)])


def test_joint_loss_of_two_exits():
    labels = torch.tensor([0])
    assert float(joint_loss(TWO_EXITS, labels)) == pytest.approx(np.log(2) + np.log(4 / 3))
    assert float(joint_loss(TWO_EXITS, labels, (0.5, 2.0))) == pytest.approx(0.5 * np.log(2) + 2 * np.log(4 / 3))


def test_distillation_of_two_exits():
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log(3/2) + 1/4 log(1/2) = 0.130812."""
    loss = float(distillation_loss(TWO_EXITS, torch.tensor([0]), share=0.25, temperature=1.0))
    assert loss == pytest.approx(np.log(4 / 3) + 0.75 * np.log(2) + 0.25 * 0.130812, abs=1e-6)
    # At T = 2 the last exit says sqrt(3) : 1, so KL = 0.033931 and four times that counts.
    soft = softmax([LOG / 2, 0.0])
    divergence = float(rel_entr(soft, [0.5, 0.5]).sum())
    loss = float(distillation_loss(TWO_EXITS, torch.tensor([0]), share=1.0, temperature=2.0))
    assert loss == pytest.approx(np.log(4 / 3) + 4 * divergence, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(0, 1), st.floats(0.5, 5))
def test_the_losses_are_their_formulas(shape, share, temperature):
    logits, labels = drawn(*shape)
    rows, exits, _ = logits.shape
    weights = np.arange(1, exits + 1) / exits
    entropies = -np.array([[log_softmax(logits[n, k])[labels[n]] for k in range(exits)] for n in range(rows)]).mean(0)
    teacher = softmax(logits[:, -1] / temperature, axis=1)
    terms = []
    for k in range(exits - 1):
        divergence = rel_entr(teacher, softmax(logits[:, k] / temperature, axis=1)).sum(1).mean()
        terms.append((1 - share) * entropies[k] + share * temperature**2 * divergence)
    expected = float(np.dot(weights, [*terms, entropies[-1]]))
    tensors = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
    found = distillation_loss(*tensors, share=share, temperature=temperature, weights=weights.tolist())
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float(joint_loss(*tensors, weights.tolist())) == pytest.approx(float(weights @ entropies), rel=1e-4, abs=1e-4)


def test_the_last_exit_learns_from_labels_alone():
    logits, labels = drawn(6, 3, 4, 1)
    labels = torch.tensor(labels)
    distilled, plain = (torch.tensor(logits, dtype=torch.float32, requires_grad=True) for _ in range(2))
    distillation_loss(distilled, labels, share=1.0, temperature=3.0).backward()
    F.cross_entropy(plain[:, -1], labels).backward()
    assert torch.allclose(distilled.grad[:, -1], plain.grad[:, -1], atol=1e-7)


def test_half_precision_logits_are_judged_in_float32():
    logits, labels = drawn(50, 2, 4, 2)
    exact = joint_loss(torch.tensor(logits), torch.tensor(labels))
    assert joint_loss(torch.tensor(logits).bfloat16(), torch.tensor(labels)).dtype == torch.float32
    assert float(joint_loss(torch.tensor(logits).half(), torch.tensor(labels))) == pytest.approx(float(exact), rel=1e-3)


def test_a_scaled_gradient_leaves_the_value_alone():
    value = torch.tensor([2.0], requires_grad=True)
    scaled = scale_gradient(value * 3, 0.25)
    assert scaled.item() == 6.0
    scaled.backward()
    assert value.grad.item() == 0.75


class TestEquilibrium:
    @pytest.mark.parametrize("exits", [1, 2, 4, 7])
    def test_every_block_gets_the_mean_of_the_exits_behind_it(self, exits):
        """The rows of Li et al.: 1/4 of each of four exits for the first block, 1/3 of three for the second, and so on."""
        network = Chain(exits)
        x = torch.tensor([[1.0]], dtype=torch.float64)
        logits = equilibrium_logits(network, x)[0, :, 0]
        for k in range(exits):
            gradients = torch.autograd.grad(logits[k], list(network.trunk), retain_graph=True, allow_unused=True)
            found = [0.0 if gradient is None else gradient.item() for gradient in gradients]
            assert found == pytest.approx([1 / (exits - i) if i <= k else 0.0 for i in range(exits)])
            # The embedding reaches exit k on two ways of gradient 1 each, and each counts as that of the first block.
            assert torch.autograd.grad(logits[k], network.first, retain_graph=True)[0].item() == pytest.approx(2 / exits)

    def test_plain_gradients_are_sums(self):
        network = Chain(4)
        network(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
        assert [block.grad.item() for block in network.trunk] == [4, 3, 2, 1]
        network.zero_grad()
        equilibrium_logits(network, torch.ones(1, 1, dtype=torch.float64)).sum().backward()
        assert [block.grad.item() for block in network.trunk] == pytest.approx([1, 1, 1, 1])

    def test_values_are_those_of_the_plain_network(self):
        network = blocks().eval()
        rows = torch.randn(5, 3)
        assert torch.equal(equilibrium_logits(network, rows), network(rows))

    def test_heads_get_their_whole_gradient_while_training(self):
        """Against autograd on each exit's loss alone."""
        network, rows, labels = blocks(), torch.randn(8, 3), torch.randint(4, (8,))
        network.train()
        network.blocks.eval()  # so that running the network again gives the same
        loss = EquilibriumLoss()
        with loss.attached(network, (rows[:2],)):
            network.blocks.eval()
            loss(network, (rows,), labels).backward()
        entropies = exit_cross_entropies(network(rows), labels)
        for k, head in enumerate(network.heads):
            expected = torch.autograd.grad(entropies[k], list(head.parameters()), retain_graph=True)
            for parameter, gradient in zip(head.parameters(), expected, strict=True):
                assert torch.allclose(parameter.grad, gradient, atol=1e-7)
        for i, block in enumerate(network.blocks):
            own = list(block.parameters())
            expected = torch.autograd.grad(entropies[i:].mean(), own, retain_graph=True)
            for parameter, gradient in zip(own, expected, strict=True):
                assert torch.allclose(parameter.grad, gradient, atol=1e-7)

    def test_nothing_stays_behind_on_the_network(self):
        network, rows = blocks(), torch.randn(4, 3)
        with full_head_gradients(network, rows[:2]):
            pass
        network.eval()
        network(rows).sum().backward()
        assert network.heads[0].bias.grad.tolist() == pytest.approx([4.0] * 4)

    def test_heads_are_what_serves_one_exit_alone(self):
        network = blocks(3)
        modes = [module.training for module in network.modules()]
        found = head_parameters(network, torch.randn(2, 3))
        assert [set(map(id, head)) for head in found] == [set(map(id, network.heads[k].parameters())) for k in range(2)]
        assert [module.training for module in network.modules()] == modes

    def test_a_head_shared_by_two_exits_is_no_head_of_one(self):
        network = blocks(3)
        network.heads[1] = network.heads[0]
        assert head_parameters(network, torch.randn(2, 3)) == [[], []]

    def test_looking_for_heads_does_not_move_running_means(self):
        network = blocks(2)
        before = network.blocks[0][2].running_mean.clone()
        head_parameters(network, torch.randn(2, 3))
        assert torch.equal(network.blocks[0][2].running_mean, before)

    def test_a_network_without_segments_is_refused(self):
        with pytest.raises(ConfigError, match=r"segments.*Linear"):
            EquilibriumLoss().attached(nn.Linear(3, 2), (torch.ones(1, 3),))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: joint_loss(torch.ones(2, 3), torch.tensor([0, 1])), r"rows, exits, classes\], got \[2, 3\]"),
        (lambda: joint_loss(TWO_EXITS, torch.tensor([0]), (1.0,)), "1 weights for 2 exits"),
        (lambda: DistillationLoss(1.5, 1.0), "share.*1.5"),
        (lambda: DistillationLoss(0.5, 0.0), "temperature.*0"),
    ],
)
def test_what_cannot_be_is_refused(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_objectives_say_what_they_are():
    assert JointLoss((1.0, 2.0)).description == {"loss": "joint", "weights": [1.0, 2.0]}
    assert DistillationLoss(0.5, 2.0).description == {"loss": "distil", "share": 0.5, "temperature": 2.0, "weights": None}
    assert EquilibriumLoss().description == {"loss": "equilibrium", "weights": None}
