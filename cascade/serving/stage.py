"""A stage as a Serve deployment, and the client that the router reaches it by. Knows one network; decides nothing.

A replica computes in a thread of its own, so that health checks are answered meanwhile. Several routers send only their part
of a full batch each and know nothing of one another; the replica puts together what they have sent at about the same time,
so that the network sees full batches however many routers there are.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from cascade.models.stage import Arrays, StageResult
from cascade.profiling import load_network
from cascade.simulation.cluster import GATHER_SHARE
from cascade.spec import Ladder


class Passes:
    """Runs a network in one thread, several calls in one pass where they fit together.

    A pass takes the calls that wait, in the order in which they came, while their inputs have the same names, types and row
    shapes, and up to ``max_rows`` rows. When it is done its callers are likely to call again at once. As long as less than a
    full pass waits, the thread gives as many calls as it has answered a moment to come, `GATHER_SHARE` of what the pass took
    (the simulator's replicas do the same): the calls of two routers would else take turns in half-full passes for ever. A
    lone caller is never waited for.

    A pass that fails is run again call by call, so that one call's failure is not that of the others.

    Args:
        run: the network; used by one thread at a time.
        max_rows: rows in a pass; a single call may have more.
        gather_share: see above.
        nice: how far the thread yields the CPU to others on the machine.
    """

    def __init__(
        self,
        run: Callable[[Arrays], StageResult],
        max_rows: int,
        gather_share: float = GATHER_SHARE,
        nice: int = 0,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._gather_share = gather_share
        self._waiting: deque[tuple[Arrays, Future[StageResult]]] = deque()
        self._rows = 0
        self._arrived = 0
        self._changed = Condition()
        self._wanted = 0
        self._gather_until_s = 0.0
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="cascade-stage",
            # Of the calling thread alone, on Linux: the thread that answers calls and health checks keeps its own.
            initializer=os.nice,
            initargs=(nice,),
        )

    def submit(self, inputs: Arrays) -> Future[StageResult]:
        """Let a call wait for its pass.

        Args:
            inputs: one contiguous array [n, *row] for each input.

        Returns:
            The call's own rows of the result, in order. ``run_s`` is the call's share of the pass, the pass's seconds x n /
            rows of the pass: the shares of all calls add up to the time that the network was busy, and n / ``run_s`` is the
            rate at which it worked off rows, which is what a router learns the stage's capacity from. The seconds of the
            whole pass would charge every router for the rows of all others. Cancelled before its pass begins, the call is
            left out.
        """
        result: Future[StageResult] = Future()
        with self._changed:
            self._waiting.append((inputs, result))
            self._rows += _rows(inputs)
            self._arrived += 1
            self._changed.notify()
        self._thread.submit(self._next)  # once for each call; for one that an earlier pass took there is nothing to do
        return result

    def _next(self) -> None:
        """Run the next pass, if any call waits."""
        with self._changed:
            if not self._waiting:
                return
            self._changed.wait_for(
                lambda: self._arrived >= self._wanted or self._rows >= self._max_rows,
                max(0.0, self._gather_until_s - perf_counter()),
            )
            calls = self._take()
        if calls:
            self._pass(calls)

    def _take(self) -> list[tuple[Arrays, Future[StageResult]]]:
        """The longest beginning of the queue that makes a pass, at least one call, without those that were cancelled."""
        calls: list[tuple[Arrays, Future[StageResult]]] = []
        rows = 0
        while self._waiting:
            inputs, result = self._waiting[0]
            own = _rows(inputs)
            if calls and (rows + own > self._max_rows or not _alike(calls[0][0], inputs)):
                break
            self._waiting.popleft()
            self._rows -= own
            if result.set_running_or_notify_cancel():
                calls.append((inputs, result))
                rows += own
        return calls

    def _pass(self, calls: list[tuple[Arrays, Future[StageResult]]]) -> None:
        began_s = perf_counter()
        outcomes = self._outcomes([inputs for inputs, _ in calls])
        done_s = perf_counter()
        with self._changed:
            self._wanted = self._arrived + len(calls)
            self._gather_until_s = done_s + self._gather_share * (done_s - began_s)
        for (_, result), outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)

    def _outcomes(self, calls: list[Arrays]) -> list[StageResult | Exception]:
        """What came of each call: together if that works, else one by one."""
        if len(calls) > 1:
            try:
                return list(self._together(calls))
            except Exception:  # of any of them; which one, the next lines tell
                return [outcome for call in calls for outcome in self._outcomes([call])]
        try:
            return [self._run(calls[0])]
        except Exception as error:
            return [error]

    def _together(self, calls: list[Arrays]) -> list[StageResult]:
        sizes = [_rows(call) for call in calls]
        joined = self._run({name: np.concatenate([call[name] for call in calls]) for name in calls[0]})
        rows = sum(sizes)
        if len(joined.logits) != rows:
            raise ValueError(f"{rows} rows came back as {len(joined.logits)}")
        parts = np.split(joined.logits, np.cumsum(sizes[:-1]))
        return [StageResult(part, joined.run_s * size / rows) for part, size in zip(parts, sizes, strict=True)]


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _alike(first: Arrays, second: Arrays) -> bool:
    """Whether two calls can be one: the same inputs, of the same types and row shapes."""
    return first.keys() == second.keys() and all(
        array.dtype == second[name].dtype and array.shape[1:] == second[name].shape[1:] for name, array in first.items()
    )


class StageReplica:
    """One replica of one stage.

    Args:
        ladder: the ladder.
        index: which of its stages.
    """

    def __init__(self, ladder: Ladder, index: int) -> None:
        stage = ladder.spec.stages[index]
        self._passes = Passes(load_network(ladder, stage).run, stage.max_batch_size, nice=stage.nice)

    async def run(self, inputs: Arrays) -> tuple[NDArray[np.float32], float]:
        """Run one batch.

        Args:
            inputs: one contiguous array [n, *row] for each input.

        Returns:
            The logits [n, classes], and the seconds that the network took for these rows; see `Passes.submit`.
        """
        result = await asyncio.wrap_future(self._passes.submit(inputs))
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
