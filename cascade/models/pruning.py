"""Channels of least norm taken out of a network, for real: smaller tensors, no masks. Knows torch and torch-pruning.

Which channels belong together (a sum of two branches, a norm behind a convolution, the flattened input of a linear layer)
is found by torch-pruning from one pass of the network (Fang et al., DepGraph, CVPR 2023), an optional dependency that only
pruning itself needs. A pruned network is the old one with other shapes, and `resized` makes it again from those.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.factory import call_factory

Norm = Literal["l1", "l2"]
Shapes = dict[str, list[int]]

Weighted = nn.modules.conv._ConvNd | nn.Linear


def prune(network: nn.Module, inputs: Sequence[Tensor], *, keep: float, norm: Norm = "l2") -> Shapes:
    """Take out of every layer the channels of least norm, in place; the last layer keeps its outputs.

    A channel's norm is that of the weights of all layers that it belongs to, and channels are compared within a layer: each
    loses the same share.

    Args:
        network: float weights, on the CPU.
        inputs: what ``forward`` takes, of one row or more.
        keep: share of the channels that stay, in (0, 1); at least one of each layer does.
        norm: ``l1`` or ``l2``.

    Returns:
        Shapes of the parameters and buffers that changed, by name: what `resized` needs.

    Raises:
        ConfigError: torch-pruning is not installed, the share is none, or nothing could be taken out.
    """
    if not 0 < keep < 1:
        raise ConfigError(f"the share of channels to keep must be between 0 and 1, got {keep:g}")
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError("pruning needs torch-pruning: pip install 'cascade-serve[compress]'") from error
    network.eval().requires_grad_(True)
    before = {name: list(value.shape) for name, value in network.state_dict().items()}
    pruner = torch_pruning.pruner.BasePruner(
        network,
        tuple(inputs),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1 if norm == "l1" else 2),
        pruning_ratio=1 - keep,
        ignored_layers=[last_layer(network, inputs)],
    )
    pruner.step()
    after = {name: list(value.shape) for name, value in network.state_dict().items()}
    changed = {name: shape for name, shape in after.items() if shape != before[name]}
    if not changed:
        raise ConfigError(f"no channel of {type(network).__name__} can be taken out")
    return changed


def last_layer(network: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """The layer with weights that runs last: its outputs are the logits."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, Weighted)]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ConfigError(f"{type(network).__name__} runs no convolution and no linear layer")
    return ran[-1]


def resized(factory: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Factory of a network with some tensors of other shapes, to be loaded with the weights that are left.

    Args:
        factory: of the network before, ``package.module:callable``.
        args: its keyword arguments.
        shapes: new shape of each parameter or buffer that changed, by its name in the state dict.
    """
    network: nn.Module = call_factory(factory, args)
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = network.get_submodule(path)
            old = getattr(module, leaf)
        except AttributeError as error:
            raise ConfigError(f"shapes: {type(network).__name__} has no {name}") from error
        if not isinstance(old, Tensor):
            raise ConfigError(f"shapes: {name} of {type(network).__name__} is no tensor")
        new = old.detach().new_zeros(tuple(shape))
        setattr(module, leaf, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    changed = {name.rpartition(".")[0] for name in shapes}
    for path in changed:
        _tell_sizes(network.get_submodule(path))
    return network


def _tell_sizes(module: nn.Module) -> None:
    """Bring the numbers that a layer keeps beside its weights in line with them."""
    if isinstance(module, nn.modules.conv._ConvNd):
        weight = module.weight
        if module.transposed:
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
            return
        if module.groups == module.in_channels > 1:  # depthwise: a group for each channel, so fewer of both
            module.groups = weight.shape[0] * module.groups // module.out_channels
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        if sized is not None:
            module.num_features = len(sized)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = math.prod(module.weight.shape)
