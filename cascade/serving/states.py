"""What stages left of the rows that wait, and how a batch for a stage that resumes is put together. Knows rows and arrays.

A state is one array a name, rows first: the activations themselves, or a ticket for those that a replica keeps. The router
does not look into it. It holds the arrays of a whole batch until the last of its rows has gone on or been answered.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cascade.models.stage import Arrays, StageResult

Again = Callable[[Sequence[int]], Arrays]
"""Places of a batch to the ladder's inputs of these rows, for those whose state is lost."""


class Kept(NamedTuple):
    """What a stage left of one row.

    Attributes:
        stage: index of the stage.
        state: one array [n, ...] a name, of the batch that the row was in.
        place: the row's place in it.
    """

    stage: int
    state: Arrays
    place: int


@runtime_checkable
class KeepsState(Protocol):
    """A stage whose states are tickets for what its replicas keep, so that they may be lost, and must be given back."""

    def resume(self, state: Arrays, again: Again) -> Coroutine[Any, Any, StageResult]:
        """Run one batch from the state that the stage before left.

        Args:
            state: one array [n, ...] a name.
            again: gives the inputs of rows whose state is lost; these are run from there.
        """
        ...

    def forget(self, state: Arrays, places: Sequence[int]) -> None:
        """Nobody will resume these rows; never fails and waits for nothing.

        Args:
            state: what one batch of this stage left.
            places: rows of it.
        """
        ...


def gather_states(rows: Sequence[Kept]) -> dict[str, NDArray[Any]]:
    """The states of some rows as one array a name, in order, padded with zeros where their shapes differ.

    Args:
        rows: at least one; of one stage.
    """
    first = rows[0]
    if all(row.state is first.state and row.place == first.place + i for i, row in enumerate(rows)):
        return {name: array[first.place : first.place + len(rows)] for name, array in first.state.items()}
    # Rows mostly come from a few batches: one copy for each of those, not for each row.
    sources: dict[int, tuple[Arrays, list[int], list[int]]] = {}
    for target, row in enumerate(rows):
        _, places, targets = sources.setdefault(id(row.state), (row.state, [], []))
        places.append(row.place)
        targets.append(target)
    return {name: _gathered(name, list(sources.values()), len(rows)) for name in first.state}


def _gathered(name: str, sources: Sequence[tuple[Arrays, list[int], list[int]]], rows: int) -> NDArray[Any]:
    shapes = [state[name].shape[1:] for state, _, _ in sources]
    array = sources[0][0][name]
    largest = tuple(max(sides) for sides in zip(*shapes, strict=True))
    alike = all(shape == largest for shape in shapes)
    together = (np.empty if alike else np.zeros)((rows, *largest), array.dtype)
    for state, places, targets in sources:
        part = state[name][places]
        where: Any = (targets, *(slice(side) for side in part.shape[1:]))
        together[where] = part
    return together


def concatenated(states: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Whole states behind each other, padded with zeros where their shapes differ."""
    kept = [Kept(0, state, place) for state in states for place in range(len(next(iter(state.values()))))]
    return gather_states(kept)
