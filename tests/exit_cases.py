"""Small networks with exits, made so that a test can say what their gradients must be."""

from typing import Any

import torch
from torch import Tensor, nn

from cascade.models.exits import BlockExits, ExitNetwork, State


def blocks(exits: int = 3, width: int = 5, classes: int = 4, seed: int = 0, dropout: float = 0.0) -> BlockExits:
    """A stem, one block before each exit, linear heads; over float rows [n, 3]. Also a factory for commands."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.BatchNorm1d(width), nn.Dropout(dropout))
            for _ in range(exits)
        ]
        return BlockExits(nn.Linear(3, width), body, {k + 1: nn.Linear(width, classes) for k in range(exits)})


def unseeded_blocks(**args: Any) -> BlockExits:
    """The same with weights from torch's global dice, as most factories make them."""
    return blocks(seed=int(torch.randint(1 << 30, ())), **args)


def adapter(width: int = 5, classes: int = 4) -> BlockExits:
    """`blocks` whose stem and first block are frozen."""
    network = blocks(2, width, classes)
    network.stem.requires_grad_(False)
    network.blocks[0].requires_grad_(False)
    return network


def no_exits() -> nn.Module:
    """A network that returns features of each pixel: no logits."""
    return nn.Conv1d(3, 4, 1)


class Chain(ExitNetwork):
    """Scalars all the way: block k multiplies by a_k, head k by h_k; what came in is handed on beside it."""

    def __init__(self, exits: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.trunk = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(exits)])
        self.heads = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(exits)])

    @property
    def exits(self) -> int:
        return len(self.trunk)

    def embed(self, *inputs: Tensor) -> State:
        return {"value": inputs[0] * self.first, "kept": inputs[0] * self.first, "lengths": torch.ones(len(inputs[0]))}

    def segment(self, index: int, state: State) -> tuple[State, Tensor]:
        value = state["value"] * self.trunk[index]
        # What was kept from the beginning is read at every exit: its way there crosses all boundaries too.
        return {**state, "value": value}, (value + state["kept"]) * self.heads[index]
