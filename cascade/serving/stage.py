"""A stage as a Serve deployment, and the client that the router reaches it by. Knows one network; decides nothing."""

import asyncio

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from cascade.loading import load_network
from cascade.models.device import Device
from cascade.models.energy import Energy
from cascade.models.stage import Arrays, StageResult
from cascade.serving.calls import Calls
from cascade.serving.logs import log_to_serve
from cascade.serving.passes import Passes
from cascade.serving.replicas import DIGEST
from cascade.spec import Ladder
from cascade.versions import group_digest


class StageReplica:
    """One replica of one stage.

    Args:
        ladder: the ladder.
        index: which of its stages.
        device: where it runs; None for what `load_network` chooses.
    """

    def __init__(self, ladder: Ladder, index: int, device: Device | None = None) -> None:
        log_to_serve()
        self._digest = group_digest(ladder, [index])
        stage = ladder.spec.placed[index]
        self._network = load_network(ladder, stage, device=device, meter=True)
        pipelined = self._network.pipeline is not None
        self._passes = Passes(
            self._network.run,
            stage.max_batch_size,
            nice=stage.nice,
            begin=self._network.begin if pipelined else None,
            in_flight=self._network.in_flight,
            pads=stage.resumes,
        )

    async def run(
        self,
        inputs: Arrays,
        call: int = 0,  # noqa: ARG002
        to: int | None = None,  # noqa: ARG002
    ) -> tuple[NDArray[np.float32], float, tuple[float, float] | None, Arrays | None]:
        """Run one batch.

        Args:
            inputs: one contiguous array [n, *row] for each input, or for each part of the state that the stage resumes from.
            call: number of the call, by which its sender follows it.
            to: this replica's tag, if the call was addressed.

        Returns:
            The logits [n, classes], the seconds that the network took for these rows, see `Passes.submit`, where they are
            measured joules and idle joules, see `Energy`, and the state if another stage resumes from it.
        """
        result = await asyncio.wrap_future(self._passes.submit(inputs))
        energy = result.energy
        return result.logits, result.run_s, None if energy is None else (energy.joules, energy.idle_joules), result.state

    async def stay(self, seconds: float) -> None:
        """Have work for so long, so that Serve does not stop this replica before; see `cascade.serving.staying`."""
        await asyncio.sleep(seconds)

    def record_replica_metadata(self) -> dict[str, str]:
        """What routers are to know of this replica; asked for by Serve once, when it has started."""
        return {DIGEST: self._digest}

    def check_health(self) -> None:
        """Called by Serve now and then; raises where only another process can help."""
        if self._network.lost:
            raise RuntimeError("the GPU failed for good in this process")


class ReplicaStage:
    """A stage behind a Serve handle.

    Args:
        handle: handle of the `StageReplica` deployment.
        deployment: its name.
    """

    def __init__(self, handle: DeploymentHandle[StageReplica], deployment: str) -> None:
        self._calls = Calls(deployment)
        # Plain pickle costs a fraction of cloudpickle, and arrays need nothing more.
        self._run = handle.options(method_name="run", request_serialization="pickle", response_serialization="pickle")

    async def run(self, inputs: Arrays) -> StageResult:
        """Run one batch on one of the replicas."""
        rows = len(next(iter(inputs.values())))
        # Numbers of rows within a factor of two take about equally long.
        logits, run_s, energy, state = await self._calls.make(self._run.remote, rows.bit_length(), inputs)
        return StageResult(logits, run_s, None if energy is None else Energy(*energy), state)
