"""Networks with several exits, cut into segments that resume from what the one before left. Knows torch; no stages, no Ray.

A network with exits answers at several depths. Served, each exit is a stage of its own, and the stage behind it goes on from
the activations of the rows that did not leave: nothing is computed twice. Training and tests take all exits in one pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""What a later segment resumes from, by name: each [rows, ...]. The shape behind the rows may differ from batch to batch, as
with the number of tokens; `joined` pads."""


class ExitNetwork(nn.Module, ABC):
    """A network that answers at several depths.

    The contract that lets segments be served apart:

    - A row's logits depend on that row alone, so rows may be joined with others, split and put in another order between
      segments. (Batch normalisation keeps it in evaluation mode.)
    - A segment leaves the state that it was given unchanged: a batch that failed is run again from it.
    - Where rows differ in length, the state has an entry that says how long each is (such as ``lengths`` [rows] or a mask);
      the others are padded with zeros to the longest row of a batch, so what lies beyond a row's length must not reach its
      logits, and a segment may trim what no row of its batch needs.
    """

    ragged: bool = False
    """Whether the shape behind the rows of a state differs from batch to batch. Then a GPU runs the segments kernel by
    kernel: what is recorded has one shape."""

    @property
    @abstractmethod
    def exits(self) -> int:
        """Number of exits, at least one."""

    @abstractmethod
    def embed(self, *inputs: Any) -> State:
        """Turn inputs into what segment 0 works on.

        Args:
            inputs: the ladder's inputs in order, each [rows, ...]; BYTES come as numpy arrays of objects.
        """

    @abstractmethod
    def segment(self, index: int, state: State) -> tuple[State, Tensor]:
        """Run the blocks between exit ``index - 1`` and exit ``index``.

        Args:
            index: which exit, from 0.
            state: what `embed` gave if ``index`` is 0, else what segment ``index - 1`` gave.

        Returns:
            What segment ``index + 1`` goes on from, and the logits [rows, classes] of this exit. Nobody reads the state that
            the last segment returns; it may be empty.
        """

    def forward(self, *inputs: Any) -> Tensor:
        """Logits of all exits in one pass, [rows, exits, classes]."""
        state, logits = self.embed(*inputs), []
        for index in range(self.exits):
            state, own = self.segment(index, state)
            logits.append(own)
        return torch.stack(logits, dim=1)


class BlockExits(ExitNetwork):
    """Exits on any network that is a sequence: a stem, then blocks, and a head behind some of the blocks.

    One tensor goes from block to block; it is the state, under the name ``features``. The state dict has ``stem.*``,
    ``blocks.<block>.*`` and ``heads.<exit>.*``.

    Args:
        stem: takes the inputs, returns features [rows, ...].
        blocks: each takes the features and returns features.
        heads: by the number of blocks that stand before it, each takes the features there and returns logits [rows,
            classes]; the last one stands behind all blocks.

    Raises:
        ValueError: a head stands behind more blocks than there are, or none stands behind the last.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], heads: Mapping[int, nn.Module]) -> None:
        super().__init__()
        places = sorted(heads)
        if not places or places[0] < 0 or places[-1] != len(blocks):
            raise ValueError(f"heads must stand behind 0 to {len(blocks)} blocks, the last behind all, got {places}")
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(heads[place] for place in places)
        self._spans = tuple(range(first, last) for first, last in pairwise([0, *places]))

    @property
    def exits(self) -> int:
        """See `ExitNetwork`."""
        return len(self.heads)

    def embed(self, *inputs: Any) -> State:
        """See `ExitNetwork`."""
        return {"features": self.stem(*inputs)}

    def segment(self, index: int, state: State) -> tuple[State, Tensor]:
        """See `ExitNetwork`."""
        features = state["features"]
        for block in self._spans[index]:
            features = self.blocks[block](features)
        return {"features": features}, self.heads[index](features)


class Segment(nn.Module):
    """What one stage runs of a network with exits: from the inputs, or from the state of an earlier stage, to one exit.

    Several stages may share one network. Called, it returns the logits [rows, classes], and if it leaves a state that too.

    Args:
        network: the network.
        last: the exit that answers.
        after: the exit of the stage that it resumes; None to begin at the inputs.
        takes: names of the state that it resumes from, in the order of its arguments.
        leaves: whether another stage resumes from here.

    Raises:
        ValueError: the network has no such exit, or not behind the one that it resumes.
    """

    def __init__(
        self,
        network: ExitNetwork,
        last: int,
        *,
        after: int | None = None,
        takes: Sequence[str] = (),
        leaves: bool = False,
    ) -> None:
        super().__init__()
        if not (-1 if after is None else after) < last < network.exits:
            behind = "" if after is None else f" behind exit {after}"
            raise ValueError(f"no exit {last}{behind} in a network with the exits 0 to {network.exits - 1}")
        self.network = network
        self.takes = tuple(takes)
        self.leaves = leaves
        self._resumes = after is not None
        self._indices = range(0 if after is None else after + 1, last + 1)

    def forward(self, *tensors: Any) -> Tensor | tuple[Tensor, State]:
        """Run the segment.

        Args:
            tensors: the inputs, or the state in the order of ``takes``.
        """
        if self._resumes:
            state: State = dict(zip(self.takes, tensors, strict=True))
        else:
            state = self.network.embed(*tensors)
        for index in self._indices:
            state, logits = self.network.segment(index, state)
        return (logits, state) if self.leaves else logits


def joined(states: Sequence[State]) -> State:
    """The rows of several states as one, in order, padded with zeros where their shapes behind the rows differ.

    Args:
        states: at least one; all have the same names, and arrays of one name the same number of dimensions and type.
    """
    if len(states) == 1:
        return dict(states[0])
    return {name: _joined([state[name] for state in states]) for name in states[0]}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) == 1:
        return torch.cat(list(parts))
    largest = [max(sides) for sides in zip(*shapes, strict=True)]
    together = parts[0].new_zeros((sum(len(part) for part in parts), *largest))
    start = 0
    for part in parts:
        together[(slice(start, start + len(part)), *(slice(side) for side in part.shape[1:]))] = part
        start += len(part)
    return together


def rows_of(state: State, rows: Tensor | slice) -> State:
    """Some rows of a state, in the order asked for.

    Args:
        state: each entry [rows, ...].
        rows: a slice, which gives views, or indices [n], which copy.
    """
    if isinstance(rows, slice):
        return {name: array[rows] for name, array in state.items()}
    # Indexing with a tensor goes element by element on a CPU; this copies a row at a time.
    return {name: array.index_select(0, rows.to(array.device)) for name, array in state.items()}
