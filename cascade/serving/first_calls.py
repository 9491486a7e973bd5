"""A router's first call to each of its stages, made before anybody asks. Decides nothing.

The first call over a Serve handle waits until the handle has heard of the replicas and holds a connection to one: seconds on
a busy machine, in which a client's batch would be given up as one that hangs, twice, and its rows answered by stage 0.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cascade.models.stage import Arrays
from cascade.models.thinking import PRESSURE
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.serving.states import KeepsState

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

LIMIT_S = 30.0
"""A stage that has not answered by then is out, or still loads: the router begins, and rows go past that stage."""


class FirstCalls:
    """Calls every stage once, those that resume after the one before them; to be opened before what lets clients in.

    Args:
        stages: how each stage is reached.
        names: of the stages.
        example: inputs of one row.
        resumes: which stages go on from what the one before left.
        thinks: which stages take a pressure beside their inputs.
        limit_s: see `LIMIT_S`.
    """

    def __init__(
        self,
        stages: Sequence[StageClient | InlineStage],
        names: Sequence[str],
        example: Arrays,
        *,
        resumes: Sequence[bool],
        thinks: Sequence[bool],
        limit_s: float = LIMIT_S,
    ) -> None:
        self._stages = tuple(stages)
        self._names = tuple(names)
        self._example = example
        self._resumes = tuple(resumes)
        self._thinks = tuple(thinks)
        self._limit_s = limit_s

    async def open(self) -> None:
        """Return once every stage has answered, has failed, or has taken too long."""
        starts = [index for index, goes_on in enumerate(self._resumes) if not goes_on]
        await asyncio.gather(*(self._call(range(*chain)) for chain in pairwise([*starts, len(self._stages)])))

    async def close(self) -> None:
        """Nothing is left to close."""

    async def _call(self, chain: range) -> None:
        arrays = self._example
        for index in chain:
            stage = self._stages[index]
            if self._thinks[index]:
                arrays = {**arrays, PRESSURE: np.zeros(1, np.float32)}
            try:
                async with asyncio.timeout(self._limit_s):
                    if isinstance(stage, InlineStage):
                        result = stage.run_now(arrays)
                    elif self._resumes[index] and isinstance(stage, KeepsState):
                        result = await stage.resume(arrays, lambda _: self._example)
                    else:
                        result = await stage.run(arrays)
            except Exception as error:  # the router deals with a stage that fails once rows need it
                reason = str(error) or type(error).__name__
                logger.warning("stage %s did not answer the router's first call: %s", self._names[index], reason)
                return
            arrays = result.state or {}
            if arrays and index == chain[-1] and isinstance(stage, KeepsState):
                stage.forget(arrays, [0])
