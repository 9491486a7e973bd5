"""The formulas of learned halting, and the losses that train it. Knows tensors of steps and `PonderNetwork`; serves nothing.

    ACT        Graves, "Adaptive Computation Time for Recurrent Neural Networks" (2016), arXiv 1603.08983
               N = min{n: h_1 + ... + h_n >= 1 - eps},  R = 1 - sum_{n<N} h_n,  answer sum_{n<N} h_n y_n + R y_N
               loss = CE(answer) + tau (N + R)
    PonderNet  Banino et al., "PonderNet: Learning to Ponder" (2021), arXiv 2107.05407
               p_n = lambda_n prod_{j<n} (1 - lambda_j), the last step takes what remains
               loss = sum_n p_n CE_n + beta KL(p || geometric of lambda_p, cut at the last step and rescaled)

`cascade.calibration.anytime` has the same formulas for one row of numbers.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.exit_losses import Inputs
from cascade.models.halting import PonderNetwork, Steps

LEAST = 1e-7
"""A probability below this counts as this where its logarithm is taken."""


def act_weights(halting: Tensor, epsilon: float = 0.01) -> tuple[Tensor, Tensor]:
    """What each step weighs in ACT's answer, and the ponder cost N + R.

    Args:
        halting: h, [rows, steps].
        epsilon: lets a single step suffice.

    Returns:
        Weights [rows, steps], which sum to 1, and costs [rows]. N has no gradient, R does.
    """
    steps = halting.shape[1]
    summed = halting.cumsum(dim=1)
    enough = summed >= 1 - epsilon
    enough[:, -1] = True  # the last step stops anyway
    last = enough.int().argmax(dim=1)
    place = torch.arange(steps, device=halting.device)
    before = torch.where(place < last[:, None], halting, torch.zeros_like(halting))
    remainder = 1 - before.sum(dim=1)
    weights = before + F.one_hot(last, steps) * remainder[:, None]
    return weights, last + 1 + remainder


def ponder_weights(halting: Tensor) -> Tensor:
    """PonderNet's p: probability that each step is the last one.

    Args:
        halting: lambda, [rows, steps].

    Returns:
        [rows, steps]; sums to 1.
    """
    reach = torch.cat([torch.ones_like(halting[:, :1]), (1 - halting[:, :-1]).cumprod(dim=1)], dim=1)
    return reach * torch.cat([halting[:, :-1], torch.ones_like(halting[:, -1:])], dim=1)


def ponder_divergence(halting: Tensor, prior: float) -> Tensor:
    """KL(p || q) in nats from the geometric q_n = prior (1 - prior)^(n-1), cut at the last step and rescaled to 1.

    Args:
        halting: lambda, [rows, steps].
        prior: above 0 and below 1; the mean depth that is asked for is about 1/prior.

    Returns:
        [rows].
    """
    weights = ponder_weights(halting)
    geometric = prior * (1 - prior) ** torch.arange(halting.shape[1], device=halting.device, dtype=halting.dtype)
    logs = (geometric / geometric.sum()).log()
    return (weights * (weights.clamp_min(LEAST).log() - logs)).sum(dim=1)


def _entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every step of every row, [rows, steps], in nats."""
    rows, steps, classes = logits.shape
    each = F.cross_entropy(logits.float().reshape(rows * steps, classes), labels.repeat_interleave(steps), reduction="none")
    return each.reshape(rows, steps)


def act_loss(steps: Steps, labels: Tensor, *, ponder_cost: float, epsilon: float = 0.01) -> Tensor:
    """CE(sum of weighted outputs) + tau (N + R), the mean over rows.

    Args:
        steps: of a batch.
        labels: int64 [rows].
        ponder_cost: tau.
        epsilon: see `act_weights`.
    """
    weights, cost = act_weights(steps.halting, epsilon)
    answer = (weights[:, :, None] * steps.logits.float()).sum(dim=1)
    return F.cross_entropy(answer, labels) + ponder_cost * cost.mean()


def ponder_loss(steps: Steps, labels: Tensor, *, prior: float, beta: float) -> Tensor:
    """sum_n p_n CE_n + beta KL(p || q), the mean over rows.

    Args:
        steps: of a batch.
        labels: int64 [rows].
        prior: lambda_p of q, see `ponder_divergence`.
        beta: weight of the divergence.
    """
    expected = (ponder_weights(steps.halting) * _entropies(steps.logits, labels)).sum(dim=1)
    return (expected + beta * ponder_divergence(steps.halting, prior)).mean()


@dataclass(frozen=True, slots=True)
class ActLoss:
    """See `act_loss`; an `Objective` for a `PonderNetwork`.

    Attributes:
        ponder_cost: tau, not negative.

    Raises:
        ConfigError: it is negative.
    """

    ponder_cost: float = 0.01

    def __post_init__(self) -> None:
        if not self.ponder_cost >= 0:
            raise ConfigError(f"the cost of a step must not be negative, got {self.ponder_cost:g}")

    @property
    def description(self) -> dict[str, Any]:
        """See `Objective`."""
        return {"loss": "act", "ponder_cost": self.ponder_cost}

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `Objective`."""
        _pondering(network)
        return nullcontext()

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `Objective`."""
        pondering = _pondering(network)
        return act_loss(pondering.unroll(*inputs), labels, ponder_cost=self.ponder_cost, epsilon=pondering.epsilon)


@dataclass(frozen=True, slots=True)
class PonderLoss:
    """See `ponder_loss`; an `Objective` for a `PonderNetwork`.

    Attributes:
        prior: lambda_p, above 0 and below 1.
        beta: weight of the divergence, not negative; 0.01 in the paper.

    Raises:
        ConfigError: a parameter is out of range.
    """

    prior: float = 0.3
    beta: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1:
            raise ConfigError(f"the prior must be a probability above 0 and below 1, got {self.prior:g}")
        if not self.beta >= 0:
            raise ConfigError(f"the weight of the divergence must not be negative, got {self.beta:g}")

    @property
    def description(self) -> dict[str, Any]:
        """See `Objective`."""
        return {"loss": "ponder", "prior": self.prior, "beta": self.beta}

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `Objective`."""
        _pondering(network)
        return nullcontext()

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `Objective`."""
        return ponder_loss(_pondering(network).unroll(*inputs), labels, prior=self.prior, beta=self.beta)


def _pondering(network: nn.Module) -> PonderNetwork:
    if not isinstance(network, PonderNetwork):
        raise ConfigError(f"learned halting needs a cascade.models.halting.PonderNetwork, got {type(network).__name__}")
    return network
