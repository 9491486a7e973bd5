"""What a network costs in multiply-accumulates, by running it once. Knows torch; nothing of stages or ladders."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def macs(network: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one call in evaluation mode, counted by torch from the operators that really ran.

    Convolutions and matrix products count; normalisation, activation and pooling do not, as is usual in the field.

    Args:
        network: left in evaluation mode.
        inputs: what ``forward`` takes; pass one row to get the cost of one row.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.eval()(*inputs)
    return int(counter.get_total_flops()) // 2
