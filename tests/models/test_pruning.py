"""Channels taken out of real networks, and the factory that makes what is left again."""

import numpy as np
import pytest
import torch
from torch import nn

from cascade.errors import ConfigError
from cascade.models.flops import macs
from cascade.models.networks import ResidualNet, StridedCNN
from cascade.models.pruning import last_layer, prune, resized

RESIDUAL = {"stem": 8, "widths": [8, 16], "depths": [1, 2], "strides": [2, 2], "mirror": True}
STRIDED = {"widths": [8, 12], "kernels": [3, 3], "strides": [2, 2]}


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8))


@pytest.mark.parametrize(("network", "args"), [(ResidualNet, RESIDUAL), (StridedCNN, STRIDED)])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_half_of_the_channels_are_gone_and_its_factory_makes_it_again(network, args, norm):
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    whole = network(**args).eval()
    before, names = macs(whole, images(1)), list(whole.state_dict())
    shapes = prune(whole, [images(1)], keep=0.5, norm=norm)
    assert list(whole.state_dict()) == names
    assert macs(whole, images(1)) < 0.4 * before
    assert "head.bias" not in shapes
    again = resized(f"cascade.models.networks:{network.__name__}", args, shapes).eval()
    again.load_state_dict(whole.state_dict(), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(again(images(3)), whole(images(3)))
    assert again(images(3)).shape == (3, 10)


def test_the_channels_of_least_norm_go():
    pytest.importorskip("torch_pruning")
    network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 0.1, 2.0, 0.2]).view(4, 1, 1, 1))
        network[2].weight.fill_(1.0)
    prune(network, [torch.ones(1, 1, 1, 1)], keep=0.5)
    assert network[0].weight.flatten().tolist() == [1.0, 2.0]
    assert network[2].in_features == 2


def test_layers_know_their_new_sizes():
    shapes = {
        "0.weight": [6, 1, 3, 3],
        "1.weight": [6],
        "1.bias": [6],
        "1.running_mean": [6],
        "1.running_var": [6],
        "2.weight": [6, 1, 3, 3],
    }
    layers = {"factory": "test_pruning:depthwise", "args": {}}
    network = resized(layers["factory"], layers["args"], shapes)
    assert network[0].out_channels == 6
    assert network[1].num_features == 6
    assert (network[2].groups, network[2].in_channels, network[2].out_channels) == (6, 6, 6)
    assert network(torch.zeros(1, 1, 9, 9)).shape == (1, 6, 5, 5)


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8, bias=False)).eval()


def test_a_shape_of_nothing_is_named():
    with pytest.raises(ConfigError, match=r"has no 7\.weight"):
        resized("test_pruning:depthwise", {}, {"7.weight": [1]})


def test_the_last_layer_is_the_one_that_runs_last_not_the_one_that_was_made_last():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(3, 2)
            self.first = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    network = Backwards()
    assert last_layer(network, [torch.zeros(1, 4)]) is network.second
