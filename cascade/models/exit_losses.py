"""Losses that train all exits of a network together. Knows logits, labels and `ExitNetwork`; no data, optimizer or file.

K exits; CE_k is the mean cross-entropy of exit k over the rows of a batch, the last exit is K.

    joint           sum_k w_k CE_k                                            Huang et al., "Multi-Scale Dense Networks for
                                                                              Resource Efficient Image Classification" (2018)
    distillation    w_K CE_K + sum_{k<K} w_k [(1-g) CE_k + g T^2 KL(softmax(z_K/T) || softmax(z_k/T))]
    equilibrium     the joint loss, every block moved by the *mean* of the exits behind it instead of their sum

The last two are of Li et al., "Improved Techniques for Training Adaptive Deep Networks" (ICCV 2019), arXiv 1908.06294.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.exits import ExitNetwork, State

Inputs = tuple[Any, ...]
"""What a network takes, in order, each [rows, ...]."""


class Objective(Protocol):
    """What training makes small."""

    @property
    def description(self) -> dict[str, Any]:
        """Name and parameters as plain values, for the files that tell how weights were made."""
        ...

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:
        """Set up whatever the loss needs at the network, for as long as the context lasts.

        Args:
            network: the one that will be trained.
            inputs: a few rows that it can be run on.
        """
        ...

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """The loss of a batch: a scalar that can be differentiated.

        Args:
            network: in training mode.
            inputs: of the batch.
            labels: int64 [rows].
        """
        ...


def exit_cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each exit, in nats and float32.

    Args:
        logits: [rows, exits, classes].
        labels: int64 [rows].

    Returns:
        [exits].

    Raises:
        ConfigError: the logits are not [rows, exits, classes].
    """
    rows, exits, classes = _shape(logits)
    each = F.cross_entropy(logits.float().reshape(rows * exits, classes), labels.repeat_interleave(exits), reduction="none")
    return each.reshape(rows, exits).mean(dim=0)


def joint_loss(logits: Tensor, labels: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """sum_k w_k CE_k.

    Args:
        logits: [rows, exits, classes].
        labels: int64 [rows].
        weights: w, one for each exit; 1 by default.

    Raises:
        ConfigError: the logits or the number of weights do not fit.
    """
    entropies = exit_cross_entropies(logits, labels)
    return (_weights(weights, entropies) * entropies).sum()


def distillation_loss(
    logits: Tensor, labels: Tensor, *, share: float, temperature: float, weights: Sequence[float] | None = None
) -> Tensor:
    """Every exit learns from the labels and, with a share g, from the last exit, which learns from the labels alone.

        w_K CE_K + sum_{k<K} w_k [(1 - g) CE_k + g T^2 KL(softmax(z_K / T) || softmax(z_k / T))]

    z_K is taken as a constant there. T^2 keeps the gradients of soft targets in the range of the others' (Hinton et al.,
    arXiv 1503.02531). KL is in nats, a mean over rows.

    Args:
        logits: z, [rows, exits, classes].
        labels: int64 [rows].
        share: g, from 0 to 1.
        temperature: T, above 0.
        weights: w, one for each exit; 1 by default.

    Raises:
        ConfigError: the logits or the number of weights do not fit.
    """
    entropies = exit_cross_entropies(logits, labels)
    softened = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = softened[:, -1:].detach()
    divergences = (teacher.exp() * (teacher - softened[:, :-1])).sum(dim=-1).mean(dim=0)
    early = (1 - share) * entropies[:-1] + share * temperature**2 * divergences
    return (_weights(weights, entropies) * torch.cat([early, entropies[-1:]])).sum()


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied on its way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself; what flows back through it is multiplied by ``factor``."""
    scaled: Tensor = _ScaledGradient.apply(value, factor)  # type: ignore[no-untyped-call]
    return scaled


def equilibrium_logits(network: ExitNetwork, *inputs: Any) -> Tensor:
    """Logits of all exits, whose gradients are scaled so that blocks far from the last exit are not pulled the hardest.

    With K exits numbered from 0, the gradient of exit i is multiplied by 1/(K-i), and what comes back over the boundary
    between segment i and segment i+1 by (K-i-1)/(K-i). A way from segment i to exit k crosses the boundaries i to k-1, whose
    factors and that of the exit multiply to 1/(K-i) whatever k is: segment i gets the mean of the exits i to K-1. That holds
    for every tensor of the state, also for one that a segment only hands on. Li et al. scale the same features inside a
    segment; at its borders, which every `ExitNetwork` has, it comes to the same for the trunk. An exit's own head is left
    with 1/(K-i) of its gradient; `full_head_gradients` gives it back.

    Args:
        network: the network.
        inputs: what it takes.

    Returns:
        [rows, exits, classes], the same values as ``network(*inputs)``.
    """
    exits = network.exits
    state: State = network.embed(*inputs)
    logits = []
    for index in range(exits):
        state, own = network.segment(index, state)
        behind = exits - index
        logits.append(scale_gradient(own, 1 / behind))
        state = {name: _scaled(value, (behind - 1) / behind) for name, value in state.items()}
    return torch.stack(logits, dim=1)


def _scaled(value: Tensor, factor: float) -> Tensor:
    return scale_gradient(value, factor) if value.requires_grad else value


def head_parameters(network: ExitNetwork, *inputs: Any) -> list[list[nn.Parameter]]:
    """The parameters that serve one exit alone, for each exit but the last: found by asking autograd what depends on what.

    Args:
        network: the network; run in evaluation mode, and left in the mode that it was in.
        inputs: a few rows.

    Returns:
        [exits - 1] lists.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.enable_grad():
            state: State = network.embed(*inputs)
            heads, trunk = [], set[int]()
            for index in range(network.exits - 1):
                state, logits = network.segment(index, state)
                heads.append(_used(logits, parameters))
                for value in state.values():
                    trunk |= _used(value, parameters)
            # A parameter may also be shared by two heads, and then it serves neither alone.
            last = _used(network.segment(network.exits - 1, state)[1], parameters)
    finally:
        for module, training in modes:
            module.training = training
    alone = []
    for index, head in enumerate(heads):
        others = set[int]().union(trunk, last, *heads[:index], *heads[index + 1 :])
        alone.append([parameters[place] for place in sorted(head - others)])
    return alone


def _used(value: Tensor, parameters: Sequence[nn.Parameter]) -> set[int]:
    """Places of the parameters that a value depends on."""
    if not value.requires_grad:
        return set()
    gradients = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return {place for place, gradient in enumerate(gradients) if gradient is not None}


@contextmanager
def full_head_gradients(network: ExitNetwork, *inputs: Any) -> Iterator[None]:
    """While the context lasts, multiply the gradients of exit i's own head by K-i, which undoes `equilibrium_logits` there.

    Args:
        network: the network.
        inputs: a few rows.
    """
    with ExitStack() as hooks:
        for index, head in enumerate(head_parameters(network, *inputs)):
            factor = network.exits - index
            for parameter in head:
                hook = parameter.register_hook(lambda gradient, factor=factor: gradient * factor)  # type: ignore[no-untyped-call]
                hooks.callback(hook.remove)
        yield


@dataclass(frozen=True, slots=True)
class JointLoss:
    """See `joint_loss`; for any network that returns [rows, exits, classes].

    Attributes:
        weights: one for each exit; None for 1 each.
    """

    weights: tuple[float, ...] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """See `Objective`."""
        return {"loss": "joint", "weights": _plain(self.weights)}

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `Objective`."""
        return nullcontext()

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `Objective`."""
        return joint_loss(network(*inputs), labels, self.weights)


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    """See `distillation_loss`; for any network that returns [rows, exits, classes].

    Attributes:
        share: of the early exits' loss that comes from the last exit, 0 to 1.
        temperature: at which they learn from it, above 0.
        weights: one for each exit; None for 1 each.

    Raises:
        ConfigError: a parameter is out of range.
    """

    share: float
    temperature: float
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"the share learnt from the last exit must lie between 0 and 1, got {self.share:g}")
        if not self.temperature > 0:
            raise ConfigError(f"the temperature of distillation must be above 0, got {self.temperature:g}")

    @property
    def description(self) -> dict[str, Any]:
        """See `Objective`."""
        return {
            "loss": "distil",
            "share": self.share,
            "temperature": self.temperature,
            "weights": _plain(self.weights),
        }

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `Objective`."""
        return nullcontext()

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `Objective`."""
        logits = network(*inputs)
        return distillation_loss(logits, labels, share=self.share, temperature=self.temperature, weights=self.weights)


@dataclass(frozen=True, slots=True)
class EquilibriumLoss:
    """See `equilibrium_logits`; for an `ExitNetwork`, since it must be cut into segments.

    Attributes:
        weights: one for each exit; None for 1 each.
    """

    weights: tuple[float, ...] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """See `Objective`."""
        return {"loss": "equilibrium", "weights": _plain(self.weights)}

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:
        """See `Objective`.

        Raises:
            ConfigError: the network has no segments.
        """
        return full_head_gradients(_segmented(network), *inputs)

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `Objective`."""
        return joint_loss(equilibrium_logits(_segmented(network), *inputs), labels, self.weights)


def _segmented(network: nn.Module) -> ExitNetwork:
    if not isinstance(network, ExitNetwork):
        raise ConfigError(
            "gradient equilibrium needs a network with segments, a cascade.models.exits.ExitNetwork; "
            f"{type(network).__name__} is none"
        )
    return network


def _shape(logits: Tensor) -> tuple[int, int, int]:
    if logits.ndim != 3 or 0 in logits.shape:
        raise ConfigError(f"a network with exits must return logits [rows, exits, classes], got {list(logits.shape)}")
    rows, exits, classes = logits.shape
    return rows, exits, classes


def _weights(weights: Sequence[float] | None, entropies: Tensor) -> Tensor:
    if weights is None:
        return torch.ones_like(entropies)
    if len(weights) != len(entropies):
        raise ConfigError(f"{len(weights)} weights for {len(entropies)} exits: each exit needs one")
    return entropies.new_tensor(weights)


def _plain(weights: tuple[float, ...] | None) -> list[float] | None:
    return None if weights is None else list(weights)
