"""A stage whose network chooses its depth for each row, less of it under pressure. Knows torch; not whose pressure it is.

The pressure of each row comes as one more array beside the inputs, and the depth of each row goes back as one more beside
the logits. So both travel, are put together with those of other calls and are taken apart again as any array is, and rows
that several routers sent may each think under their own pressure in one pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from cascade.models.exits import State
from cascade.models.halting import Thinks
from cascade.models.stage import Arrays, StageResult, TorchStage

PRESSURE = "cascade.pressure"
"""Name of the pressures, float32 [n], among the inputs; no input of a spec may have a dot in its name."""
DEPTH = "cascade.depth"
"""Name of the depths, int64 [n], in a result's state."""


class _Reporting(nn.Module):
    """A thinking network with the pressure as its last input, and the depth beside its logits."""

    def __init__(self, network: Thinks) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> tuple[Tensor, State]:
        *rows, pressure = inputs
        thought = self.network.think(*rows, pressure=pressure)
        return thought.logits, {DEPTH: thought.depth}


class ThinkingStage(TorchStage):
    """A `TorchStage` of a network that thinks. Batches that bring no pressure think as long as they like.

    On a GPU it is run kernel by kernel and one batch at a time: how many rows take a step is known only behind the one
    before, so that no graph could be recorded.

    Args:
        network: a `Thinks`.
        inputs: see `TorchStage`.
        how: see `TorchStage`.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[str], **how: Any) -> None:
        if not isinstance(network, Thinks):
            raise TypeError(f"{type(network).__name__} has no method think")
        super().__init__(_Reporting(network), (*inputs, PRESSURE), **(how | {"pipelined": False}))

    def begin(self, inputs: Arrays | State, *, keep: bool = False) -> Callable[[], StageResult]:
        """See `TorchStage`."""
        given: dict[str, Any] = dict(inputs)
        given.setdefault(PRESSURE, np.zeros(len(next(iter(given.values()))), np.float32))
        return super().begin(given, keep=keep)
