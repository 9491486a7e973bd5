"""A stage that does what a test says, for tests of the router and of anything that drives one. Never used to serve.

It stands where a Serve handle or a local network stands, so a test injects it instead of patching anything.
"""

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cascade.models.stage import Arrays, StageResult

Script = Callable[[Arrays], NDArray[np.float32]]


class FakeStage:
    """A stage with a given duration, outputs and failures.

    Attributes:
        calls: the batches it was given, in order.

    Args:
        script: inputs to logits; it may raise.
        seconds: how long a batch takes, on the event loop's own clock.
        fail_first: how many calls raise before it works.
        hang: calls, counted from 0, that never return.
        leaves: inputs to the state that a later stage resumes from; None if it leaves none.
    """

    def __init__(
        self,
        script: Script,
        *,
        seconds: float | Callable[[int], float] = 0.0,
        fail_first: int = 0,
        hang: frozenset[int] = frozenset(),
        leaves: Callable[[Arrays], Arrays] | None = None,
    ) -> None:
        self._script = script
        self._seconds = seconds
        self._fail_first = fail_first
        self._hang = hang
        self._leaves = leaves
        self.calls: list[Arrays] = []

    async def run(self, inputs: Arrays) -> StageResult:
        """Behave as told."""
        number = len(self.calls)
        self.calls.append(inputs)
        if number in self._hang:
            await asyncio.Event().wait()
        rows = len(next(iter(inputs.values())))
        seconds = self._seconds(rows) if callable(self._seconds) else self._seconds
        await asyncio.sleep(seconds)
        if number < self._fail_first:
            raise RuntimeError("told to fail")
        state = None if self._leaves is None else self._leaves(inputs)
        return StageResult(self._script(inputs), seconds, state=state)
