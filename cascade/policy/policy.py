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

from cascade.policy.admission import Admission, predicted_wait_s
from cascade.policy.capacity import ServiceTime, StageCapacity
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.price import continuation_value
from cascade.policy.queue import StageQueue
from cascade.policy.request import ExitReason, Request
from cascade.policy.stats import Counts, StageCounts
from cascade.policy.walk import State, Walk

QUEUE_SHARE = 0.25
"""Work that may wait before a stage, as a share of the usual deadline: it must leave time for the stages behind."""
LAST_QUEUE_SHARE = 0.5
"""The same before the last stage, which has none behind it."""
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
        wait_s = self._stage0_wait_s(now)
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

        Raises:
            ValueError: the judgement has another number of rows; the batch is still running then.
        """
        if batch not in self._running:
            return []  # it was given up before it came back
        if len(judgement) != len(batch.walks):
            raise ValueError(f"a batch of {len(batch.walks)} rows came back with {len(judgement)} judged")
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
        # A retry takes the place of the call that failed, even where the stage has lost a place meanwhile.
        if batch.attempt == 1 and capacity.slots and live:
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
            self.capacities[batch.stage].service.observe(len(batch.walks), now - batch.started_s)
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
                continue
            answered_by, gains = walk.best
            value = float(continuation_value(gains, answered_by, behind, self._base_prices)[0])
            if value <= self._prices[behind[0]]:
                commands.append(self._reply(walk, ExitReason.FAILURE, deferred=False))
            elif not self._affordable(walk, behind[0]):
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=False))
            else:
                walk.bypass(behind[0])
                self._queues[behind[0]].push(walk, value)
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
            if not queue:
                continue
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
                    walk.called(now, self._stages[stage].cost)
                commands.append(self._start(now, stage, batch, attempt=1))
            if stage and len(queue) > capacity.slots * capacity.max_batch_size:  # the bound is never below that
                evicted = queue.evict(self._queue_limit(stage))
                commands.extend(self._reply(walk, ExitReason.EVICTED, deferred=False) for walk in evicted)
        return commands

    def _decide(self, now: float, batch: Batch, judgement: Judgement) -> list[Command]:
        stage = batch.stage
        live = [(row, walk) for row, walk in enumerate(batch.walks) if not walk.done]
        for row, walk in live:
            walk.result(now, judgement, row)
        if stage == len(self._stages) - 1:
            return [self._reply(walk, ExitReason.LAST_STAGE, deferred=False) for _, walk in live]

        everywhere = range(stage + 1, len(self._stages))
        unloaded = continuation_value(judgement.gains, stage, everywhere, self._base_prices).tolist()
        base_price = self._base_prices[stage + 1]
        open_stages = self._open_behind(stage)
        if open_stages:
            target = open_stages[0]
            value = unloaded
            if len(open_stages) < len(everywhere):
                value = continuation_value(judgement.gains, stage, open_stages, self._base_prices).tolist()
            price = self._prices[target]
            soonest = now + self.capacities[target].service.predict(1)

        commands: list[Command] = []
        for row, walk in live:
            if unloaded[row] <= base_price:
                commands.append(self._reply(walk, ExitReason.CONFIDENT, deferred=False))
            elif not open_stages:
                commands.append(self._reply(walk, ExitReason.FAILURE, deferred=True))
            elif value[row] <= price:
                commands.append(self._reply(walk, ExitReason.PRICE, deferred=True))
            elif not self._affordable(walk, target):
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=True))
            elif soonest > walk.usable_until_s:
                if not self.capacities[target].busy:
                    self.capacities[target].service.refused(walk.usable_until_s - now)
                commands.append(self._reply(walk, ExitReason.DEADLINE, deferred=True))
            else:
                walk.defer(now, target)
                self._queues[target].push(walk, value[row])
        return commands

    def _affordable(self, walk: Walk, stage: int) -> bool:
        # Costs are sums of floats: a budget of exactly the sum must be enough.
        return walk.cost + self._stages[stage].cost <= walk.request.budget * (1.0 + 1e-9)

    def _open_behind(self, stage: int) -> list[int]:
        return [j for j in range(stage + 1, len(self._stages)) if self.capacities[j].slots]

    def _queue_limit(self, stage: int) -> int:
        """Rows that may wait: the work of a share of the usual deadline, and at least one batch for each slot."""
        capacity = self.capacities[stage]
        share = LAST_QUEUE_SHARE if stage == len(self._stages) - 1 else QUEUE_SHARE
        by_work = int(share * self._usual_deadline_s * capacity.rows_per_s)
        return max(by_work, capacity.slots * capacity.max_batch_size)

    def _stage0_wait_s(self, now: float) -> float:
        capacity = self.capacities[0]
        if not capacity.slots:
            return inf
        first_free_s = 0.0
        if not capacity.free:
            back = (
                batch.started_s + capacity.service.predict(len(batch.walks)) for batch in self._running if batch.stage == 0
            )
            # A batch that is overdue is expected to need as long again as it is overdue already.
            first_free_s = min((abs(at_s - now) for at_s in back), default=0.0)
        return predicted_wait_s(capacity, len(self._queues[0]), first_free_s)

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
