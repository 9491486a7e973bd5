"""The composite that a driver talks to: events go in, commands come out.

Knows stages only as capacities, prices and calibrated tables. It has no clock (every event carries its instant), calls
nothing, waits for nothing, and never touches a model's output beyond the judgement that the driver hands in. The Serve
router and the simulator drive this same object.

The driver's duties: report every event with a clock that does not go back; after events, call `dispatch` and carry out the
`Run` commands; call `tick` no later than `next_timer()`; deliver each reply at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from random import Random
from typing import Any

from cascade.policy.admission import Admission, predicted_wait_s
from cascade.policy.capacity import ServiceTime, StageCapacity
from cascade.policy.gain import Judgement
from cascade.policy.price import continuation_value
from cascade.policy.queue import StageQueue
from cascade.policy.request import Answer, ExitReason, Request
from cascade.policy.stats import Counts, StageCounts
from cascade.policy.walk import State, Walk

QUEUE_SHARES = (0.25, 0.5)
"""Work that may wait before the first dear stage, and before every later one, as a share of the ladder's usual deadline.
The first is the smaller: what waits there must leave time for the stages behind it."""
TIMEOUT_FACTOR = 5.0
"""A batch that takes this many times its predicted duration is given up, and tried once more elsewhere."""
TIMER_SLACK = 1024
"""Timers of finished rows that may pile up, beyond those of the live ones, before they are thrown out."""


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What the policy must know of a stage.

    Attributes:
        slots: batches that may be with its replicas at a time.
        max_batch_size: rows in a batch, at most.
        cost: cost of one row, in the ladder's cost unit.
        base_price: gain that a visit must promise when nothing is scarce.
        a_s: profiled seconds of any batch.
        b_s: profiled seconds that a row adds.
        timeout_floor_s: a batch is never given up before this.
    """

    slots: int
    max_batch_size: int
    cost: float
    base_price: float
    a_s: float
    b_s: float
    timeout_floor_s: float = 1.0


@dataclass(eq=False, slots=True)
class Batch:
    """Rows that are with a stage together.

    Attributes:
        stage: index of the stage.
        walks: the rows, in the order of the batch.
        attempt: 1, or 2 when it is the one retry.
        started_s: when it was sent.
        give_up_s: when it counts as failed.
    """

    stage: int
    walks: Sequence[Walk]
    attempt: int
    started_s: float
    give_up_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Command: send this batch to its stage, then report `completed` or `failed`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Abandon:
    """Command: this batch was given up; whatever it still returns will be ignored."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Reply:
    """Command: give this answer to the row's client."""

    tag: Any
    answer: Answer


@dataclass(frozen=True, slots=True)
class Expire:
    """Command: tell the row's client that its deadline passed before there was an answer."""

    tag: Any


@dataclass(frozen=True, slots=True)
class Fail:
    """Command: tell the row's client that the first stage failed."""

    tag: Any


Command = Run | Abandon | Reply | Expire | Fail


@dataclass(frozen=True, slots=True)
class Shed:
    """The whole message was turned away at the door.

    Attributes:
        retry_after_s: whole seconds to stay away, jittered.
        wait_s: the predicted wait that was too long.
    """

    retry_after_s: int
    wait_s: float


class Policy:
    """Every decision of one router.

    Args:
        stages: cheapest first, at least one.
        usual_deadline_s: the deadline that queue bounds are measured against.
        wait_share: see `Admission`.
        seed: seed of the only randomness there is, the jitter of ``Retry-After``.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        *,
        usual_deadline_s: float,
        wait_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self._stages = tuple(stages)
        self._usual_deadline_s = usual_deadline_s
        self._admission = Admission(wait_share, Random(seed))
        self.capacities = tuple(StageCapacity(s.slots, s.max_batch_size, ServiceTime(s.a_s, s.b_s)) for s in stages)
        self._queues = tuple(StageQueue() for _ in stages)
        self._base_prices = tuple(s.base_price for s in stages)
        self._prices = self._base_prices
        # A dict for its order: batches given up at one instant leave in the order they were sent, in every run.
        self._running: dict[Batch, None] = {}
        self._timers: list[tuple[float, int, Walk]] = []
        self._timer_sequence = 0
        self.counts = Counts(tuple(StageCounts() for _ in stages))

    # -- what a driver may read ----------------------------------------------------------------------------------------

    @property
    def prices(self) -> tuple[float, ...]:
        """Present price of a visit to each stage."""
        return self._prices

    def waiting(self, stage: int) -> int:
        """Rows in the queue of ``stage``."""
        return len(self._queues[stage])

    def next_timer(self) -> float | None:
        """The instant by which `tick` must be called, None if there is nothing to wait for."""
        while self._timers and self._timers[0][2].done:
            heappop(self._timers)
        first = self._timers[0][0] if self._timers else None
        for batch in self._running:
            if first is None or batch.give_up_s < first:
                first = batch.give_up_s
        return first

    # -- events --------------------------------------------------------------------------------------------------------

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        """The rows of one message came in: all of them are admitted, or none.

        Args:
            now: present instant.
            requests: its rows, at least one, all of one class and deadline.
        """
        self.counts.arrived += len(requests)
        first = requests[0]
        wait_s = self._stage0_wait_s(now, len(requests))
        walks = tuple(Walk(request) for request in requests)
        if not self._admission.admits(wait_s, first.deadline_s - now, first.priority):
            for walk in walks:
                walk.shed()
            self.counts.shed += len(walks)
            return Shed(self._admission.retry_after_s(wait_s), wait_s)
        queue = self._queues[0]
        for walk in walks:
            walk.admit()
            queue.push(walk, 0.0)
            self._arm(walk, walk.request.answer_by_s)
        return walks

    def completed(self, now: float, batch: Batch, judgement: Judgement) -> list[Command]:
        """A batch came back with its evidence judged.

        Args:
            now: present instant.
            batch: the batch of the `Run` command.
            judgement: what its evidence says; row i belongs to ``batch.walks[i]``.
        """
        if batch not in self._running:
            return []  # it was given up before it came back
        self._release(batch)
        capacity = self.capacities[batch.stage]
        capacity.service.observe(len(batch.walks), now - batch.started_s)
        counts = self.counts.stages[batch.stage]
        counts.batches += 1
        counts.rows += len(batch.walks)
        counts.queued_s += sum(walk.queued_s for walk in batch.walks)
        counts.run_s += now - batch.started_s
        return self._decide(now, batch, judgement)

    def failed(self, now: float, batch: Batch) -> list[Command]:
        """A batch raised or its replica died: tried once more if time allows, else answered with the best so far."""
        if batch not in self._running:
            return []
        self._release(batch)
        self.counts.stages[batch.stage].failures += 1
        live = [walk for walk in batch.walks if not walk.done]
        commands: list[Command] = []
        capacity = self.capacities[batch.stage]
        if batch.attempt == 1 and capacity.free and live:
            finish = now + capacity.service.predict(len(live))
            again = [walk for walk in live if walk.usable_until_s >= finish]
            live = [walk for walk in live if walk.usable_until_s < finish]
            if again:
                for walk in again:
                    walk.retried()
                commands.append(self._start(now, batch.stage, again, attempt=2))
        for walk in live:
            commands.append(self._give_up(walk, ExitReason.FAILURE))
        return commands

    def cancelled(self, walk: Walk) -> None:
        """The row's client has gone. Safe to call for a row that has its outcome."""
        if walk.done:
            return
        if walk.state in (State.WAITING, State.DEFERRED):
            self._queues[walk.stage].remove(walk)
        walk.cancel()
        self.counts.cancelled += 1

    def tick(self, now: float) -> list[Command]:
        """Time has passed: rows whose answer instant has come are answered, batches that hang are given up."""
        commands: list[Command] = []
        while self._timers and self._timers[0][0] <= now:
            walk = heappop(self._timers)[2]
            if walk.done:
                continue
            if not walk.has_answer and now < walk.request.deadline_s:
                self._arm(walk, walk.request.deadline_s)
                continue
            if walk.state in (State.WAITING, State.DEFERRED):
                self._queues[walk.stage].remove(walk)
            commands.append(self._give_up(walk, ExitReason.DEADLINE))
        hanging = [batch for batch in self._running if batch.give_up_s <= now]
        for batch in sorted(hanging, key=lambda batch: batch.give_up_s):
            commands.append(Abandon(batch))
            commands.extend(self.failed(now, batch))
        return commands

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage's replicas changed. With no slot left it is out, and the rows that wait for it go past it."""
        self.capacities[stage].slots = slots
        if slots:
            return []
        commands: list[Command] = []
        waiting = self._queues[stage].drain()
        if stage == 0:
            commands.extend(self._give_up(walk, ExitReason.FAILURE) for walk in waiting)
            return commands
        behind = self._open_behind(stage)
        for walk in waiting:
            if not behind:
                commands.append(self._give_up(walk, ExitReason.FAILURE))
            elif walk.cost + self._stages[behind[0]].cost > walk.request.budget:
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=False))
            else:
                walk.bypass(behind[0])
                self._queues[behind[0]].push(walk, walk.place[0])
        return commands

    def set_prices(self, prices: Sequence[float]) -> None:
        """The plan has new prices; a stage's price is never below its base price.

        Args:
            prices: one for each stage; the first is not used, since every row visits stage 0.
        """
        self._prices = tuple(map(max, zip(self._base_prices, prices, strict=True)))

    # -- decisions -----------------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[Command]:
        """Fill every free slot with the best batch that its queue can form; of what is left, keep what the bound allows."""
        commands: list[Command] = []
        for stage, queue in enumerate(self._queues):
            capacity = self.capacities[stage]
            while capacity.free and len(queue):
                batch, late = queue.take(now, capacity.max_batch_size, capacity.service.predict)
                commands.extend(self._give_up(walk, ExitReason.DEADLINE) for walk in late)
                if not batch:
                    if not capacity.busy:
                        for walk in late:
                            capacity.service.refused(walk.usable_until_s - now)
                    break
                for walk in batch:
                    walk.called(now)
                commands.append(self._start(now, stage, batch, attempt=1))
            if stage and len(queue):
                evicted = queue.evict(self._queue_limit(stage))
                commands.extend(self._reply(walk, ExitReason.EVICTED, deferred=False) for walk in evicted)
        return commands

    def _decide(self, now: float, batch: Batch, judgement: Judgement) -> list[Command]:
        stage = batch.stage
        cost = self._stages[stage].cost
        live = [(row, walk) for row, walk in enumerate(batch.walks) if not walk.done]
        for row, walk in live:
            walk.result(now, judgement, row, cost)
        if stage == len(self._stages) - 1:
            return [self._reply(walk, ExitReason.LAST_STAGE, deferred=False) for _, walk in live]

        everywhere = range(stage + 1, len(self._stages))
        unloaded = continuation_value(judgement.gains, stage, everywhere, self._base_prices).tolist()
        base_price = self._base_prices[stage + 1]
        open_stages = self._open_behind(stage)
        if open_stages:
            target = open_stages[0]
            loaded = continuation_value(judgement.gains, stage, open_stages, self._prices).tolist()
            price = self._prices[target]
            soonest = now + self.capacities[target].service.predict(1)

        commands: list[Command] = []
        for row, walk in live:
            if unloaded[row] <= base_price:
                commands.append(self._reply(walk, ExitReason.CONFIDENT, deferred=False))
            elif not open_stages:
                commands.append(self._reply(walk, ExitReason.FAILURE, deferred=True))
            elif loaded[row] <= price:
                commands.append(self._reply(walk, ExitReason.PRICE, deferred=True))
            elif walk.cost + self._stages[target].cost > walk.request.budget:
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=True))
            elif soonest > walk.usable_until_s:
                if not self.capacities[target].busy:
                    self.capacities[target].service.refused(walk.usable_until_s - now)
                commands.append(self._reply(walk, ExitReason.DEADLINE, deferred=True))
            else:
                walk.defer(now, target)
                self._queues[target].push(walk, loaded[row])
        return commands

    def _open_behind(self, stage: int) -> list[int]:
        return [j for j in range(stage + 1, len(self._stages)) if self.capacities[j].slots]

    def _queue_limit(self, stage: int) -> int:
        """Rows that may wait: the work of a share of the usual deadline, and at least one batch for each slot."""
        capacity = self.capacities[stage]
        share = QUEUE_SHARES[min(stage, len(QUEUE_SHARES)) - 1]
        by_work = int(share * self._usual_deadline_s * capacity.rows_per_s)
        return max(by_work, capacity.slots * capacity.max_batch_size)

    def _stage0_wait_s(self, now: float, arriving: int) -> float:
        capacity = self.capacities[0]
        if not capacity.slots:
            return inf
        first_free_s = 0.0
        if not capacity.free:
            back = (
                batch.started_s + capacity.service.predict(len(batch.walks)) for batch in self._running if batch.stage == 0
            )
            first_free_s = max(0.0, min(back, default=now) - now)
        return predicted_wait_s(capacity, len(self._queues[0]), arriving, first_free_s)

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _start(self, now: float, stage: int, walks: Sequence[Walk], attempt: int) -> Run:
        capacity = self.capacities[stage]
        capacity.busy += 1
        patience_s = max(self._stages[stage].timeout_floor_s, TIMEOUT_FACTOR * capacity.service.predict(len(walks)))
        batch = Batch(stage, walks, attempt, now, now + patience_s)
        self._running[batch] = None
        return Run(batch)

    def _release(self, batch: Batch) -> None:
        del self._running[batch]
        self.capacities[batch.stage].busy -= 1

    def _reply(self, walk: Walk, reason: ExitReason, *, deferred: bool) -> Reply:
        answer = walk.exit(reason, deferred=deferred)
        self.counts.count_answer(answer)
        return Reply(walk.request.tag, answer)

    def _give_up(self, walk: Walk, reason: ExitReason) -> Command:
        """End a row now: with its best answer if it has one, else as expired or failed."""
        if walk.has_answer:
            return self._reply(walk, reason, deferred=False)
        if reason is ExitReason.FAILURE:
            walk.fail()
            self.counts.failed += 1
            return Fail(walk.request.tag)
        walk.expire()
        self.counts.expired += 1
        return Expire(walk.request.tag)

    def _arm(self, walk: Walk, at_s: float) -> None:
        self._timer_sequence += 1
        heappush(self._timers, (at_s, self._timer_sequence, walk))
        if len(self._timers) > 2 * self.counts.live + TIMER_SLACK:
            self._timers = [timer for timer in self._timers if not timer[2].done]
            heapify(self._timers)
