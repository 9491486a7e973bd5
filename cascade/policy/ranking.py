"""Rows in the order of their keys, however many. Knows entries and until when a row is usable; decides nothing.

A sorted list, cut into blocks of bounded length: to put a row in or take one out moves one block, however many rows there
are, and blocks are found by bisection. For each block it is known until when its rows are usable at the most, so that whole
blocks are passed over in the search for rows that can still be in time.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain
from math import inf
from operator import itemgetter

from cascade.policy.walk import Walk

BLOCK = 512
"""Entries of a block that is full; one of twice as many is cut in two. As many pointers move in less time than Python takes
for a single comparison."""

Entry = tuple[float, int, Walk]
"""A row in a queue: its key, its place among equals, and the row."""
_last = itemgetter(-1)


class Ranking:
    """Entries, least first, no two alike in key and place.

    Args:
        block: see `BLOCK`.
    """

    __slots__ = ("_block", "_blocks", "_size", "_usable_until_s")

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        # No block is empty but the only one. Beside each of them, an instant after which none of its rows is usable.
        self._blocks: list[list[Entry]] = [[]]
        self._usable_until_s = [-inf]
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(self._blocks)

    def __reversed__(self) -> Iterator[Entry]:
        return chain.from_iterable(map(reversed, reversed(self._blocks)))

    def add(self, entry: Entry) -> None:
        """Put an entry in."""
        blocks, until_s = self._blocks, self._usable_until_s
        self._size += 1
        place = 0
        if len(blocks) > 1:  # most queues are of one block
            place = min(bisect_left(blocks, entry, key=_last), len(blocks) - 1)
        block = blocks[place]
        insort(block, entry)
        if entry[2].usable_until_s > until_s[place]:
            until_s[place] = entry[2].usable_until_s
        if len(block) >= 2 * self._block:
            blocks.insert(place + 1, block[self._block :])
            until_s.insert(place + 1, until_s[place])
            del block[self._block :]

    def remove(self, walk: Walk) -> None:
        """Take out a row that is in it."""
        place = bisect_left(self._blocks, walk.place, key=_last) if len(self._blocks) > 1 else 0
        block = self._blocks[place]
        index = bisect_left(block, walk.place)
        assert block[index][2] is walk
        del block[index]
        self._size -= 1
        if len(block) < self._block // 2 and len(self._blocks) > 1:
            self._join(place)

    def least(self, count: int, below: float = inf) -> list[Entry]:
        """Take out the least entries, at most ``count`` and only those of a key below ``below``; least first."""
        taken: list[Entry] = []
        limit = (below,)
        while len(taken) < count:
            block = self._blocks[0]
            cut = min(count - len(taken), bisect_left(block, limit))
            if not cut:
                break
            taken += block[:cut]
            del block[:cut]
            if not block:
                self._drop(0)
        self._size -= len(taken)
        return taken

    def pop(self, count: int, until_s: float) -> list[Entry] | None:
        """Take out the greatest entries, so many; greatest first. None, and nothing is taken, if not all of them are usable.

        Args:
            count: how many, at most as many as there are.
            until_s: until when their rows must be usable at least.
        """
        found: list[Entry] = []
        for block in reversed(self._blocks):
            found += block[: len(found) - count - 1 : -1]
            if len(found) == count:
                break
        for entry in found:
            if entry[2].usable_until_s < until_s:
                return None
        self._size -= count
        while count:
            block = self._blocks[-1]
            cut = min(count, len(block))
            del block[-cut:]
            count -= cut
            if not block:
                self._drop(-1)
        return found

    def usable(self, until_s: float, count: int) -> list[Entry]:
        """The greatest entries whose rows are usable until then at least, at most so many; greatest first. They stay."""
        found: list[Entry] = []
        for place in range(len(self._blocks) - 1, -1, -1):
            if self._usable_until_s[place] < until_s:
                continue
            latest_s = -inf
            for entry in reversed(self._blocks[place]):
                usable_until_s = entry[2].usable_until_s
                if usable_until_s >= until_s:
                    found.append(entry)
                    if len(found) == count:
                        return found
                latest_s = max(latest_s, usable_until_s)
            self._usable_until_s[place] = latest_s
        return found

    def _join(self, place: int) -> None:
        """A block has become small: let it be one with a neighbour, if together they are not large."""
        blocks, until_s = self._blocks, self._usable_until_s
        if not blocks[place]:
            self._drop(place)
            return
        for left in (place - 1, place):
            if 0 <= left < len(blocks) - 1 and len(blocks[left]) + len(blocks[left + 1]) <= self._block:
                blocks[left] += blocks[left + 1]
                until_s[left] = max(until_s[left], until_s[left + 1])
                self._drop(left + 1)
                return

    def _drop(self, place: int) -> None:
        """A block is empty."""
        if len(self._blocks) > 1:
            del self._blocks[place]
            del self._usable_until_s[place]
