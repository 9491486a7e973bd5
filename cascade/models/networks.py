"""The networks of the shipped image ladder: plain modules, from a pooled linear model to a wide residual net.

Each takes ``uint8 [n, height, width]`` greyscale pixels and returns ``float [n, classes]`` logits in the dtype of its
weights; normalisation happens inside, so that a client sends pixels and nothing else. Knows torch only: not where
weights come from, not which stage of a ladder it will be, not how a request got here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of all pixels of the Fashion-MNIST training images, in units of 0..255.
PIXEL_MEAN = 72.94
PIXEL_STD = 90.02


def normalise(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn greyscale pixels into one standardised channel.

    Args:
        image: uint8 [n, height, width].
        dtype: that of the weights that read the result.

    Returns:
        ``(image - PIXEL_MEAN) / PIXEL_STD`` as ``dtype`` [n, 1, height, width].
    """
    return ((image.unsqueeze(1).float() - PIXEL_MEAN) / PIXEL_STD).to(dtype)


class PooledLinear(nn.Module):
    """Softmax regression on mean-pooled pixels: the cheapest model that is still worth asking.

    Args:
        pool: side of the square that is averaged, pixels; divides ``size``.
        size: side of the image, pixels.
        classes: number of logits.
    """

    def __init__(self, pool: int = 2, size: int = 28, classes: int = 10) -> None:
        super().__init__()
        if size % pool:
            raise ValueError(f"pool must divide size {size}, got {pool}")
        self.pool = pool
        self.head = nn.Linear((size // pool) ** 2, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [n, classes] of uint8 [n, size, size]."""
        pixels = normalise(image, self.head.weight.dtype)
        logits: Tensor = self.head(F.avg_pool2d(pixels, self.pool).flatten(1))
        return logits


class StridedCNN(nn.Module):
    """Convolution, batch norm and ReLU, a few times, each shrinking the image; then one linear layer on what is left.

    Shrinking by stride keeps the cost in the first layers, where the image is large, as low as it can be; the last map
    is flattened rather than averaged, because where a feature sits tells a shirt from a dress.

    Args:
        widths: channels after each convolution.
        kernels: side of each kernel, pixels; as many as ``widths``.
        strides: stride of each convolution; as many as ``widths``.
        size: side of the image, pixels.
        classes: number of logits.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 48),
        kernels: Sequence[int] = (3, 3, 3),
        strides: Sequence[int] = (2, 2, 2),
        size: int = 28,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = 1, size
        for width, kernel, stride in zip(widths, kernels, strides, strict=True):
            padding = (kernel - 1) // 2
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels, side = width, (side + 2 * padding - kernel) // stride + 1
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * side * side, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [n, classes] of uint8 [n, size, size]."""
        logits: Tensor = self.head(self.body(normalise(image, self.head.weight.dtype)).flatten(1))
        return logits


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried, batch norm and ReLU before each.

    The order of He et al., "Identity mappings in deep residual networks" (2016). Where the shape changes, the carried
    input goes through a 1x1 convolution after the first activation.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.carry: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.carry = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, channels_out, ceil(height / stride), ceil(width / stride)]."""
        active = F.relu(self.norm1(features))
        carried = features if self.carry is None else self.carry(active)
        change: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return carried + change


class ResidualNet(nn.Module):
    """A wide residual network (Zagoruyko & Komodakis, 2016) of pre-activation blocks, averaged over the last map.

    Args:
        stem: channels of the first 3x3 convolution, which keeps the resolution.
        widths: channels of each group of blocks.
        depths: blocks in each group; as many as ``widths``.
        strides: stride of each group's first block; as many as ``widths``.
        mirror: outside training, average the logits over the image and its mirror image. Costs twice as much.
        shift: outside training, average the logits over the image moved by up to so many pixels each way, background moving
            in. Costs (2 shift + 1)^2 times as much.
        classes: number of logits.
    """

    def __init__(
        self,
        stem: int = 16,
        widths: Sequence[int] = (32, 64),
        depths: Sequence[int] = (1, 1),
        strides: Sequence[int] = (2, 2),
        mirror: bool = False,
        shift: int = 0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.mirror = mirror
        self.shift = shift
        self.stem = nn.Conv2d(1, stem, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        channels = stem
        for width, depth, stride in zip(widths, depths, strides, strict=True):
            for index in range(depth):
                blocks.append(PreActivationBlock(channels, width, stride if index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Logits [n, classes] of uint8 [n, height, width]."""
        if self.training:
            return self._logits(image)
        views = [image]
        if self.shift:
            height, width = image.shape[1:]
            padded = F.pad(image, (self.shift,) * 4)
            places = range(2 * self.shift + 1)
            views = [padded[:, down : down + height, right : right + width] for down in places for right in places]
        if self.mirror:
            views += [view.flip(-1) for view in views]
        # One pass over all views: a batch so many times larger costs less than as many passes when batches are small.
        logits = self._logits(torch.cat(views))
        return logits.reshape(len(views), len(image), -1).mean(0)

    def _logits(self, image: Tensor) -> Tensor:
        features = self.blocks(self.stem(normalise(image, self.stem.weight.dtype)))
        logits: Tensor = self.head(F.relu(self.norm(features)).mean((2, 3)))
        return logits
