"""What a replica runs: calls that wait, several in one pass where they fit together. Knows a function, and threads.

A replica computes in a thread of its own, so that health checks are answered meanwhile. Several routers send only their part
of a full batch each and know nothing of one another; the replica puts together what they have sent at about the same time,
so that the network sees full batches however many routers there are. On a GPU a full batch is begun while the one before it
still runs, so that the device has something to do while results travel.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import Condition
from time import perf_counter
from typing import Any

import numpy as np
import torch

from cascade.models.exits import State, joined
from cascade.models.stage import Arrays, StageResult
from cascade.serving.states import concatenated
from cascade.simulation.cluster import GATHER_SHARE

Inputs = Arrays | State
"""Of a call: one array [n, *row] a name, or tensors that were kept."""
Call = tuple[Inputs, Future[StageResult]]
"""The inputs of a call, and what its caller waits for."""


class Turns:
    """Lets the threads of several stages on the same replica make one pass at a time.

    When the replica is free, a stage that has a full pass waiting goes first, the cheapest such; else whoever asked first.
    So the cheapest stage gets all that its rows need, in passes that are worth their fixed time, and what is left goes to
    the later ones: under load they give way first, and no row goes without an answer for the sake of a better one. Turns
    alone would give each stage its share of the passes, however long those are; going first with any pass would let the
    cheapest stage fill the replica with passes of a few rows.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._holder: int | None = None
        self._waiting: dict[int, Callable[[], bool]] = {}  # in the order in which they asked

    @contextmanager
    def turn(self, stage: int, is_full: Callable[[], bool]) -> Iterator[None]:
        """Wait for a turn, and have it for as long as the context lasts.

        Args:
            stage: index of the stage, whose only thread this is.
            is_full: whether a full pass of it is waiting now; if so as the turn ends, the thread must ask for another.
        """
        with self._changed:
            self._waiting[stage] = is_full
            if self._holder is None:
                self._choose()
            while self._holder != stage:
                self._changed.wait()
            del self._waiting[stage]
        try:
            yield
        finally:
            with self._changed:
                # It cannot wait yet, being here; left out, no stage could go twice while another waits.
                self._choose((stage, is_full))

    def _choose(self, *leaving: tuple[int, Callable[[], bool]]) -> None:
        """Give the turn to one of those who wait, or back to the one who leaves, if any wants it.

        Decided once, by whoever gives it up: passes fill up while the others wake, and each of two could find that it is the
        other's turn.
        """
        full = [stage for stage, is_full in (*self._waiting.items(), *leaving) if is_full()]
        self._holder = min(full, default=next(iter(self._waiting), None))
        self._changed.notify_all()


class Passes:
    """Runs a network in one thread, several calls in one pass where they fit together.

    A pass takes the calls that wait, in the order in which they came, while their inputs have the same names, types and row
    shapes, and up to ``max_rows`` rows. When it is done its callers are likely to call again at once. As long as less than a
    full pass waits, the thread gives as many calls as it has answered a moment to come, `GATHER_SHARE` of what the pass took
    (the simulator's replicas do the same): the calls of two routers would else take turns in half-full passes for ever. A
    lone caller is never waited for.

    Where the network can have several passes under way, a second thread waits for their ends. A pass is then begun behind
    another one only if it is full: one that is not may still grow until its turn comes, and loses nothing by that.

    A pass that fails is run again call by call, so that one call's failure is not that of the others.

    Args:
        run: the network; used by one thread at a time.
        max_rows: rows in a pass; a single call may have more.
        gather_share: see above.
        nice: how far the threads yield the CPU to others on the machine.
        begin: begins a pass, and returns what waits for its end; None where the network does one at a time.
        in_flight: passes that may be under way at a time.
        turns: where other stages use the replica too, how they take turns, and the index of this one.
        pads: whether calls whose row shapes differ are put together too, with zeros behind the shorter ones.
    """

    def __init__(
        self,
        run: Callable[[Inputs], StageResult],
        max_rows: int,
        gather_share: float = GATHER_SHARE,
        nice: int = 0,
        *,
        begin: Callable[[Inputs], Callable[[], StageResult]] | None = None,
        in_flight: int = 1,
        pads: bool = False,
        turns: tuple[Turns, int] | None = None,
    ) -> None:
        self._run = run
        self._begin = begin
        self._in_flight = in_flight
        self._pads = pads
        self._turns = turns
        self._max_rows = max_rows
        self._gather_share = gather_share
        self._waiting: deque[Call] = deque()
        self._rows = 0
        self._arrived = 0
        self._changed = Condition()
        self._wanted = 0
        self._gather_until_s = 0.0
        self._under_way = 0
        self._ended_s = 0.0
        self._thread = _thread("cascade-stage", nice)
        self._ends = None if begin is None else _thread("cascade-stage-ends", nice)

    def submit(self, inputs: Inputs) -> Future[StageResult]:
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
        """Run or begin the next pass, if any call waits."""
        with self._changed:
            if not self._waiting:
                return
            while not self._may_begin():
                # While another pass is under way only its end, or a full pass, changes anything.
                self._changed.wait(None if self._under_way else max(0.0, self._gather_until_s - perf_counter()))
        with self._turn():
            with self._changed:
                calls = self._take()  # only now: what comes while it waits for its turn comes along
                if not calls:
                    return
                self._under_way += 1
            self._pass(calls)

    def _turn(self) -> AbstractContextManager[None]:
        if self._turns is None:
            return nullcontext()
        turns, stage = self._turns
        return turns.turn(stage, lambda: self._rows >= self._max_rows and self._under_way < self._in_flight)

    def _may_begin(self) -> bool:
        if self._rows >= self._max_rows:
            return self._under_way < self._in_flight
        return not self._under_way and (self._arrived >= self._wanted or perf_counter() >= self._gather_until_s)

    def _take(self) -> list[Call]:
        """The longest beginning of the queue that makes a pass, at least one call, without those that were cancelled."""
        calls: list[Call] = []
        rows = 0
        while self._waiting:
            inputs, result = self._waiting[0]
            own = _rows(inputs)
            if calls and (rows + own > self._max_rows or not _alike(calls[0][0], inputs, self._pads)):
                break
            self._waiting.popleft()
            self._rows -= own
            if result.set_running_or_notify_cancel():
                calls.append((inputs, result))
                rows += own
        return calls

    def _pass(self, calls: list[Call]) -> None:
        began_s = perf_counter()
        inputs = [call for call, _ in calls]
        if self._begin is None or self._ends is None:
            self._end(calls, began_s, self._outcomes(inputs))
            return
        wait: Callable[[], StageResult] | None = None
        with suppress(Exception):  # whose it is comes out when the calls are run one by one
            wait = self._begin(inputs[0] if len(inputs) == 1 else _joined(inputs))
        self._ends.submit(self._wait, calls, began_s, wait)

    def _wait(self, calls: list[Call], began_s: float, wait: Callable[[], StageResult] | None) -> None:
        """In the second thread: take the end of a pass that was begun."""
        inputs = [call for call, _ in calls]
        try:
            if wait is None:
                raise RuntimeError("the pass could not be begun")
            outcomes: list[StageResult | Exception] = list(_parts(inputs, wait()))
        except Exception:
            outcomes = [outcome for call in inputs for outcome in self._outcomes([call])]
        self._end(calls, began_s, outcomes)

    def _end(self, calls: list[Call], began_s: float, outcomes: list[StageResult | Exception]) -> None:
        done_s = perf_counter()
        with self._changed:
            self._wanted = self._arrived + len(calls)
            self._gather_until_s = done_s + self._gather_share * (done_s - max(began_s, self._ended_s))
            self._ended_s = done_s
            self._under_way -= 1
            self._changed.notify()
        for (_, result), outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)

    def _outcomes(self, calls: list[Inputs]) -> list[StageResult | Exception]:
        """What came of each call: together if that works, else one by one."""
        if len(calls) > 1:
            try:
                return list(_parts(calls, self._run(_joined(calls))))
            except Exception:  # of any of them; which one, the next lines tell
                return [outcome for call in calls for outcome in self._outcomes([call])]
        try:
            return [self._run(calls[0])]
        except Exception as error:
            return [error]


def _thread(name: str, nice: int) -> ThreadPoolExecutor:
    # The niceness is of that thread alone, on Linux: the one that answers calls and health checks keeps its own.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=os.nice, initargs=(nice,))


def _joined(calls: list[Inputs]) -> Inputs:
    first = calls[0]
    if isinstance(next(iter(first.values())), torch.Tensor):
        return joined(calls)  # type: ignore[arg-type]  # one type of arrays in all calls, see `_alike`
    if all(call[name].shape[1:] == array.shape[1:] for call in calls[1:] for name, array in first.items()):
        return {name: np.concatenate([call[name] for call in calls]) for name in first}
    return concatenated(calls)  # type: ignore[arg-type]


def _parts(calls: list[Inputs], joined: StageResult) -> list[StageResult]:
    """The result of a pass as those of its calls."""
    if len(calls) == 1:
        return [joined]
    sizes = [_rows(call) for call in calls]
    rows = sum(sizes)
    if len(joined.logits) != rows:
        raise ValueError(f"{rows} rows came back as {len(joined.logits)}")
    ends = np.cumsum(sizes).tolist()
    return [joined.part(slice(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _rows(inputs: Inputs) -> int:
    first: Any = next(iter(inputs.values()))
    return len(first)


def _alike(first: Inputs, second: Inputs, pads: bool) -> bool:
    """Whether two calls can be one: the same inputs, of the same types and, unless they are padded, row shapes."""

    def form(value: Any) -> tuple[Any, ...]:
        return type(value), value.dtype, value.ndim if pads else value.shape[1:]

    return first.keys() == second.keys() and all(form(array) == form(second[name]) for name, array in first.items())
