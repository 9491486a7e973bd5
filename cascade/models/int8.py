"""Networks whose convolutions and linear layers compute in int8 on the CPU. Knows torch; not which stage, not what for.

Weights are symmetric int8 with a scale for each output channel; activations are uint8,

    x ~ s (q - z),   q = clamp(round(x / s) + z, 0, 255)

    static    s and z of each layer from ranges seen on rows, fixed
    dynamic   z = 128 and s = max |x| / 127 of every row by itself, at run time

With a scale for each row, what a row is answered does not depend on the rows that share its batch. Products are summed in
int32 by oneDNN's kernels, the ones that torch's compiled int8 networks call, and come back as float32; what lies between
the layers (norms, activations, sums) stays as it was. The state dict holds plain tensors, so that safetensors keep it.

torch.ao.quantization is deprecated, and torchao, which replaces it, quantises convolutions only in exported graphs, whose
scales are constants of the graph and not part of any state dict; hence these layers. See docs/decisions/0021.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.factory import call_factory

Activations = Literal["static", "dynamic"]

LEAST_SCALE = 1e-12
"""A layer whose input is all zeros has this scale: any would do."""
MIDDLE = 128
"""Zero point of dynamic activations: uint8 as if it were int8."""
SHRUNK = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Parts of the range seen among which the one with the least squared error is chosen: a few outliers may be cut off."""
KEPT_VALUES = 200_000
"""Activations of a layer on which that error is measured, at most, drawn evenly from what was seen."""

Eligible = nn.Conv2d | nn.Linear


class Int8Layer(nn.Module):
    """What the two layers share: the weights, and how an input becomes uint8.

    Args:
        weight_shape: of the layer replaced.
        bias: whether there is one.
        activations: see the module.
    """

    bias_shape: tuple[int, ...] = (-1,)
    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, weight_shape: Sequence[int], bias: bool, activations: Activations) -> None:
        super().__init__()
        self.activations = activations
        self.register_buffer("weight_int8", torch.zeros(tuple(weight_shape), dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(weight_shape[0]))
        self.register_buffer("bias", torch.zeros(weight_shape[0]) if bias else None)
        if activations == "static":
            self.register_buffer("input_scale", torch.ones(()))
            self.register_buffer("input_zero", torch.zeros((), dtype=torch.int64))
        self._packed: tuple[Tensor, Tensor, float, int] | None = None

    @property
    def weight(self) -> Tensor:
        """The weights as float32, for networks that look at a layer's number type, or at more."""
        shape = (-1, *(1 for _ in self.weight_int8.shape[1:]))
        return self.weight_int8.float() * self.weight_scale.view(shape)

    def take(self, layer: Eligible, scale: float = 1.0, zero: int = 0) -> None:
        """Take over the weights of a float layer, and its input's scale and zero point where they are static.

        The scale of output channel c is max |w_c| / 127.
        """
        weight = layer.weight.detach().float()
        largest = weight.flatten(1).abs().amax(dim=1)
        self.weight_scale.copy_((largest / 127).clamp_min(LEAST_SCALE))
        shape = (-1, *(1 for _ in weight.shape[1:]))
        self.weight_int8.copy_((weight / self.weight_scale.view(shape)).round().clamp(-127, 127).to(torch.int8))
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias.detach().float())
        if self.activations == "static":
            self.input_scale.fill_(max(scale, LEAST_SCALE))
            self.input_zero.fill_(zero)
        self._packed = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def pack(self, scale: float, zero: int, shape: Sequence[int]) -> Tensor:
        """The weights as the kernel wants them laid out for inputs of a shape; the number of rows does not matter.

        Without the shape some kernels lay them out anew at every call, which can take ten times as long as the products.
        """
        raise NotImplementedError

    def products(self, quantised: Tensor, packed: tuple[Tensor, Tensor, float, int], bias: Tensor | None) -> Tensor:
        """The layer's sums, float32, of a uint8 input."""
        raise NotImplementedError

    def forward(self, values: Tensor) -> Tensor:
        """What the layer replaced would give, nearly; float32."""
        if values.device.type != "cpu":
            raise ConfigError(f"int8 layers run on the CPU, got an input on {values.device.type}")
        if self._packed is None:
            static = self.activations == "static"
            scale, zero = (float(self.input_scale), int(self.input_zero)) if static else (1.0, MIDDLE)
            zeros = torch.zeros(len(self.weight_int8), dtype=torch.int64)
            self._packed = self.pack(scale, zero, values.shape), zeros, scale, zero
        values = values.float()
        if self.activations == "static":
            _, _, scale, zero = self._packed
            return self.products(_as_uint8(values * (1 / scale), zero), self._packed, self.bias)
        by_row = (-1, *(1 for _ in values.shape[1:]))
        largest = values.abs().amax(dim=tuple(range(1, values.ndim)))
        scales = (largest / 127).clamp_min(LEAST_SCALE)
        sums = self.products(_as_uint8(values / scales.view(by_row), MIDDLE), self._packed, None)
        sums.mul_(scales.view((-1, *(1 for _ in sums.shape[1:]))))
        if self.bias is not None:
            sums.add_(self.bias.view(self.bias_shape))
        return sums


class Int8Conv2d(Int8Layer):
    """A convolution in int8.

    Args:
        layer: the one replaced; only its shape is read, see `take` for its weights.
        activations: see the module.
    """

    bias_shape = (1, -1, 1, 1)

    def __init__(self, layer: nn.Conv2d, activations: Activations) -> None:
        super().__init__(layer.weight.shape, layer.bias is not None, activations)
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        self.padding = [int(side) for side in layer.padding]  # `eligible` takes no paddings that are words

    def pack(self, scale: float, zero: int, shape: Sequence[int]) -> Tensor:
        """See `Int8Layer`."""
        how = (self.stride, self.padding, self.dilation, self.groups, list(shape))
        packed: Tensor = torch.ops.onednn.qconv_prepack(self.weight_int8, self.weight_scale, scale, zero, *how)
        return packed

    def products(self, quantised: Tensor, packed: tuple[Tensor, Tensor, float, int], bias: Tensor | None) -> Tensor:
        """See `Int8Layer`."""
        weight, weight_zero, scale, zero = packed
        how = (self.stride, self.padding, self.dilation, self.groups)
        weights = (weight, self.weight_scale, weight_zero, bias, *how)
        sums: Tensor = torch.ops.onednn.qconv_pointwise(
            quantised, scale, zero, *weights, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums


class Int8Linear(Int8Layer):
    """A linear layer in int8.

    Args:
        layer: the one replaced; only its shape is read.
        activations: see the module.
    """

    def __init__(self, layer: nn.Linear, activations: Activations) -> None:
        super().__init__(layer.weight.shape, layer.bias is not None, activations)

    def pack(self, scale: float, zero: int, shape: Sequence[int]) -> Tensor:  # noqa: ARG002
        """See `Int8Layer`."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.weight_int8, list(shape))
        return packed

    def products(self, quantised: Tensor, packed: tuple[Tensor, Tensor, float, int], bias: Tensor | None) -> Tensor:
        """See `Int8Layer`."""
        weight, weight_zero, scale, zero = packed
        weights = (weight, self.weight_scale, weight_zero, bias)
        sums: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, scale, zero, *weights, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums


def eligible(network: nn.Module, leave: Sequence[str] = ()) -> dict[str, Eligible]:
    """Layers that can be replaced, by name.

    Subclasses are left alone: their users may reach for more than ``forward``.

    Args:
        network: where to look.
        leave: names of layers to leave as they are.
    """
    found: dict[str, Eligible] = {}
    for name, module in network.named_modules():
        plain = type(module) is nn.Linear or (
            type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        )
        if plain and name and name not in leave:
            found[name] = module
    return found


def quantised(factory: str, args: Mapping[str, Any], activations: Activations, leave: Sequence[str] = ()) -> nn.Module:
    """Factory of a network in int8, to be loaded with the weights that `quantise` left.

    Args:
        factory: of the float network, ``package.module:callable``.
        args: its keyword arguments.
        activations: ``static`` or ``dynamic``, see the module.
        leave: names of layers that stay as they are.

    Raises:
        ConfigError: this torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise ConfigError("int8 layers need a torch that was built with oneDNN")
    network: nn.Module = call_factory(factory, args)
    for name, layer in eligible(network, leave).items():
        path, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(path), leaf, _replacement(layer, activations))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def quantise(network: nn.Module, into: nn.Module, ranges: Mapping[str, "Range"] | None = None) -> None:
    """Fill a network made by `quantised` with the weights of a float network.

    Args:
        network: the float network.
        into: made by `quantised` from the same factory and arguments; it has everything `network` has.
        ranges: of the layers' inputs, by name, where activations are static.
    """
    floats = dict(network.named_modules())
    own = into.state_dict()
    for name, value in network.state_dict().items():
        if name in own and not isinstance(into.get_submodule(name.rpartition(".")[0]), Int8Layer):
            own[name].copy_(value)
    for name, layer in into.named_modules():
        if isinstance(layer, Int8Layer):
            scale, zero = ranges[name].affine() if ranges is not None else (1.0, 0)
            layer.take(floats[name], scale, zero)


class Range:
    """What the inputs of one layer were like."""

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self._kept: list[Tensor] = []
        self._random = torch.Generator().manual_seed(0)

    def see(self, values: Tensor, keep: int) -> None:
        """Take note of a batch.

        Args:
            values: the layer's input.
            keep: how many of them to keep, drawn at random.
        """
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        flat = values.detach().reshape(-1)
        self._kept.append(flat[torch.randint(len(flat), (keep,), generator=self._random)].float())

    def affine(self) -> tuple[float, int]:
        """Scale and zero point with the least squared error among `SHRUNK` ranges; 0 is always represented exactly."""
        kept = torch.cat(self._kept)
        best: tuple[float, float, int] | None = None
        for shrunk in SHRUNK:
            scale = max((self.high - self.low) * shrunk / 255, LEAST_SCALE)
            zero = min(255, max(0, round(-self.low * shrunk / scale)))
            back = ((kept / scale).round() + zero).clamp(0, 255).sub_(zero).mul_(scale)
            error = float((back - kept).square().mean())
            if best is None or error < best[0]:
                best = error, scale, zero
        assert best is not None
        return best[1], best[2]


def input_ranges(network: nn.Module, run: Callable[[], None], batches: int, leave: Sequence[str] = ()) -> dict[str, Range]:
    """See what goes into each layer that can be replaced while batches run.

    Args:
        network: the float network.
        run: runs it.
        batches: how many times.
        leave: names of layers to leave as they are.

    Returns:
        By the layer's name; a layer that nothing went through is missing.
    """
    ranges: dict[str, Range] = {}
    keep = -(-KEPT_VALUES // batches)

    def watched(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        # At once, not after the batch: what follows may change the input in place.
        return lambda _, inputs: ranges.setdefault(name, Range()).see(inputs[0], keep)

    hooks = [layer.register_forward_pre_hook(watched(name)) for name, layer in eligible(network, leave).items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def _as_uint8(scaled: Tensor, zero: int) -> Tensor:
    """clamp(round(scaled) + zero); torch.quantize_per_tensor is to go with torch's quantised tensors (issue 184982)."""
    return scaled.round_().add_(zero).clamp_(0, 255).to(torch.uint8)


def _replacement(layer: Eligible, activations: Activations) -> Int8Layer:
    return Int8Conv2d(layer, activations) if isinstance(layer, nn.Conv2d) else Int8Linear(layer, activations)
