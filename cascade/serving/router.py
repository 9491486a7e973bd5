"""The asyncio driver of the policy: it turns commands into stage calls and answers, and never decides anything.

Everything that waits, measures time or fails is here; everything that chooses is in `cascade.policy`. The router knows its
stages as clients with one method, so the same router runs over Serve handles, over a network in its own process, and over
the fakes of a test.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.errors import DeadlineExceeded, Overloaded, StageFailed
from cascade.models.stage import Arrays, StageResult
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judge
from cascade.policy.policy import Policy
from cascade.policy.request import Answer, Request
from cascade.policy.walk import Walk, answers_so_far
from cascade.serving.audits import Audits
from cascade.serving.lag import LoopLag
from cascade.serving.slow_loop import Control, SlowLoop
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.serving.states import KeepsState, Kept, gather_states
from cascade.serving.telemetry import Monitor

logger = logging.getLogger("cascade.router")


class _Message:
    """The rows of one client message: its inputs, what stages left of them to resume from, and the answers so far."""

    __slots__ = ("answers", "done", "inputs", "kept", "missing")

    def __init__(self, inputs: Arrays, rows: int, done: asyncio.Future[list[Answer]]) -> None:
        self.inputs = inputs
        self.answers: list[Answer | None] = [None] * rows
        self.missing = rows
        self.done = done
        self.kept: list[Kept | None] | None = None  # most ladders have nothing to keep


class Router:
    """One router: its policy, its stages, and the messages that wait for an answer.

    Attributes:
        policy: the decisions.
        slow_loop: what sets prices, begun by `start`.
        audits: shadow audits; None for none.
        monitor: the live figures; None where nobody asks for them.
        requests: messages by outcome, counted by whoever speaks to the clients.

    Args:
        policy: the decisions.
        judges: how to read each stage's logits, cheapest stage first.
        stages: how to reach each stage.
        classes: number of classes, the width of the logits.
        margin_s: the best answer so far leaves this long before a deadline, at most a tenth of the time to it.
        clock: seconds, monotonic, of finer grain than the event loop's own.
        control: what the slow loop works with.
    """

    def __init__(
        self,
        policy: Policy,
        judges: Sequence[Judge],
        stages: Sequence[StageClient | InlineStage],
        *,
        classes: int,
        margin_s: float,
        clock: Callable[[], float],
        control: Control,
    ) -> None:
        self.policy = policy
        self._judges = tuple(judges)
        self._stages = tuple(stages)
        self._resumes = policy.resumes
        self._keepers = tuple(stage if isinstance(stage, KeepsState) else None for stage in stages)
        self._classes = classes
        self._margin_s = margin_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._calls: dict[Batch, asyncio.Task[None]] = {}
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self.slow_loop = SlowLoop(policy, control, self._carry_out, clock())
        self.audits: Audits | None = None
        self.monitor: Monitor | None = None  # these two look at the router, so they come after it
        self.requests = {"answered": 0, "refused": 0}
        self._lag: LoopLag | None = None
        self._beside: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin what goes on beside the requests: the measuring of lag, the slow loop, the metrics."""
        self._lag = LoopLag(self._clock)
        self._beside = [self._loop.create_task(self.slow_loop.run(self._clock))]
        if self.monitor is not None:
            self._beside.append(self._loop.create_task(self.monitor.run()))

    @property
    def lag_s(self) -> float:
        """Time that work which is ready waits in the event loop; 0 until `start`."""
        return 0.0 if self._lag is None else self._lag.seconds

    def door(self, rows: int, budget_s: float, priority: int, tenant: str) -> None:
        """Turn a message away on what is known before its body is read.

        Args:
            rows: rows that it will count as when it is turned away.
            budget_s: seconds until its deadline.
            priority: class, 1 is the most important.
            tenant: for whom it is, empty if nobody is named.

        Raises:
            Overloaded: it is turned away.
        """
        now = self._clock()
        shed = self.policy.door(now, budget_s, priority, self.lag_s, tenant, rows)
        if shed is not None:
            self.slow_loop.arrived(now, priority, rows)
            raise overloaded(shed)

    async def answer(
        self,
        inputs: Arrays,
        rows: int,
        *,
        budget_s: float,
        priority: int = 1,
        max_cost: float = inf,
        tenant: str = "",
    ) -> list[Answer]:
        """Answer every row of one message.

        Args:
            inputs: one array [rows, *row] for each input of the ladder, already validated.
            rows: rows in it, at least one.
            budget_s: seconds until the deadline.
            priority: class, 1 is the most important.
            max_cost: most that a row's stages may cost together.
            tenant: for whom it is, empty if nobody is named.

        Returns:
            One answer a row, in order.

        Raises:
            Overloaded: turned away before stage 0.
            DeadlineExceeded: a row had no answer of any stage when its deadline came.
            StageFailed: the first stage failed twice.
        """
        now = self._clock()
        deadline_s = now + budget_s
        answer_by_s = deadline_s - min(self._margin_s, budget_s / 10)
        message = _Message(inputs, rows, self._loop.create_future())
        requests = [Request((message, row), now, answer_by_s, deadline_s, priority, max_cost, tenant) for row in range(rows)]
        self.slow_loop.arrived(now, priority, rows)
        walks = self.policy.arrived(now, requests, self.lag_s)
        if isinstance(walks, Shed):
            raise overloaded(walks)
        self._schedule_pump()
        try:
            return await message.done
        finally:
            # After an answer this is a no-op; it matters when the client went away or one of the rows failed.
            if message.missing:
                for walk in walks:
                    self.policy.cancelled(walk)
                for row in range(rows):
                    self._forget(message, row)
            message.inputs = {}  # the policy's timers still hold the message until its deadline

    async def close(self) -> None:
        """Cancel every call that is under way, and what goes on beside the requests."""
        if self._timer is not None:
            self._timer.cancel()
        if self._lag is not None:
            self._lag.close()
        if self.audits is not None:
            await self.audits.close()
        calls = [*self._calls.values(), *self._beside]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    # -- the pump ------------------------------------------------------------------------------------------------------

    def _schedule_pump(self) -> None:
        # Dispatch runs once the loop has read every message that is ready now, so that they can share a batch.
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        now = self._clock()
        self.slow_loop.forget_stale(now)
        self._carry_out(self.policy.dispatch(now))
        self._arm_timer()

    def _arm_timer(self) -> None:
        at_s = self.policy.next_timer()
        if at_s is None:
            return
        delay_s = max(0.0, at_s - self._clock())
        when = self._loop.time() + delay_s
        if self._timer is None or when < self._timer.when() - 0.001:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._carry_out(self.policy.tick(self._clock()))
        self._pump()

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Reply(tag, answer):
                    message, row = tag
                    message.answers[row] = answer
                    if self.audits is not None:
                        self.audits.offer(answer, message.inputs, row)
                    if message.kept is not None:
                        self._forget(message, row)
                    message.missing -= 1
                    if not message.missing and not message.done.done():
                        message.done.set_result(message.answers)
                case Run(batch):
                    self._run(batch)
                case Expire(tag):
                    self._refuse(tag, DeadlineExceeded("the deadline passed before the first stage had answered"))
                case Fail(tag):
                    self._refuse(tag, StageFailed("the first stage failed, and there is no answer to fall back on"))
                case Abandon(batch):
                    logger.warning("a batch of %d rows at stage %d hangs: given up", len(batch.walks), batch.stage)
                    self._calls[batch].cancel()

    def _refuse(self, tag: tuple[_Message, int], error: Exception) -> None:
        message, _ = tag
        if not message.done.done():
            message.done.set_exception(error)

    # -- stage calls ---------------------------------------------------------------------------------------------------

    def _run(self, batch: Batch) -> None:
        stage = self._stages[batch.stage]
        if isinstance(stage, InlineStage):
            try:
                result = stage.run_now(self._gather(batch))
                commands = self._judged(batch, result)
            except Exception:
                commands = self._failed(batch)
            self._carry_out(commands)
            self._schedule_pump()
        else:
            self._calls[batch] = self._loop.create_task(self._call(stage, batch))

    async def _call(self, stage: StageClient, batch: Batch) -> None:
        try:
            keeper = self._keepers[batch.stage]
            if keeper is not None and self._resumes[batch.stage]:
                result = await keeper.resume(self._gather(batch), partial(self._inputs_again, batch))
            else:
                result = await stage.run(self._gather(batch))
            commands = self._judged(batch, result)
        except asyncio.CancelledError:
            # A call that was given up here has been dealt with; one that was cancelled on the stage's side has failed.
            if self._calls[batch].cancelling():
                raise
            commands = self._failed(batch)
        except Exception:
            commands = self._failed(batch)
        finally:
            del self._calls[batch]
        self._carry_out(commands)
        self._schedule_pump()

    def _gather(self, batch: Batch) -> dict[str, NDArray[Any]]:
        if not self._resumes[batch.stage]:
            return gather(batch.walks)
        kept = [message.kept and message.kept[row] for message, row in (walk.request.tag for walk in batch.walks)]
        # A row that was answered while its batch was on its way to here has nothing left; what is sent for it is not read.
        some = next((each for each in kept if each is not None), None)
        if some is None:
            raise ValueError("every row of the batch has been answered")
        return gather_states([each or some for each in kept])

    def _inputs_again(self, batch: Batch, places: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The inputs of rows whose state is lost; see `KeepsState.resume`."""
        live = [walk for walk in batch.walks if not walk.done]
        if not live:
            raise ValueError("every row of the batch has been answered")
        return gather([batch.walks[place] if not batch.walks[place].done else live[0] for place in places])

    def _keep(self, batch: Batch, state: Arrays) -> None:
        """Hold what a batch left until its rows go on or are answered."""
        for place, walk in enumerate(batch.walks):
            message, row = walk.request.tag
            if message.kept is None:
                message.kept = [None] * len(message.answers)
            message.kept[row] = Kept(batch.stage, state, place)
            if walk.done:
                self._forget(message, row)

    def _forget(self, message: _Message, row: int) -> None:
        """The row goes no further."""
        kept = None if message.kept is None else message.kept[row]
        if kept is None or message.kept is None:
            return
        message.kept[row] = None
        keeper = self._keepers[kept.stage]
        if keeper is not None:
            keeper.forget(kept.state, [kept.place])

    def _judged(self, batch: Batch, result: StageResult) -> list[Command]:
        expected = (len(batch.walks), self._classes)
        if result.logits.shape != expected or not np.isfinite(result.logits).all():
            raise ValueError(f"stage {batch.stage} returned logits {result.logits.shape}, expected finite {expected}")
        if result.energy is not None:
            self.policy.counts.count_energy(batch.stage, result.energy.joules, result.energy.idle_joules)
        if result.state is not None:
            self._keep(batch, result.state)
        self.policy.counts.stages[batch.stage].recomputed += result.recomputed
        judge = self._judges[batch.stage]
        looks_back = batch.stage > 0 and judge.looks_back
        earlier = answers_so_far(batch.walks, self._classes) if looks_back else None
        judgement = judge(result.logits, earlier)
        return self.policy.completed(self._clock(), batch, judgement, result.run_s)

    def _failed(self, batch: Batch) -> list[Command]:
        logger.warning("stage %d failed, attempt %d", batch.stage, batch.attempt, exc_info=True)
        return self.policy.failed(self._clock(), batch)


def overloaded(shed: Shed) -> Overloaded:
    """The error that tells a client to come back later. Its sentence is one of few, so that it can be encoded once."""
    if isfinite(shed.wait_s):
        return Overloaded("the first stage would begin too late for the request's deadline", shed.retry_after_s, shed.hold_s)
    return Overloaded("the first stage is out", shed.retry_after_s, shed.hold_s)


def gather(walks: Sequence[Walk]) -> dict[str, NDArray[Any]]:
    """One contiguous array for each input, in the order of the rows.

    Rows that lie together in one message, as in a client's own batch, are not copied one by one.
    """
    tags = [walk.request.tag for walk in walks]
    message, first = tags[0]
    if all(tag == (message, first + i) for i, tag in enumerate(tags)):
        return {name: array[first : first + len(tags)] for name, array in message.inputs.items()}
    # Slices, not rows: a row of BYTES may be a plain bytes object, of which numpy would make fixed-width strings.
    return {name: np.concatenate([each.inputs[name][row : row + 1] for each, row in tags]) for name in message.inputs}
