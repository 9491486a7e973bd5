"""The asyncio driver of the policy: it turns commands into stage calls and answers, and never decides anything.

Everything that waits, measures time or fails is here; everything that chooses is in `cascade.policy`. The router knows its
stages as clients with one method, so the same router runs over Serve handles, over a network in its own process, and over
the fakes of a test.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import Context
from dataclasses import replace
from functools import partial
from math import inf
from typing import Unpack

import numpy as np

from cascade.errors import DeadlineExceeded, StageFailed
from cascade.models.stage import Arrays, StageResult
from cascade.models.thinking import DEPTH, PRESSURE
from cascade.policy.anytime import Product, Rule, steady
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Preliminary, Reply, Run, Shed
from cascade.policy.durations import Durations
from cascade.policy.explain import Trail
from cascade.policy.gain import Judge
from cascade.policy.policy import Policy
from cascade.policy.request import Answer, Request
from cascade.policy.walk import Walk, answers_so_far
from cascade.serving.audits import Audits
from cascade.serving.batches import BatchArrays
from cascade.serving.journal import Troubles
from cascade.serving.lag import LoopLag
from cascade.serving.messages import Asked, Message, Refined, StreamedMessage, overloaded
from cascade.serving.poison import Wards, readable
from cascade.serving.slow_loop import Control, SlowLoop
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.serving.succession import Present
from cascade.serving.telemetry import Monitor

logger = logging.getLogger("cascade.router")


class Router:
    """One router: its policy, its stages, and the messages that wait for an answer.

    Attributes:
        policy: the decisions.
        slow_loop: what sets prices, begun by `start`.
        audits: shadow audits; None for none.
        monitor: the live figures; None where nobody asks for them.
        requests: messages by outcome, counted by whoever speaks to the clients.
        durations: of the messages that were answered, from the door to the encoded answer; counted there, too.
        version: of what it decides by, see `cascade.versions`; empty where nobody said.
        present: the messages that it has.
        sharing: the routers that share the places of the stages: itself, and while one takes over from another, both.

    Args:
        policy: the decisions.
        judges: how to read each stage's logits, cheapest stage first.
        stages: how to reach each stage.
        classes: number of classes, the width of the logits.
        margin_s: the best answer so far leaves this long before a deadline, at most a tenth of the time to it.
        clock: seconds, monotonic, of finer grain than the event loop's own.
        control: what the slow loop works with.
        rule: what clients that watch are shown of a row as its answers come.
        names: of the stages, for the log; by default their numbers.
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
        rule: Rule = steady,
        names: Sequence[str] | None = None,
    ) -> None:
        self.policy = policy
        self._judges = tuple(judges)
        self._stages = tuple(stages)
        self._arrays = BatchArrays(stages, policy.resumes)
        self._thinks = policy.thinks
        self._classes = classes
        self._margin_s = margin_s
        self._clock = clock
        self._rule = rule
        self.wards = Wards(clock)
        self._troubles = Troubles(names or range(len(stages)))
        self._keeps_evidence = isinstance(rule, Product)
        self._loop = asyncio.get_running_loop()
        # A batch holds rows of many clients. Made in the context of one of them, its call would carry that client's request
        # id, which Serve takes for the call's own, and would be cancelled when that client leaves.
        self._nobodys = Context()
        self._calls: dict[Batch, asyncio.Task[None]] = {}
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self.slow_loop = SlowLoop(policy, control, self._carry_out, clock())
        self.audits: Audits | None = None
        self.monitor: Monitor | None = None  # these two look at the router, so they come after it
        self.requests = {"answered": 0, "refused": 0, "cancelled": 0}
        self.durations = Durations()
        self.version = ""
        self.present = Present()
        self.sharing: list[Router] = [self]
        self._lag: LoopLag | None = None
        self._beside: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin what goes on beside the requests: the measuring of lag, the slow loop, the metrics."""
        self._lag = LoopLag(self._clock)
        self._beside = [self._loop.create_task(self.slow_loop.run(self._clock))]
        if self.monitor is not None:
            self._beside.append(self._loop.create_task(self.monitor.run()))

    def set_prices(self) -> None:
        """Have the slow loop look now instead of at its next round."""
        self.slow_loop.step(self._clock())

    def keep_to_itself(self) -> None:
        """Publish no more figures; prices and replicas go on being looked after."""
        for publishing in self._beside[1:]:
            publishing.cancel()

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

    async def answer(self, inputs: Arrays, rows: int, **asked: Unpack[Asked]) -> list[Answer]:
        """Answer every row of one message.

        Args:
            inputs: one array [rows, *row] for each input of the ladder, already validated.
            rows: rows in it, at least one.
            **asked: on which terms.

        Returns:
            One answer a row, in order.

        Raises:
            Overloaded: turned away before stage 0.
            DeadlineExceeded: a row had no answer of any stage when its deadline came.
            UnprocessableRow: the first stage fails on a row, and not on others.
            StageFailed: the first stage failed on a row again and again, for whatever reason.
        """
        message = Message(inputs, rows, self._loop.create_future())
        walks = self._admit(message, rows, refine=False, **asked)
        try:
            return await message.done
        finally:
            self._leave(message, walks)

    async def refine(
        self, inputs: Arrays, rows: int, *, patience_s: float = inf, **asked: Unpack[Asked]
    ) -> AsyncGenerator[Refined | None, None]:
        """Answer every row of one message, and show what there is while rows go on. To be closed by whoever stops early.

        Args:
            inputs: see `answer`, as for all that is not named here.
            rows: see `answer`.
            patience_s: seconds without news after which None says so, again and again.
            **asked: see `answer`.

        Yields:
            All rows, the first time when each has an answer, then when one has a better one, the last time when all are
            final. Whoever takes them slowly gets the newest, and misses some before it.

        Raises:
            Overloaded, DeadlineExceeded, StageFailed: see `answer`; before the first yield only.
        """
        message = StreamedMessage(inputs, rows, self._loop.create_future(), self._rule, self._clock)
        walks = self._admit(message, rows, refine=True, **asked)
        try:
            refined: Refined | None = None
            while refined is None or refined.waiting:
                refined = await message.refined(patience_s)
                yield refined
        finally:
            self._leave(message, walks)

    def _admit(
        self,
        message: Message,
        rows: int,
        *,
        refine: bool,
        budget_s: float,
        priority: int = 1,
        max_cost: float = inf,
        tenant: str = "",
        min_confidence: float = inf,
        trail: Trail | None = None,
    ) -> tuple[Walk, ...]:
        """Hand a message's rows to the policy; raises Overloaded or UnprocessableRow if they are turned away."""
        self.wards.check(message.inputs, rows)
        now = self._clock()
        deadline_s = now + budget_s
        answer_by_s = deadline_s - min(self._margin_s, budget_s / 10)
        request = Request(
            message, now, answer_by_s, deadline_s, priority, max_cost, tenant, min_confidence, refine, rows, trail
        )
        if trail is not None:
            trail.request, message.trail = request, trail
        self.slow_loop.arrived(now, priority, rows)
        walks = self.policy.arrived(now, (request,), self.lag_s)
        if isinstance(walks, Shed):
            raise overloaded(walks)
        self.present.come()
        self._schedule_pump()
        return walks

    def _leave(self, message: Message, walks: Sequence[Walk]) -> None:
        """A message has ended. Without an answer, because its client went away or a row failed, its rows end, too."""
        if message.missing:
            for walk in walks:
                self.policy.cancelled(walk)
            self._arrays.forget(message, range(len(message.answers)))
        message.done.cancel()  # of no consequence once it is done
        message.inputs = {}  # the policy's timers still hold the message until its deadline
        self.present.go()

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
            self._loop.call_soon(self._pump, context=self._nobodys)

    def _pump(self) -> None:
        self._pumping = False
        self.slow_loop.forget_stale(self._clock())
        self.dispatch()
        for other in self.sharing:  # what came free here may be wanted there
            if other is not self:
                other.dispatch()

    def dispatch(self) -> None:
        """Fill the places that are free."""
        self._carry_out(self.policy.dispatch(self._clock()))
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
            self._timer = self._loop.call_later(delay_s, self._on_timer, context=self._nobodys)

    def _on_timer(self) -> None:
        self._timer = None
        self._carry_out(self.policy.tick(self._clock()))
        self._pump()

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Reply():
                    self._reply(command)
                case Preliminary(message, so_far, place):
                    message.preliminary(place, so_far)
                case Run(batch):
                    self._run(batch)
                case Expire(message):
                    message.refuse(DeadlineExceeded("the deadline passed before the first stage had answered"))
                case Fail(message, places, poisoned=True) if message.inputs:
                    message.refuse(self.wards.poisoned(message.inputs, places))
                case Fail(message):
                    message.refuse(StageFailed("the first stage failed, and there is no answer to fall back on"))
                case Abandon(batch):
                    logger.warning("a batch of %d rows at stage %d hangs: given up", batch.rows, batch.stage)
                    self._calls[batch].cancel()

    def _reply(self, reply: Reply) -> None:
        message: Message = reply.tag
        if self.audits is not None:
            self.audits.offer(reply, message.inputs)
        self._arrays.forget(message, reply.places)
        answers = (reply.answer,) if len(reply.places) == 1 else reply.answer.of_rows(reply.rows)
        if message.trail is not None:
            message.trail.left(self._clock(), reply.places, answers)
        message.reply(reply.places, answers)

    # -- stage calls ---------------------------------------------------------------------------------------------------

    def _run(self, batch: Batch) -> None:
        stage = self._stages[batch.stage]
        try:
            # At once: a row that is answered in the meantime takes its inputs with it.
            arrays = self._arrays.gather(batch)
            if self._thinks[batch.stage]:
                arrays[PRESSURE] = np.array(self.policy.pressures(self._clock(), batch), np.float32)
            if not isinstance(stage, InlineStage):
                self._calls[batch] = self._loop.create_task(self._call(stage, batch, arrays))
                return
            commands = self._judged(batch, stage.run_now(arrays))
        except Exception:
            commands = self._failed(batch)
        self._carry_out(commands)
        self._schedule_pump()

    async def _call(self, stage: StageClient, batch: Batch, arrays: Arrays) -> None:
        try:
            keeper = self._arrays.keeper(batch.stage)
            if keeper is None:
                result = await stage.run(arrays)
            else:
                result = await keeper.resume(arrays, partial(self._arrays.again, batch))
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

    def _judged(self, batch: Batch, result: StageResult) -> list[Command]:
        expected = (batch.rows, self._classes)
        if result.logits.shape != expected:
            raise ValueError(f"stage {batch.stage} returned logits {result.logits.shape}, expected {expected}")
        logits, poisoned = readable(result.logits)
        if result.energy is not None:
            self.policy.counts.count_energy(batch.stage, result.energy.joules, result.energy.idle_joules)
        if result.state is not None and self._thinks[batch.stage]:
            self.policy.counts.stages[batch.stage].steps += int(result.state[DEPTH].sum())
        elif result.state is not None:
            self._arrays.keep(batch, result.state)
        self.policy.counts.stages[batch.stage].recomputed += result.recomputed
        judge = self._judges[batch.stage]
        looks_back = batch.stage > 0 and judge.looks_back
        earlier = answers_so_far(batch.walks, self._classes) if looks_back else None
        judgement = judge(logits, earlier)
        if self._keeps_evidence:
            judgement = replace(judgement, evidence=logits)
        now = self._clock()
        self._troubles.answered(now, batch.stage)
        return self.policy.completed(now, batch, judgement, result.run_s, poisoned)

    def _failed(self, batch: Batch) -> list[Command]:
        now = self._clock()
        self._troubles.failed(now, batch.stage, batch.attempt)
        return self.policy.failed(now, batch)
