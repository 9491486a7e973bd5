"""From the rows of a batch to the arrays that its stage runs on: their inputs, or what the stage before left of them.

Knows messages, walks and stages that keep states; decides nothing and waits for nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.models.stage import Arrays
from cascade.policy.commands import Batch
from cascade.policy.together import placed
from cascade.policy.walk import Walk
from cascade.serving.messages import Message
from cascade.serving.states import KeepsState, Kept, gather_states

Span = tuple[Arrays, int, int]
"""Inputs of a message, and the first and the end of rows that lie side by side in it."""


class BatchArrays:
    """What batches run on, and what they leave for the stages that resume.

    Args:
        stages: how each stage is reached, cheapest first.
        resumes: which of them run on what the stage before left.
    """

    def __init__(self, stages: Sequence[object], resumes: Sequence[bool]) -> None:
        self._resumes = tuple(resumes)
        self._keepers = tuple(stage if isinstance(stage, KeepsState) else None for stage in stages)

    def keeper(self, stage: int) -> KeepsState | None:
        """The stage, if it resumes from what replicas keep."""
        return self._keepers[stage] if self._resumes[stage] else None

    def gather(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """One array [rows, ...] a name, in the order of the batch's rows; to be called when it is sent."""
        if not self._resumes[batch.stage]:
            return gather(batch.walks)
        kept: list[Kept] = []
        for walk in batch.walks:
            of_message = walk.request.tag.kept
            assert of_message is not None, "a stage that resumes is reached only from the one before"
            kept.extend(of_message[place] for place in walk.places)
        return gather_states(kept)

    def again(self, batch: Batch, places: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The inputs of rows whose state is lost; see `KeepsState.resume`.

        A row that was answered meanwhile has none left: those of another one are sent for it, and nobody reads the answer.

        Raises:
            ValueError: every row of the batch has been answered.
        """
        rows = [(walk, place) for walk in batch.walks for place in walk.places]
        live = next((row for row in rows if not row[0].done), None)
        if live is None:
            raise ValueError("every row of the batch has been answered")
        wanted = [rows[place] if not rows[place][0].done else live for place in places]
        return _concatenated([(walk.request.tag.inputs, place, place + 1) for walk, place in wanted])

    def keep(self, batch: Batch, state: Arrays) -> None:
        """Hold what a batch left until its rows go on or are answered."""
        for first, walk in placed(batch.walks):
            message: Message = walk.request.tag
            if message.kept is None:
                message.kept = [None] * len(message.answers)
            for place, row in enumerate(walk.places, first):
                message.kept[row] = Kept(batch.stage, state, place)
            if walk.done:
                self.forget(message, walk.places)

    def forget(self, message: Message, places: Iterable[int]) -> None:
        """These rows go no further."""
        if message.kept is None:
            return
        for place in places:
            kept = message.kept[place]
            if kept is None:
                continue
            message.kept[place] = None
            keeper = self._keepers[kept.stage]
            if keeper is not None:
                keeper.forget(kept.state, [kept.place])


def gather(walks: Sequence[Walk]) -> dict[str, NDArray[Any]]:
    """One contiguous array for each input, in the order of the rows; no copy where they lie together in one message.

    Raises:
        ValueError: rows of several messages that differ in shape cannot be one array.
    """
    # Rows that walk together have not been parted yet, so nothing lies between them in their message.
    return _concatenated([(walk.request.tag.inputs, walk.places[0], walk.places[-1] + 1) for walk in walks])


def _concatenated(spans: Sequence[Span]) -> dict[str, NDArray[Any]]:
    inputs, first, end = spans[0]
    if len(spans) == 1:
        return {name: array[first:end] for name, array in inputs.items()}
    return {name: np.concatenate([each[name][first:end] for each, first, end in spans]) for name in inputs}
