"""A network over images that chooses its depth, to show learned halting on. Plain modules of torch, and no ladder."""

import torch.nn.functional as F
from torch import Tensor, nn

from cascade.models.halting import PonderNetwork, Rule
from cascade.models.networks import normalise


class PatchStem(nn.Module):
    """One convolution that turns each patch of the image into a place of the map; what lies where is left to the blocks.

    Args:
        channels: of the map.
        patch: side of a patch, pixels.
    """

    def __init__(self, channels: int, patch: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        """Features [n, channels, height // patch, width // patch] of uint8 [n, height, width]."""
        features: Tensor = self.conv(normalise(image, self.conv.weight.dtype))
        return features


class TiedBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried, to be run again and again.

    Normalised in groups of channels of each row alone: the statistics of batch normalisation would differ from step to step,
    while the weights are the same.

    Args:
        channels: of the features; a multiple of ``groups``.
        groups: of channels that are normalised together.
    """

    def __init__(self, channels: int, groups: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        change: Tensor = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(features))))))
        return features + change


class NormalisedHead(nn.Module):
    """A linear layer on the mean of a map.

    Args:
        channels: of the map.
        outputs: of the layer.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.linear = nn.Linear(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """[n, outputs] of [n, channels, height, width]."""
        outputs: Tensor = self.linear(F.relu(self.norm(features)).mean((2, 3)))
        return outputs


def pondering_images(
    channels: int = 32,
    steps: int = 6,
    patch: int = 4,
    classes: int = 10,
    rule: Rule = "ponder",
    epsilon: float = 0.01,
    scale: float = 1.0,
) -> PonderNetwork:
    """A small network over images uint8 [n, height, width] that thinks about each for as long as it needs.

    Args:
        channels: of the features, a multiple of 4.
        steps: most steps of a row.
        patch: see `PatchStem`.
        classes: number of logits.
        rule: see `PonderNetwork`.
        epsilon: see `PonderNetwork`.
        scale: see `PonderNetwork`.
    """
    return PonderNetwork(
        PatchStem(channels, patch),
        TiedBlock(channels),
        NormalisedHead(channels, 1),
        NormalisedHead(channels, classes),
        steps=steps,
        rule=rule,
        epsilon=epsilon,
        scale=scale,
    )
