"""How a router reaches a stage: over a Serve handle, or a network in its own process. Knows one call, and who runs it."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from cascade.models.stage import Arrays, StageResult, TorchStage


class StageClient(Protocol):
    """How the router reaches a stage: a Serve handle, a network in this process, or a fake."""

    def run(self, inputs: Arrays) -> Coroutine[Any, Any, StageResult]:
        """Run one batch; any exception means that the call failed."""
        ...


class InlineStage:
    """A network that runs inside the router's event loop: for a stage whose full batch is shorter than a hop."""

    def __init__(self, stage: TorchStage) -> None:
        self._stage = stage

    def run_now(self, inputs: Arrays) -> StageResult:
        """Run one batch, blocking the loop for as long as it takes."""
        return self._stage.run(inputs)


class ThreadStage:
    """A network in a thread of its own, for one that would block the event loop for too long."""

    def __init__(self, stage: TorchStage) -> None:
        self._stage = stage
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cascade-stage")

    async def run(self, inputs: Arrays) -> StageResult:
        """Run one batch in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._stage.run, inputs)
