"""The composite that a driver talks to: events go in, commands come out.

Knows stages only as capacities, prices and calibrated tables. It has no clock (every event carries its instant), calls
nothing, waits for nothing, and never touches a model's output beyond the judgement that the driver hands in. The Serve
router and the simulator drive this same object.

The driver's duties: report every event with a clock that does not go back; after events, call `dispatch` and carry out the
`Run` commands; call `tick` no later than `next_timer()`; deliver each reply, preliminary ones too, at once.
"""

from collections.abc import Collection, Sequence
from math import inf
from operator import attrgetter
from random import Random

from cascade.policy.admission import Admission
from cascade.policy.again import Again
from cascade.policy.bounds import Bounds
from cascade.policy.capacity import ServiceTime, StageCapacity
from cascade.policy.chains import reachable
from cascade.policy.classes import ClassConfig, Classes
from cascade.policy.commands import Abandon, Batch, Command, Preliminary, Run, Shed, Trial
from cascade.policy.door import Door
from cascade.policy.endings import Endings
from cascade.policy.explain import Notes, explained
from cascade.policy.fairness import Tenants
from cascade.policy.gain import Judgement
from cascade.policy.onward import Onward
from cascade.policy.queue import StageQueue
from cascade.policy.request import ExitReason, Request
from cascade.policy.routing import Routing
from cascade.policy.stage_config import StageConfig as StageConfig
from cascade.policy.stats import Counts
from cascade.policy.tariff import Tariff
from cascade.policy.timers import Timers
from cascade.policy.together import apart, placed, set_aside
from cascade.policy.under_way import UnderWay
from cascade.policy.walk import State, Walk, rows_of

TIMEOUT_FACTOR = 5.0
"""A batch that takes this many times its predicted duration is given up, and tried once more elsewhere."""


class Policy:
    """Every decision of one router.

    Args:
        stages: cheapest first, at least one.
        usual_deadline_s: the deadline that queue bounds are measured against.
        wait_share: see `Admission`.
        classes: one for each priority, the most important first; by default all rows are of one class.
        routing: whether rows may skip stages.
        seed: seed of the only randomness there is, the jitter of ``Retry-After``.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        *,
        usual_deadline_s: float,
        wait_share: float = 0.2,
        classes: Sequence[ClassConfig] | None = None,
        routing: Routing = "cascade",
        seed: int = 0,
    ) -> None:
        self._stages = tuple(stages)
        self.resumes = tuple(stage.resumes for stage in stages)
        self.thinks = tuple(stage.thinks for stage in stages)
        self._bounds = Bounds(len(stages), usual_deadline_s)
        self.capacities = [
            StageCapacity(s.slots, s.max_batch_size, ServiceTime(s.a_s + s.hop_s, s.b_s), hop_s=s.hop_s) for s in stages
        ]
        self._queues = tuple(StageQueue() for _ in stages)
        base_prices = tuple(s.base_price for s in stages)
        self._classes = Classes((ClassConfig(),) if classes is None else classes, base_prices)
        self._tenants = Tenants()
        self._tariff = Tariff(base_prices, self._classes, self._tenants)
        self._onward = Onward(routing, self._stages, self.capacities, self._classes, self._tariff)
        # Rows that a full stage will not take may go to a cheaper one, which is then filled after it.
        self._order = range(len(stages)) if routing == "cascade" else range(len(stages) - 1, -1, -1)
        self._under_way = UnderWay()
        self._again = tuple(Again() for _ in stages)
        admission, shares = Admission(wait_share, Random(seed)), self._bounds.shares
        self._door = Door(admission, self._classes, self._tenants, self.capacities, self._queues, shares, self._under_way)
        self._notes = Notes(self._stages, self.capacities, self._queues, self._classes, self._tariff, self._onward)
        self._timers = Timers[Walk](attrgetter("ended"))  # one for each request, whatever its rows do
        self.count_into(Counts.of(len(stages), self._classes.count))

    def count_into(self, counts: Counts) -> None:
        """Count there from now on what comes of rows: where another policy did, from which this one takes over."""
        self.counts, endings = counts, Endings(counts, self._classes)
        self._reply, self._give_up = endings.reply, endings.give_up

    # -- what a driver may read ----------------------------------------------------------------------------------------

    @property
    def prices(self) -> tuple[float, ...]:
        """Present price of a visit to each stage."""
        return self._tariff.prices

    @property
    def reachable(self) -> tuple[bool, ...]:
        """Whether new rows can get to each stage."""
        return reachable([capacity.slots > 0 for capacity in self.capacities], self.resumes)

    @property
    def thinks_less(self) -> bool:
        """Whether load shortens the thinking of some stage now; what the tables say of its answers was found without."""
        return any(
            thinks and price > base
            for thinks, price, base in zip(self.thinks, self.prices, self._tariff.base_prices, strict=True)
        )

    def pressures(self, now: float, batch: Batch) -> list[float]:
        """By how much less each row of a batch shall think, for a stage that thinks; see `Tariff.pressure`."""
        return [self._tariff.pressure(now, walk.request, batch.stage) for walk in batch.walks for _ in walk.places]

    def waiting(self, stage: int) -> int:
        """Rows in the queue of ``stage``, and those that wait to be sent there again."""
        return len(self._queues[stage]) + self._again[stage].rows

    def next_timer(self) -> float | None:
        """The instant by which `tick` must be called, None if there is nothing to wait for."""
        instants = (self._timers.first(), self._under_way.first_give_up_s())
        return min((at_s for at_s in instants if at_s is not None), default=None)

    # -- events --------------------------------------------------------------------------------------------------------

    def door(
        self, now: float, remaining_s: float, priority: int, lag_s: float = 0.0, tenant: str = "", rows: int = 1
    ) -> Shed | None:
        """What `arrived` would say about a message, before anything of it has been read; counted if it is turned away.

        Args:
            now: present instant.
            remaining_s: time to its deadline.
            priority: its class.
            lag_s: by how much the driver itself is behind, added to the predicted wait.
            tenant: who sent it.
            rows: how many rows it has, if that is known.

        Returns:
            The refusal; None if the message may be read and handed to `arrived`.
        """
        shed = self._door.refusal(now, remaining_s, priority, lag_s, tenant)
        if shed is not None:
            self._tenants.arrived(now, tenant, rows)
            self.counts.arrived += rows
            self.counts.count_shed(rows, self._classes.index(priority))
        return shed

    def arrived(self, now: float, requests: Sequence[Request], lag_s: float = 0.0) -> tuple[Walk, ...] | Shed:
        """The rows of one message came in: all of them are admitted, or none.

        Args:
            now: present instant.
            requests: its rows, at least one, all of one class, tenant and deadline. Those that agree in everything may
                come as one request of several rows: the same is decided of each, for a fraction of the work.
            lag_s: by how much the driver itself is behind, added to the predicted wait.

        Returns:
            The walk of each request, for `cancelled`; or the refusal.
        """
        first, rows = requests[0], sum([request.rows for request in requests])
        self.counts.arrived += rows
        self._tenants.arrived(now, first.tenant, rows)
        left_s = first.deadline_s - now
        shed = self._door.refusal(now, left_s, first.priority, lag_s, first.tenant)
        if shed is not None:
            self.counts.count_shed(rows, self._classes.index(first.priority))
            return shed
        queue, walks = self._queues[0], tuple(Walk(request) for request in requests)
        for walk in walks:
            walk.admit()
            queue.push(walk, 0.0)
            self._arm(walk, walk.request.answer_by_s)
        return walks

    def completed(
        self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None, poisoned: Collection[int] = ()
    ) -> list[Command]:
        """A batch came back with its evidence judged.

        Args:
            now: present instant.
            batch: the batch of the `Run` command.
            judgement: what its evidence says, row by row in the order of ``batch.walks``.
            run_s: seconds for which it occupied its replica, if the replica says so.
            poisoned: its rows whose evidence cannot be judged; they end here, each with the best answer that it has.

        Raises:
            ValueError: the judgement has another number of rows; the batch is still running then.
        """
        if batch.done:
            return []  # it was given up before it came back
        if len(judgement) != batch.rows:
            raise ValueError(f"a batch of {batch.rows} rows came back with {len(judgement)} judged")
        self._release(batch)
        self._again[batch.stage].came_back(batch)
        self.capacities[batch.stage].observe(batch.rows, now - batch.started_s, run_s)
        self.counts.stages[batch.stage].count_batch(batch.rows, now - batch.started_s, batch.walks)
        told = explained(batch.walks)
        commands = self._decide(now, batch, judgement, poisoned)
        if told:
            self._notes.take(now, batch, judgement, told, commands)
        return commands

    def failed(self, now: float, batch: Batch, *, hung: bool = False) -> list[Command]:
        """A batch raised, its replica died, or it hung: its rows are tried again if time allows, see `Again`, or end."""
        if batch.done:
            return []
        self._release(batch)
        self.counts.stages[batch.stage].failures += 1
        live, again = [walk for walk in batch.walks if not walk.done], self._again[batch.stage]
        if again.failed(batch, live, hung=hung, out=not self.capacities[batch.stage].slots):
            # A retry takes the place of the call that failed, even where the stage has lost a place meanwhile.
            return self._try_again(now, batch.stage, 1)
        poisoned = again.poisoned(batch)
        return [self._give_up(walk, ExitReason.FAILURE, batch.stage if poisoned else None) for walk in live]

    def cancelled(self, walk: Walk) -> None:
        """The client has gone whose request this walk was given for. Safe to call for rows that have their outcome."""
        for each in (walk, *walk.parted):
            if each.done:
                continue
            if each.state in (State.WAITING, State.DEFERRED):
                self._queues[each.stage].remove(each)
            each.cancel()
            self.counts.cancelled += each.rows

    def tick(self, now: float) -> list[Command]:
        """Time has passed: rows whose answer instant has come are answered, batches that hang are given up."""
        commands: list[Command] = []
        while (first := self._timers.due(now)) is not None:
            for walk in (first, *first.parted):
                if walk.done or (not walk.has_answer and now < walk.request.deadline_s):
                    continue
                if walk.state in (State.WAITING, State.DEFERRED):
                    self._queues[walk.stage].remove(walk)
                commands.append(self._give_up(walk, ExitReason.DEADLINE))
            if not first.ended:
                self._arm(first, first.request.deadline_s)
        for batch in self._under_way.hanging(now):
            commands.append(Abandon(batch))
            self.capacities[batch.stage].observe(batch.rows, now - batch.started_s)
            commands.extend(self.failed(now, batch, hung=True))
        return commands

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage's replicas changed. With no slot left it is out, and the rows that wait for it go past it."""
        self.capacities[stage].slots = slots
        if slots:
            return []
        commands = [self._give_up(walk, ExitReason.FAILURE) for walk in self._again[stage].drain()]
        waiting = self._queues[stage].drain()
        if stage == 0:
            commands.extend(self._give_up(walk, ExitReason.FAILURE) for walk in waiting)
            return commands
        for walk in waiting:
            found = self._onward.instead(walk)
            if found is None:
                commands.append(self._give_up(walk, ExitReason.FAILURE))
                continue
            target, key = found
            if key is None:
                commands.append(self._reply(walk, ExitReason.FAILURE, deferred=False))
            elif self._onward.affordable(walk, target):
                walk.bypass(target)
                self._queues[target].push(walk, key)
            else:
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=False))
        return commands

    def set_prices(self, prices: Sequence[float], uncongested_rate: float = inf) -> None:
        """The plan has new prices; a stage's price is never below its base price.

        Args:
            prices: one for each stage; the first is not used, since every row visits stage 0.
            uncongested_rate: the largest rate, rows/s, at which there would be no surcharge; tenants within the fair rate
                of it pay none. Infinite where it is not known, and then all tenants pay alike.
        """
        self._tariff.set(prices, uncongested_rate)

    # -- decisions -----------------------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[Command]:
        """Fill every free slot with the best batch that its queue can form; of what is left, keep what may be reached."""
        commands: list[Command] = []
        for stage in self._order:
            queue, capacity = self._queues[stage], self.capacities[stage]
            if self._again[stage]:
                commands.extend(self._try_again(now, stage, capacity.free))
            if not queue:
                continue
            busy = capacity.busy
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
            if not stage or not len(queue):
                continue
            leaving = queue.leave(now, self._bounds.window_s(capacity)) if capacity.busy > busy else []
            if len(queue) > capacity.slots * capacity.max_batch_size:  # the bound is never below that
                leaving += queue.evict(self._bounds.rows(stage, capacity))
            for walk in leaving:
                if (detour := self._onward.detour(now, walk)) is None:
                    commands.append(self._reply(walk, ExitReason.EVICTED, deferred=False))
                else:
                    walk.bypass(detour[0])
                    self._queues[detour[0]].push(walk, detour[1])
        return commands

    def _decide(self, now: float, batch: Batch, judgement: Judgement, poisoned: Collection[int]) -> list[Command]:
        stage = batch.stage
        live = [(row, walk) for row, walk in placed(batch.walks) if not walk.done]
        commands: list[Command] = []
        if poisoned:
            live, aside = set_aside(live, poisoned)
            commands += [self._give_up(walk, ExitReason.FAILURE, stage) for walk in aside]
        for row, walk in live:
            walk.result(now, judgement, row)
        if stage == len(self._stages) - 1:
            return commands + [self._reply(walk, ExitReason.LAST_STAGE, deferred=False) for _, walk in live]

        everywhere, open_stages = range(stage + 1, len(self._stages)), self._onward.open_behind(stage)
        ways = unloaded = self._onward.ways(judgement.gains, stage, everywhere)
        if open_stages and len(open_stages) < len(everywhere):
            ways = self._onward.ways(judgement.gains, stage, open_stages)
        soonest = self._onward.soonest(now, ways)

        values, least = self._onward.worth(unloaded)
        for row, walk in apart(live, values, least):
            if values[row] <= least:
                commands.append(self._reply(walk, ExitReason.CONFIDENT, deferred=False))
                continue
            wanted = walk.request.min_confidence
            if wanted <= 1.0 and judgement.p_correct[row] >= wanted:
                commands.append(self._reply(walk, ExitReason.SATISFIED, deferred=False))
                continue
            if not open_stages:
                self._onward.protect(unloaded, row, walk)
                commands.append(self._reply(walk, ExitReason.FAILURE, deferred=True))
                continue
            target, key = self._onward.choose(now, ways, row, walk, soonest)
            if key is None:
                commands.append(self._reply(walk, ExitReason.PRICE, deferred=True))
            elif not self._onward.affordable(walk, target):
                commands.append(self._reply(walk, ExitReason.BUDGET, deferred=True))
            elif soonest[target] > walk.usable_until_s:
                if not self.capacities[target].busy:
                    self.capacities[target].service.refused(walk.usable_until_s - now)
                commands.append(self._reply(walk, ExitReason.DEADLINE, deferred=True))
            else:
                walk.defer(now, target)
                self._queues[target].push(walk, key)
                if walk.request.refine:
                    commands.append(Preliminary(walk.request.tag, walk.so_far, walk.places[0]))
        return commands

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _try_again(self, now: float, stage: int, places: int) -> list[Command]:
        """Send parts of what failed once more, as many as there are places."""
        commands: list[Command] = []
        again, predict = self._again[stage], self.capacities[stage].service.predict
        while places > 0 and (part := again.next()) is not None:
            live = [walk for walk in part.walks if not walk.done]
            finish = now + predict(rows_of(live))
            if in_time := [walk for walk in live if walk.usable_until_s >= finish]:
                for walk in in_time:
                    walk.retried()
                commands.append(self._start(now, stage, in_time, part.attempt, part.trial))
                places -= 1
            else:
                again.drop(part)
            commands += [self._give_up(walk, ExitReason.FAILURE) for walk in live if walk.usable_until_s < finish]
        return commands

    def _start(self, now: float, stage: int, walks: Sequence[Walk], attempt: int, trial: Trial | None = None) -> Run:
        capacity = self.capacities[stage]
        capacity.busy += 1
        patience_s = max(self._stages[stage].timeout_floor_s, TIMEOUT_FACTOR * capacity.service.predict(rows_of(walks)))
        batch = Batch(stage, walks, attempt, now, now + patience_s, trial)
        self._under_way.sent(batch)
        return Run(batch)

    def _release(self, batch: Batch) -> None:
        self._under_way.ended(batch)
        self.capacities[batch.stage].busy -= 1

    def _arm(self, walk: Walk, at_s: float) -> None:
        self._timers.arm(walk, at_s, self.counts.live)
