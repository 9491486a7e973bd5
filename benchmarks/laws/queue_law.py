"""What all laws of comparison share: queues, batches, the deadline timer, the slack check, the door. Same face as `Policy`.

A law is this class with a way to set `prices` and a choice of options. Knows what the product's policy knows, and uses its
commands, its row, its rule of going on and its learned service times, so that a law differs only in what it is about.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random

from cascade.policy.admission import Admission, predicted_wait_s
from cascade.policy.capacity import ServiceTime, StageCapacity
from cascade.policy.commands import Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import StageConfig
from cascade.policy.price import continuation_value
from cascade.policy.request import ExitReason, Request
from cascade.policy.stats import Counts, StageCounts
from cascade.policy.walk import State, Walk


@dataclass(frozen=True)
class Options:
    """What a law is made of, beside its prices.

    Attributes:
        newest_first: serve the queue from its end.
        fallback: answer with the best so far at the answer instant; otherwise the row waits for the stage it asked for.
        slack: do not start a row that would come back too late.
        wait_share: see `Admission`; infinite for an open door.
        entry: the stage that requests go to first; rows never visit the ones before it.
        period_s: how often `control` is called.
    """

    newest_first: bool = False
    fallback: bool = True
    slack: bool = True
    wait_share: float = 0.2
    entry: int = 0
    period_s: float = 0.1


class QueueLaw:
    """Queues in order of arrival, and prices that a subclass sets.

    Args:
        stages: as for `Policy`.
        usual_deadline_s: the deadline that waits are measured against.
        options: see `Options`.
        seed: of the jitter of ``Retry-After``.
    """

    def __init__(
        self, stages: Sequence[StageConfig], *, usual_deadline_s: float, options: Options | None = None, seed: int = 0
    ) -> None:
        self.options = options or Options()
        self.deadline_s = usual_deadline_s
        self.capacities = tuple(StageCapacity(s.slots, s.max_batch_size, ServiceTime(s.a_s, s.b_s)) for s in stages)
        self.counts = Counts(tuple(StageCounts() for _ in stages))
        self._base_prices = self.prices = tuple(s.base_price for s in stages)
        self._costs = [s.cost for s in stages]
        self._queues: tuple[deque[Walk], ...] = tuple(deque() for _ in stages)
        self._waiting = [0 for _ in stages]
        self._running: dict[Batch, None] = {}
        self._timers: list[tuple[float, int, Walk]] = []
        self._armed = 0
        self._next_control_s = -inf
        self._admission = Admission(self.options.wait_share, Random(seed))

    # -- what a law decides --------------------------------------------------------------------------------------------

    def control(self) -> None:
        """Set `prices`; called with the first arrival of every period. By default they stay."""

    def wait_s(self, stage: int) -> float:
        """Work that waits before a stage, in seconds of that stage."""
        capacity = self.capacities[stage]
        return self._waiting[stage] / capacity.rows_per_s if capacity.slots else 0.0

    # -- events, as `Policy` has them ----------------------------------------------------------------------------------

    def waiting(self, stage: int) -> int:
        """Rows in the queue of ``stage``."""
        return self._waiting[stage]

    def set_prices(self, prices: Sequence[float]) -> None:
        """The plan has new prices."""
        self.prices = tuple(prices)

    def next_timer(self) -> float | None:
        """The instant by which `tick` must be called, None if there is nothing to wait for."""
        while self._timers and self._timers[0][2].done:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        """A message came in."""
        if now >= self._next_control_s:
            self._next_control_s = now + self.options.period_s
            self.control()
        self.counts.arrived += len(requests)
        entry, walks = self.options.entry, tuple(Walk(request) for request in requests)
        wait_s = self._entry_wait_s(now)
        first = requests[0]
        if self.options.wait_share < inf and not self._admission.admits(wait_s, first.deadline_s - now, first.priority):
            for walk in walks:
                walk.shed()
            self.counts.shed += len(walks)
            return Shed(self._admission.retry_after_s(wait_s), wait_s)
        for walk in walks:
            walk.admit()
            walk.stage = entry
            self._push(walk, entry)
            if self.options.fallback:
                self._arm(walk, walk.request.answer_by_s)
        return walks

    def completed(
        self,
        now: float,
        batch: Batch,
        judgement: Judgement,
        run_s: float | None = None,  # noqa: ARG002
    ) -> list[Command]:
        """A batch came back."""
        if not self._release(batch):
            return []
        self.capacities[batch.stage].service.observe(len(batch.walks), now - batch.started_s)
        live = [(row, walk) for row, walk in enumerate(batch.walks) if not walk.done]
        for row, walk in live:
            walk.result(now, judgement, row)
        behind = [j for j in range(batch.stage + 1, len(self.capacities)) if self.capacities[j].slots]
        if not behind:
            last = batch.stage == len(self.capacities) - 1
            reason = ExitReason.LAST_STAGE if last else ExitReason.FAILURE
            return [self._reply(walk, reason, deferred=not last) for _, walk in live]
        values = continuation_value(judgement.gains, batch.stage, behind, self._base_prices)
        commands: list[Command] = []
        for row, walk in live:
            if values[row] <= self.prices[behind[0]]:
                commands.append(self._reply(walk, ExitReason.PRICE, deferred=True))
            else:
                walk.defer(now, behind[0])
                self._push(walk, behind[0])
        return commands

    def failed(self, now: float, batch: Batch) -> list[Command]:  # noqa: ARG002
        """A batch failed: its rows are answered with the best so far."""
        if not self._release(batch):
            return []
        return [self._give_up(walk, ExitReason.FAILURE) for walk in batch.walks if not walk.done]

    def cancelled(self, walk: Walk) -> None:
        """The row's client has gone."""
        if not walk.done:
            self._waiting[walk.stage] -= walk.state in (State.WAITING, State.DEFERRED)
            walk.cancel()
            self.counts.cancelled += 1

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        commands: list[Command] = []
        while self._timers and self._timers[0][0] <= now:
            walk = heappop(self._timers)[2]
            if walk.done:
                continue
            if not walk.has_answer and now < walk.request.deadline_s:
                self._arm(walk, walk.request.deadline_s)
                continue
            self._waiting[walk.stage] -= walk.state in (State.WAITING, State.DEFERRED)
            commands.append(self._give_up(walk, ExitReason.DEADLINE))
        return commands

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage's replicas changed; without any, what waits for it is given up, as in a law that knows no way past."""
        self.capacities[stage].slots = slots
        if slots:
            return []
        gone = [walk for walk in self._queues[stage] if not walk.done]
        self._queues[stage].clear()
        self._waiting[stage] = 0
        return [self._give_up(walk, ExitReason.FAILURE) for walk in gone]

    def dispatch(self, now: float) -> list[Command]:
        """Fill every free slot from the queue of its stage."""
        commands: list[Command] = []
        for stage, capacity in enumerate(self.capacities):
            while capacity.free and self._waiting[stage]:
                batch, late = self._take(now, stage)
                commands.extend(self._give_up(walk, ExitReason.DEADLINE) for walk in late)
                if not batch:
                    break
                for walk in batch:
                    walk.called(now, self._costs[stage])
                capacity.busy += 1
                self._running[Batch(stage, batch, 1, now, inf)] = None
                commands.append(Run(next(reversed(self._running))))
        return commands

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _take(self, now: float, stage: int) -> tuple[list[Walk], list[Walk]]:
        capacity, queue = self.capacities[stage], self._queues[stage]
        finish_s = now + capacity.service.predict(min(capacity.max_batch_size, self._waiting[stage]))
        batch: list[Walk] = []
        late: list[Walk] = []
        while queue and len(batch) < capacity.max_batch_size:
            walk = queue.pop() if self.options.newest_first else queue.popleft()
            if walk.done:
                continue
            self._waiting[stage] -= 1
            (late if self.options.slack and walk.usable_until_s < finish_s else batch).append(walk)
        if late and not batch:
            service = capacity.service
            for walk in late:
                service.refused(walk.usable_until_s - now)
        return batch, late

    def _push(self, walk: Walk, stage: int) -> None:
        self._queues[stage].append(walk)
        self._waiting[stage] += 1

    def _entry_wait_s(self, now: float) -> float:
        entry = self.options.entry
        capacity = self.capacities[entry]
        if not capacity.slots:
            return inf
        back = [b.started_s + capacity.service.predict(len(b.walks)) - now for b in self._running if b.stage == entry]
        first_free_s = 0.0 if capacity.free else max(0.0, min(back, default=0.0))
        return predicted_wait_s(capacity, self._waiting[entry], first_free_s)

    def _release(self, batch: Batch) -> bool:
        if batch not in self._running:
            return False
        del self._running[batch]
        self.capacities[batch.stage].busy -= 1
        return True

    def _reply(self, walk: Walk, reason: ExitReason, *, deferred: bool) -> Reply:
        answer = walk.exit(reason, deferred=deferred)
        self.counts.count_answer(answer)
        return Reply(walk.request.tag, answer)

    def _give_up(self, walk: Walk, reason: ExitReason) -> Command:
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
        self._armed += 1
        heappush(self._timers, (at_s, self._armed, walk))
