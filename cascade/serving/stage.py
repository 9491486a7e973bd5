"""A stage as a Serve deployment, and the client that the router reaches it by. Knows one network; decides nothing.

A replica runs its batches one after the other in a thread of its own, so that health checks are answered while it computes;
the calls beyond the first wait there, which keeps the device busy while answers travel.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from cascade.models.stage import Arrays, StageResult
from cascade.profiling import load_network
from cascade.spec import Ladder


class StageReplica:
    """One replica of one stage.

    Args:
        ladder: the ladder.
        index: which of its stages.
    """

    def __init__(self, ladder: Ladder, index: int) -> None:
        self._stage = load_network(ladder, ladder.spec.stages[index])
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cascade-stage")

    async def run(self, inputs: Arrays) -> tuple[NDArray[np.float32], float]:
        """Run one batch.

        Args:
            inputs: one contiguous array [n, *row] for each input.

        Returns:
            The logits [n, classes], and the seconds that the network took.
        """
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._stage.run, inputs)
        return result.logits, result.run_s


class ReplicaStage:
    """A stage behind a Serve handle.

    Args:
        handle: handle of the `StageReplica` deployment.
    """

    def __init__(self, handle: DeploymentHandle[StageReplica]) -> None:
        # Plain pickle costs a fraction of cloudpickle, and arrays need nothing more.
        self._run = handle.options(method_name="run", request_serialization="pickle", response_serialization="pickle")

    async def run(self, inputs: Arrays) -> StageResult:
        """Run one batch on one of the replicas."""
        logits, run_s = await self._run.remote(inputs)
        return StageResult(logits, run_s)
