"""Discrete-event simulation of a ladder: the server's own policy, driven in virtual time over a cluster of replicas.

This driver has the same duties as the router of the server (see `cascade.policy.policy`) and takes no decision either. What
a stage says about a row is looked up in a `JudgedTable`, so no model runs. At the end the conservation laws are checked;
a run that breaks one is an error, not a result.

Not simulated: the router's own CPU time, the client's network. Several routers beside each other are one `Driven` of
`cascade.simulation.fleet`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Protocol

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray

from cascade.calibration.judged import JudgedTable
from cascade.errors import ConfigError
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.meter import RateMeter
from cascade.policy.request import Request
from cascade.policy.walk import Walk
from cascade.simulation.clients import Clients, Mix
from cascade.simulation.cluster import Cluster
from cascade.simulation.passes import Call, Pass
from cascade.simulation.record import REASONS, Ending, Record
from cascade.simulation.workload import Arrivals


class Driven(Protocol):
    """What can be driven: `cascade.policy.policy.Policy`, or another law with the same face to compare it with."""

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        """The rows of one message came in."""
        ...

    def completed(self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None) -> list[Command]:
        """A batch came back, after its replica was busy with it for ``run_s`` seconds."""
        ...

    def failed(self, now: float, batch: Batch) -> list[Command]:
        """A batch was lost."""
        ...

    def tick(self, now: float) -> list[Command]:
        """The instant of `next_timer` has come."""
        ...

    def dispatch(self, now: float) -> list[Command]:
        """Events have happened: fill the free slots."""
        ...

    def next_timer(self) -> float | None:
        """When `tick` must be called."""
        ...

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """A stage's replicas changed."""
        ...

    def set_prices(self, prices: Sequence[float]) -> None:
        """A planner has new prices."""
        ...


Planner = Callable[[float, float, Driven], Sequence[float] | None]
"""(now, estimated arrivals a second, what is driven) to the price of each stage, or None to leave them as they are."""


class ConservationBroken(Exception):
    """A row was lost, ended twice, or was charged for what it did not use: the driver or what it drives is wrong."""


def draw_rows(table: JudgedTable, count: int, seed: SeedSequence | int) -> NDArray[np.intp]:
    """Rows that arrive, drawn with replacement: [count] indices into the table."""
    return default_rng(seed).integers(table.rows, size=count, dtype=np.intp)


def simulate(
    policy: Driven,
    cluster: Cluster,
    table: JudgedTable,
    arrivals: Arrivals,
    rows: NDArray[np.intp],
    clients: Clients | Mix,
    *,
    poison: NDArray[np.bool_] | None = None,
    planner: Planner | None = None,
    plan_period_s: float = 0.5,
    progress: Callable[[float], None] | None = None,
) -> Record:
    """Run until nothing is left to happen.

    Args:
        policy: fresh; what it was told of the stages need not be true.
        cluster: fresh; what the stages truly are.
        table: what each stage says about each row, and whether it is right.
        arrivals: when requests come; each is a message of one row.
        rows: [N] which row of the table each one is, see `draw_rows`.
        clients: what they ask for.
        poison: [N] whether every call fails that holds this request's row; none do by default.
        planner: the slow loop, called every ``plan_period_s`` while requests come.
        plan_period_s: see above.
        progress: told the share that is done, now and then.

    Raises:
        ConfigError: table, cluster and arrivals do not fit together.
        ConservationBroken: see there.
    """
    if len(cluster.servers) != len(table.stages):
        raise ConfigError(f"the table has {len(table.stages)} stages, the cluster {len(cluster.servers)}")
    if len(rows) != len(arrivals.instants):
        raise ConfigError(f"{len(arrivals.instants)} arrivals need as many rows, got {len(rows)}")
    if isinstance(clients, Mix) and len(clients.deadline_s) != len(rows):
        raise ConfigError(f"{len(rows)} arrivals need a mix of as many, got {len(clients.deadline_s)}")
    if planner is not None and not plan_period_s > 0:
        raise ConfigError(f"the plan period must be above 0, got {plan_period_s:g}")
    if poison is not None and len(poison) != len(rows):
        raise ConfigError(f"{len(rows)} arrivals need as many marks of poison, got {len(poison)}")
    run = _Run(policy, cluster, table, arrivals, rows, clients, poison)
    run.go(planner, plan_period_s, progress)
    return run.record()


class _Run:
    """The state of one run. Columns are plain lists: single items of numpy arrays cost several times as much."""

    def __init__(
        self,
        policy: Driven,
        cluster: Cluster,
        table: JudgedTable,
        arrivals: Arrivals,
        rows: NDArray[np.intp],
        clients: Clients | Mix,
        poison: NDArray[np.bool_] | None = None,
    ) -> None:
        self._policy = policy
        self._poison = frozenset(() if poison is None else np.flatnonzero(poison).tolist())
        self._cluster = cluster
        self._table = table
        self._arrivals = arrivals
        self._rows = rows
        self._row_of: list[int] = rows.tolist()
        self._clients = clients
        self._evidence = _Evidence(table, self._row_of)
        self._heap: list[tuple[float, int, Call | Callable[[float], list[Command]]]] = []
        self._sequence = 0
        self._calls: dict[Batch, Call] = {}
        count = len(rows)
        self._ending = bytearray(count)
        self._done_s = [0.0] * count
        self._stage = [-1] * count
        self._reason = [-1] * count
        self._cost = [0.0] * count
        self._charged = [0.0] * count
        self._degraded = bytearray(count)
        self._stage_cost: list[float] = table.cost.tolist()
        self._batches: list[tuple[int, int, float, float]] = []
        self._prices: list[tuple[float, tuple[float, ...]]] = []
        self._now = 0.0

    def go(self, planner: Planner | None, plan_period_s: float, progress: Callable[[float], None] | None) -> None:
        """Let everything happen."""
        for instant, stage, out in self._cluster.turns:
            self.at(instant, partial(self._turn, stage, out))
        if planner is not None:
            self.at(plan_period_s, _Planning(self, self._arrivals, planner, plan_period_s))
        policy, heap, ask = self._policy, self._heap, self._clients.asking()
        instants = self._arrivals.instants.tolist()
        instants.append(inf)
        tag, arrives_s = 0, instants[0]
        report_every = max(1, len(instants) // 100)
        while True:
            now = heap[0][0] if heap else inf
            now = min(now, arrives_s)
            timer = policy.next_timer()
            if timer is not None and timer <= now:
                # A timer may be overdue where an event made a new one; the clock does not go back.
                now = max(timer, self._now)
                self._now = now
                self._carry_out(now, policy.tick(now))
            elif now == inf:
                break
            elif arrives_s <= now:
                self._now = now
                while arrives_s == now:  # of one instant: they may share a batch
                    if type(policy.arrived(now, (ask(tag, now),))) is Shed:
                        self._end(now, tag, Ending.SHED)
                    tag += 1
                    arrives_s = instants[tag]
                    if progress is not None and tag % report_every == 0:
                        progress(tag / len(instants))
            else:
                self._now = now
                event = heappop(heap)[2]
                if isinstance(event, Call):
                    if event.back_s != now:
                        continue  # it was moved, or lost, or taken out
                    self._carry_out(now, self._came_back(now, event))
                else:
                    self._carry_out(now, event(now))
            if commands := policy.dispatch(now):
                self._carry_out(now, commands)

    # -- events --------------------------------------------------------------------------------------------------------

    def at(self, instant: float, event: Call | Callable[[float], list[Command]]) -> None:
        """Let a call come back, or something else happen."""
        self._sequence += 1
        heappush(self._heap, (instant, self._sequence, event))

    def _came_back(self, now: float, call: Call) -> list[Command]:
        batch = call.batch
        work = self._cluster.came_back(call)
        if work is not None:
            self._book(call.batch.stage, work, work.finish_s)
        if call.given_up:
            return []  # as the router, which has stopped waiting for it
        del self._calls[batch]
        if call.replica is None or (self._poison and any(walk.request.tag in self._poison for walk in batch.walks)):
            return self._policy.failed(now, batch)
        return self._policy.completed(now, batch, self._evidence.judge(batch), call.run_s)

    def _turn(self, stage: int, out: bool, now: float) -> list[Command]:
        """An outage begins or ends."""
        slots = 0 if out else self._cluster.servers[stage].slots
        commands = self._policy.set_slots(stage, slots)
        if out:
            for work in self._cluster.lose(stage):
                self._book(stage, work, now)
                for call in work.calls:
                    if not call.given_up:
                        del self._calls[call.batch]
                        commands += self._policy.failed(now, call.batch)
        return commands

    def _book(self, stage: int, work: Pass, until_s: float) -> None:
        """Note a pass that occupied a replica."""
        if work.start_s < until_s:
            self._batches.append((stage, work.rows, work.start_s, until_s))

    def plan(self, now: float, planner: Planner, rate: float) -> None:
        """Ask for prices, and pass them on."""
        prices = planner(now, rate, self._policy)
        if prices is not None:
            self._policy.set_prices(prices)
            self._prices.append((now, tuple(prices)))

    # -- commands ------------------------------------------------------------------------------------------------------

    def _carry_out(self, now: float, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Reply):
                tag, answer = command.tag, command.answer
                self._end(now, tag, Ending.ANSWERED)
                self._stage[tag] = answer.stage
                self._reason[tag] = _REASON_CODES[answer.reason]
                self._cost[tag] = answer.cost
                self._degraded[tag] = answer.deferrals > answer.escalations
            elif isinstance(command, Run):
                self._send(now, command.batch)
            elif isinstance(command, Abandon):
                for later in self._cluster.give_up(now, self._calls.pop(command.batch)):
                    self.at(later.back_s, later)
            elif isinstance(command, Expire):
                self._end(now, command.tag, Ending.EXPIRED)
            elif isinstance(command, Fail):
                self._end(now, command.tag, Ending.FAILED)

    def _send(self, now: float, batch: Batch) -> None:
        if batch.attempt == 1:  # a second attempt is not charged
            cost, charged = self._stage_cost[batch.stage], self._charged
            for walk in batch.walks:
                charged[walk.request.tag] += cost
        call = self._calls[batch] = self._cluster.send(now, batch)
        if call.back_s < inf:  # else an outage will end it
            for each in self._cluster.moved(call):
                self.at(each.back_s, each)

    def _end(self, now: float, tag: int, ending: Ending) -> None:
        if self._ending[tag]:
            before = Ending(self._ending[tag]).name.lower()
            raise ConservationBroken(f"row {tag} was {before} and is {ending.name.lower()} at {now:g} s")
        self._ending[tag] = ending
        self._done_s[tag] = now

    # -- the end -------------------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """What happened, after the conservation laws were checked."""
        ending = np.frombuffer(bytes(self._ending), dtype=np.int8)
        if (ending == Ending.NONE).any():
            lost = np.flatnonzero(ending == Ending.NONE)
            raise ConservationBroken(f"{len(lost)} of {len(ending)} rows have no ending, the first is row {lost[0]}")
        if self._calls or not self._cluster.idle:
            raise ConservationBroken("nothing is left to happen, and batches are still with replicas")
        answered = ending == Ending.ANSWERED
        cost, charged = np.array(self._cost), np.array(self._charged)
        wrong = np.flatnonzero(answered & ~np.isclose(cost, charged, rtol=1e-9))
        if len(wrong):
            raise ConservationBroken(f"row {wrong[0]} says that it cost {cost[wrong[0]]:g}, it used {charged[wrong[0]]:g}")
        instants = self._arrivals.instants
        mix = self._clients if isinstance(self._clients, Mix) else None
        batches = np.array(self._batches, dtype=np.float64).reshape(-1, 4)
        return Record(
            arrivals=self._arrivals,
            row=self._rows,
            ending=ending,
            done_s=np.array(self._done_s),
            deadline_s=instants + self._clients.deadline_s,
            stage=np.array(self._stage, dtype=np.int8),
            reason=np.array(self._reason, dtype=np.int8),
            cost=charged,
            degraded=np.frombuffer(bytes(self._degraded), dtype=np.bool_),
            batch_stage=batches[:, 0].astype(np.intp),
            batch_rows=batches[:, 1].astype(np.intp),
            batch_start_s=batches[:, 2],
            batch_finish_s=batches[:, 3],
            replicas=np.array([servers.replicas for servers in self._cluster.servers], dtype=np.intp),
            prices=self._prices,
            seconds=self._now,
            priority=mix.priority if mix else None,
            tenant=mix.tenant if mix else None,
        )


_REASON_CODES = {reason: code for code, reason in enumerate(REASONS)}


class _Evidence:
    """What the stages say about rows."""

    def __init__(self, table: JudgedTable, row_of: list[int]) -> None:
        # p_correct and gains side by side, so that a batch is gathered in one go.
        self._of_stage = [
            np.ascontiguousarray(np.column_stack([table.p_correct[:, stage], table.gains[:, stage, stage + 1 :]]))
            for stage in range(len(table.stages))
        ]
        self._no_probabilities = np.empty((1, 0))
        self._row_of = row_of

    def judge(self, batch: Batch) -> Judgement:
        """The judgement of a batch; without class probabilities, which no decision reads."""
        row_of, walks = self._row_of, batch.walks
        if len(walks) == 1:  # most batches, at low load
            row = row_of[walks[0].request.tag]
            found = self._of_stage[batch.stage][row : row + 1]
        else:
            found = self._of_stage[batch.stage].take([row_of[walk.request.tag] for walk in walks], axis=0)
            if len(walks) > len(self._no_probabilities):
                self._no_probabilities = np.empty((len(walks), 0))
        p_correct = found[:, 0]
        return Judgement(self._no_probabilities[: len(walks)], p_correct, p_correct, found[:, 1:])


class _Planning:
    """The event that calls a planner, again and again while requests come."""

    def __init__(self, run: _Run, arrivals: Arrivals, planner: Planner, period_s: float) -> None:
        self._run = run
        self._arrivals = arrivals
        self._planner = planner
        self._period_s = period_s
        self._meter = RateMeter(0.0)
        self._counted = 0

    def __call__(self, now: float) -> list[Command]:
        """Plan, and come back."""
        until = int(np.searchsorted(self._arrivals.instants, now, side="right"))
        for instant in self._arrivals.instants[self._counted : until].tolist():
            self._meter.add(instant)
        self._counted = until
        self._run.plan(now, self._planner, self._meter.at(now))
        if now + self._period_s < self._arrivals.seconds:
            self._run.at(now + self._period_s, self)
        return []
