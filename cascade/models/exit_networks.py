"""Image networks with several exits. Plain modules of torch; which exit is a stage of what ladder is not known here."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cascade.models.exits import BlockExits
from cascade.models.networks import PreActivationBlock, normalise


class PixelStem(nn.Module):
    """Standardised pixels through one 3x3 convolution that keeps the resolution.

    Args:
        channels: channels of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, 1, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Features [n, channels, height, width] of uint8 [n, height, width]."""
        features: Tensor = self.conv(normalise(image, self.conv.weight.dtype))
        return features


class PooledHead(nn.Module):
    """Batch norm, ReLU, averages over the fields of a square grid, and one linear layer on them.

    Where a feature sits tells an early exit more than how often it is there.

    Args:
        channels: channels of the features.
        grid: fields along a side.
        classes: number of logits.
    """

    def __init__(self, channels: int, grid: int, classes: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels * grid * grid, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, channels, height, width]."""
        pooled = F.adaptive_avg_pool2d(F.relu(self.norm(features)), self.grid)
        logits: Tensor = self.linear(pooled.flatten(1))
        return logits


class ResidualExits(BlockExits):
    """A residual network of pre-activation blocks that answers behind each group of blocks.

    Args:
        stem: channels of the first convolution, which keeps the resolution.
        widths: channels of each group.
        depths: blocks in each group; as many as ``widths``.
        strides: stride of each group's first block; as many as ``widths``.
        grid: see `PooledHead`.
        classes: number of logits.
    """

    def __init__(
        self,
        stem: int = 16,
        widths: Sequence[int] = (24, 48, 96),
        depths: Sequence[int] = (1, 2, 3),
        strides: Sequence[int] = (2, 2, 1),
        grid: int = 4,
        classes: int = 10,
    ) -> None:
        blocks: list[nn.Module] = []
        heads: dict[int, nn.Module] = {}
        channels = stem
        for width, depth, stride in zip(widths, depths, strides, strict=True):
            for index in range(depth):
                blocks.append(PreActivationBlock(channels, width, stride if index == 0 else 1))
                channels = width
            heads[len(blocks)] = PooledHead(channels, grid, classes)
        super().__init__(PixelStem(stem), blocks, heads)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
