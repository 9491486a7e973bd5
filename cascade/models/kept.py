"""States that a process keeps for the stages that will resume from them, in bounded memory. Knows tensors and slots.

A row that may go on gets a slot, a number that is never given twice. Whoever resumes it hands the slot in; whoever does not
is expected to say so. What nobody asks for is dropped when it is old, or when there is too much: the row is then run again
from its inputs, so that losing a state costs time and never an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cascade.models.exits import State, joined, rows_of

ROWS_OF_BLOCK = 1 << 20
"""More than a batch has: a slot is the number of its block times this, plus the row's place in it."""
SHRINK_BELOW = 0.5
"""Where memory runs short, a block of which less than this share is wanted is copied, so that the rest may be freed."""
SHORT = 0.5
"""Memory runs short when more than this share of it is taken. Below that, copying would only cost time."""


@dataclass(slots=True)
class _Block:
    """What is left of a batch.

    Attributes:
        state: one tensor [n, ...] a name.
        places: row of the batch to row of the tensors, of the rows that are still wanted.
        at_s: when it came.
    """

    state: State
    places: dict[int, int]
    at_s: float

    @property
    def rows(self) -> int:
        return len(next(iter(self.state.values())))

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())


class KeptStates:
    """The states of one process. Not for several threads at a time.

    Attributes:
        dropped: rows that were dropped because they were old, or too many.

    Args:
        max_bytes: most that all of them may take; the oldest are dropped beyond it.
        max_age_s: a state older than this is not wanted any more.
        clock: seconds, monotonic.
    """

    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float]) -> None:
        self.dropped = 0
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._blocks: dict[int, _Block] = {}  # the oldest first
        self._bytes = 0
        self._last = 0

    @property
    def rows(self) -> int:
        """Rows that are kept."""
        return sum(len(block.places) for block in self._blocks.values())

    @property
    def bytes(self) -> int:
        """What their tensors take."""
        return self._bytes

    def keep(self, state: State) -> NDArray[np.int64]:
        """Keep the state of every row of a batch.

        Args:
            state: one tensor [n, ...] a name, at least one, complete on its device.

        Returns:
            [n] slots.
        """
        now = self._clock()
        self._last += 1
        rows = len(next(iter(state.values())))
        block = _Block(state, {row: row for row in range(rows)}, now)
        self._blocks[self._last] = block
        self._bytes += block.bytes
        if self._bytes > SHORT * self._max_bytes:
            for each in self._blocks.values():
                self._shrink(each)
        for number, oldest in list(self._blocks.items()):
            if self._bytes <= self._max_bytes and now - oldest.at_s <= self._max_age_s:
                break
            self.dropped += len(oldest.places)
            self._remove(number)
        return self._last * ROWS_OF_BLOCK + np.arange(rows, dtype=np.int64)

    def take(self, slots: NDArray[np.int64]) -> tuple[State | None, NDArray[np.intp]]:
        """Hand out states, and keep them no longer.

        Args:
            slots: [n] of the rows that are asked for.

        Returns:
            The state of those that are there, padded to the longest, None if none is; and of each of its rows the place in
            ``slots``. Rows that were kept together stand together: another order would cost another copy.
        """
        asked: dict[int, tuple[list[int], list[int]]] = {}
        for target, slot in enumerate(slots.tolist()):
            number, row = divmod(slot, ROWS_OF_BLOCK)
            block = self._blocks.get(number)
            place = None if block is None else block.places.get(row)
            if place is not None:
                places, targets = asked.setdefault(number, ([], []))
                places.append(place)
                targets.append(target)
        found = np.array([target for _, targets in asked.values() for target in targets], dtype=np.intp)
        if not asked:
            return None, found
        parts = [rows_of(self._blocks[number].state, torch.tensor(places)) for number, (places, _) in asked.items()]
        self.free(slots[found])
        return joined(parts), found

    def free(self, slots: NDArray[np.int64]) -> None:
        """These are not wanted any more; those that are not there are passed over."""
        touched = set()
        for slot in slots.tolist():
            number, row = divmod(slot, ROWS_OF_BLOCK)
            block = self._blocks.get(number)
            if block is not None and block.places.pop(row, None) is not None:
                touched.add(number)
        for number in touched:
            if not self._blocks[number].places:
                self._remove(number)

    def _shrink(self, block: _Block) -> None:
        """Let go of the rows of a block that nobody wants, if they are most of it."""
        if len(block.places) < SHRINK_BELOW * block.rows:
            self._bytes -= block.bytes
            block.state = rows_of(block.state, torch.tensor(list(block.places.values())))
            block.places = {row: place for place, row in enumerate(block.places)}
            self._bytes += block.bytes

    def _remove(self, number: int) -> None:
        self._bytes -= self._blocks.pop(number).bytes
