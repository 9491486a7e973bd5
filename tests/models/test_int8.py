"""Int8 layers against the float layers that they stand for, and against their own arithmetic done by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from cascade.errors import ConfigError
from cascade.models.int8 import Int8Layer, Range, eligible, input_ranges, quantise, quantised

STRIDED = ("cascade.models.networks:StridedCNN", {"widths": [8, 12], "kernels": [3, 4], "strides": [2, 2]})
RESIDUAL = ("cascade.models.networks:ResidualNet", {"stem": 4, "widths": [8, 12], "mirror": True})


def made(factory, args) -> nn.Module:
    from cascade.models.factory import call_factory

    torch.manual_seed(3)
    network = call_factory(factory, args)
    network.train()
    with torch.no_grad():  # norms that have seen something
        for _ in range(3):
            network(images(64))
    return network.eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8))


def int8(network: nn.Module, factory, args, activations: str, leave=()) -> nn.Module:
    into = quantised(factory, args, activations, leave)
    ranges = None
    if activations == "static":
        with torch.no_grad():
            ranges = input_ranges(network, lambda: network(images(64, seed=1)), 1, leave)
    quantise(network, into, ranges)
    return into.eval()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of the spread of what was expected."""
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize(("factory", "args"), [STRIDED, RESIDUAL])
def test_an_int8_network_says_nearly_what_the_float_one_says(factory, args, activations):
    network = made(factory, args)
    with torch.inference_mode():
        expected, found = network(images(32, seed=2)), int8(network, factory, args, activations)(images(32, seed=2))
    assert found.dtype == torch.float32
    assert error(found, expected) < 0.1


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_row_is_answered_alike_alone_and_among_others(activations):
    network = int8(made(*RESIDUAL), *RESIDUAL, activations)
    # One row of another size than all others would move a scale that rows shared.
    rows = torch.cat([images(7), torch.full((1, 28, 28), 255, dtype=torch.uint8), torch.zeros(1, 28, 28, dtype=torch.uint8)])
    with torch.inference_mode():
        together = network(rows)
        alone = torch.cat([network(rows[k : k + 1]) for k in range(len(rows))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_its_weights_make_it_again(activations):
    network = int8(made(*STRIDED), *STRIDED, activations)
    again = quantised(*STRIDED, activations)
    with torch.inference_mode():
        again.eval()(images(2))  # packed with no weights: loading must undo that
        state = load(save({name: value.contiguous() for name, value in network.state_dict().items()}))
        again.load_state_dict(state, strict=True)
        torch.testing.assert_close(again(images(5)), network(images(5)), rtol=0, atol=0)
    assert state["body.0.weight_int8"].dtype == torch.int8


def test_a_linear_layer_sums_what_its_integers_say():
    layer, into = nn.Linear(5, 3), quantised("torch.nn:Sequential", {}, "static")
    into.add_module("0", Int8Of(layer))
    layer8 = into[0]
    layer8.take(layer, scale=0.02, zero=40)
    x = torch.linspace(-1.0, 3.0, 10).reshape(2, 5)
    q = (x / 0.02).round().add(40).clamp(0, 255)
    w = layer8.weight_int8.float() * layer8.weight_scale[:, None]
    torch.testing.assert_close(layer8.weight, w)
    with torch.inference_mode():
        found = layer8(x)
    torch.testing.assert_close(found, (q - 40) * 0.02 @ w.T + layer.bias.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("shape", [(3, 8), (3, 4, 8), (3, 2, 4, 8)])
def test_a_linear_layer_takes_rows_of_any_shape(activations, shape):
    from cascade.models.int8 import Int8Linear

    torch.manual_seed(1)
    layer, rows = nn.Linear(8, 4), torch.rand(shape) * 2 - 1
    layer8 = Int8Linear(layer, activations)
    layer8.take(layer, scale=2 / 255, zero=128)
    with torch.inference_mode():
        assert error(layer8(rows), layer(rows)) < 0.03


def Int8Of(layer: nn.Linear) -> Int8Layer:
    from cascade.models.int8 import Int8Linear

    return Int8Linear(layer, "static")


def test_layers_that_it_does_not_know_stay_as_they_are():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv1d(4, 4, 1),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    assert list(eligible(network, leave=["5"])) == ["2", "4"]


def test_a_range_always_holds_zero_and_gives_up_outliers_where_that_errs_less():
    seen = Range()
    seen.see(torch.linspace(2.0, 4.0, 1000), 1000)
    scale, zero = seen.affine()
    assert zero == 0
    assert scale == pytest.approx(4.0 / 255)
    outlier = Range()
    outlier.see(torch.cat([torch.linspace(0.0, 1.0, 100_000), torch.tensor([1.6])]), 50_000)
    assert outlier.affine()[0] < 1.6 / 255


def test_ranges_are_those_of_the_inputs_even_if_they_are_changed_in_place_later():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x)
            x.zero_()
            return out

    network = InPlace()
    with torch.no_grad():
        ranges = input_ranges(network, lambda: network(torch.tensor([[-1.0, 3.0]])), 1)
    assert (ranges["layer"].low, ranges["layer"].high) == (-1.0, 3.0)


def test_another_device_than_the_cpu_is_refused():
    layer = Int8Of(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="run on the CPU, got an input on meta"):
        layer(torch.empty(1, 2, device="meta"))
