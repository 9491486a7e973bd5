"""Replicas in virtual time: which of them gets a batch, and when that comes back. Knows no request and decides nothing.

A replica makes one pass at a time, of one call or, like those of `cascade.serving.stage`, of several that wait. A pass over
n rows is (a + b n) x noise seconds of work; a slowdown makes every second of work last longer while it holds, also for the
pass that is being made.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log1p, sqrt
from random import Random
from typing import Literal

from numpy.random import Generator, SeedSequence, default_rng

from cascade.errors import ConfigError
from cascade.policy.commands import Batch
from cascade.simulation.passes import NOWHERE, Call, Pass, Replica
from cascade.simulation.shared import Shared

Noise = Literal["lognormal", "gamma"]
"""Distribution of the factor on service times, mean 1; gamma with a coefficient of variation of 1 is exponential."""

GATHER_SHARE = 0.1
"""Part of the last pass's duration that a replica with room left waits, at most, for the callers of that pass to come back.
Routers whose calls take turns would else never meet in one pass; longer than this is not worth the idle time."""
BLOCK = 4096
"""Factors drawn together."""


@dataclass(frozen=True, slots=True)
class StageServers:
    """What really serves a stage, whatever the policy was told.

    Attributes:
        a_s: seconds of any batch.
        b_s: seconds that a row adds.
        replicas: replicas.
        calls_per_replica: batches that may be with one of them, running or waiting.
        hop_s: seconds to a replica, and the same back.
        merged_rows: a replica runs calls that wait in one pass of up to so many rows; 0 if it runs each call on its own.
        owner: index of the stage on whose replicas it runs, one pass at a time with that one's; None if they are its own.
    """

    a_s: float
    b_s: float
    replicas: int = 1
    calls_per_replica: int = 1
    hop_s: float = 0.0
    merged_rows: int = 0
    owner: int | None = None

    @property
    def slots(self) -> int:
        """Batches that may be with the stage at a time."""
        return self.replicas * self.calls_per_replica


@dataclass(frozen=True, slots=True)
class Slowdown:
    """From ``from_s`` to ``to_s``, work at a stage lasts ``factor`` times as long; infinitely long is an outage.

    In an outage all replicas are gone: what they held has failed, what is sent to them fails.
    """

    stage: int
    from_s: float
    to_s: float
    factor: float

    def __post_init__(self) -> None:
        if not 0 <= self.from_s < self.to_s < inf or not self.factor > 0:
            raise ConfigError(
                f"a slowdown needs 0 <= from < to and a factor above 0, got {self.factor:g} from {self.from_s:g} s "
                f"to {self.to_s:g} s"
            )


class _Stage:
    """One stage and its replicas, which others may use too."""

    def __init__(
        self,
        index: int,
        servers: StageServers,
        noise: Iterator[float],
        slowdowns: Sequence[Slowdown],
        replicas: "list[Replica] | None" = None,
    ) -> None:
        self.index = index
        self.shared: Shared | None = None
        self.servers = servers
        self.noise = noise
        self.replicas = [Replica() for _ in range(servers.replicas)] if replicas is None else replicas
        edges = sorted({0.0, *(s.from_s for s in slowdowns), *(s.to_s for s in slowdowns)})
        self.edges = edges
        self.pace = [1.0] * len(edges)
        for index, edge in enumerate(edges):
            for slowdown in slowdowns:
                if slowdown.from_s <= edge < slowdown.to_s:
                    self.pace[index] *= slowdown.factor
        self.steady = not slowdowns

    def seconds(self, work: Pass) -> float:
        """Seconds of work of a pass."""
        return (self.servers.a_s + self.servers.b_s * work.rows) * work.factor

    def pace_at(self, instant: float) -> float:
        """Seconds that a second of work lasts."""
        return self.pace[bisect_right(self.edges, instant) - 1]

    def finish(self, start_s: float, work_s: float) -> float:
        """When work that begins at ``start_s`` is done."""
        if self.steady or start_s == inf:
            return start_s + work_s
        first = bisect_right(self.edges, start_s) - 1
        for pace, until_s in zip(self.pace[first:], [*self.edges[first + 1 :], inf], strict=True):
            if work_s * pace <= until_s - start_s:
                return start_s + work_s * pace
            if pace == inf:
                break
            work_s -= (until_s - start_s) / pace
            start_s = until_s
        return inf

    def take(self, call: Call, replica: Replica, arrives_s: float, factors: Iterator[float]) -> None:
        """Let a call join the last pass at its replica, if that has not begun and has room, or form one of its own."""
        if self.shared is not None:
            self.shared.take(call, replica, arrives_s, factors)
            return
        rows, room = call.batch.rows, self.servers.merged_rows
        work = replica.passes[-1] if replica.passes else None
        if work is None or work.start_s <= arrives_s or work.rows + rows > room:
            if work is not None and work.start_s > arrives_s:
                self._begin(work, arrives_s)  # it has all that it can take
            work = Pass(self.index, next(factors), replica.last)
            replica.last = work
            replica.passes.append(work)
        before = work.before
        call.work = work
        work.calls.append(call)
        work.size += 1
        work.returned += before is None or arrives_s >= before.finish_s
        work.rows += rows
        if before is None or work.rows >= room or work.returned >= before.size:
            self._begin(work, arrives_s)
        else:
            # Until an instant that is infinite where the replica will be gone by then.
            pause_s = GATHER_SHARE * (before.finish_s - before.start_s) if before.finish_s < inf else 0.0
            self._begin(work, max(arrives_s, before.finish_s + pause_s))

    def _begin(self, work: Pass, at_s: float) -> None:
        """Set the instants of a pass that begins at ``at_s``, or before if it was to, but not before its replica is free."""
        free_s = -inf if work.before is None else work.before.finish_s
        work.start_s = max(free_s, min(work.start_s, at_s))
        work.finish_s = self.finish(work.start_s, self.seconds(work))
        for call in work.calls:
            call.back_s = work.finish_s + self.servers.hop_s


class Cluster:
    """All stages.

    Args:
        stages: cheapest first.
        slowdowns: in any order; where several overlap their factors multiply.
        cv: coefficient of variation of service times; 0 for none.
        noise: their distribution.
        seed: of the noise. The k-th pass of a stage has the same factor in every run.
        compared: replicas drawn at random for each batch, of which that with the fewest calls gets it; None for all of them.
    """

    def __init__(
        self,
        stages: Sequence[StageServers],
        *,
        slowdowns: Sequence[Slowdown] = (),
        cv: float = 0.1,
        noise: Noise = "lognormal",
        seed: SeedSequence | int = 0,
        compared: int | None = None,
    ) -> None:
        if not 0 <= cv < inf:
            raise ConfigError(f"cv must be a coefficient of variation, 0 or more, got {cv:g}")
        for slowdown in slowdowns:
            if not 0 <= slowdown.stage < len(stages):
                raise ConfigError(f"a slowdown names stage {slowdown.stage}, there are {len(stages)}, counted from 0")
        self.servers = tuple(stages)
        self.slowdowns = tuple(slowdowns)
        if compared is not None and compared < 1:
            raise ConfigError(f"a batch needs a replica to go to, so that at least one is compared, got {compared}")
        self._compared = compared
        sequence = SeedSequence(seed) if isinstance(seed, int) else seed
        seeds = sequence.spawn(len(stages))
        self._chance = Random(int(sequence.generate_state(1)[0]))
        made: list[_Stage] = []
        for index, (servers, own) in enumerate(zip(stages, seeds, strict=True)):
            owner = index if servers.owner is None else servers.owner
            found = [slowdown for slowdown in slowdowns if slowdown.stage in (index, owner)]
            shared = None if owner == index else made[owner].replicas
            made.append(_Stage(index, servers, _factors(default_rng(own), cv, noise), found, shared))
        self._stages = tuple(made)
        for servers in stages:
            if servers.owner is not None:
                group = [stage for stage in made if servers.owner in (stage.index, stage.servers.owner)]
                for stage in group:
                    stage.shared = Shared({each.index: each for each in group}, stage.index)

    @property
    def turns(self) -> list[tuple[float, int, bool]]:
        """(instant, stage, whether it is out from then on) of every beginning and end of an outage."""
        turns = []
        for index, stage in enumerate(self._stages):
            out = False
            for edge, pace in zip(stage.edges, stage.pace, strict=True):
                if (pace == inf) is not out:
                    out = not out
                    turns.append((edge, index, out))
        return turns

    @property
    def idle(self) -> bool:
        """Whether no replica holds a batch."""
        return not any(replica.passes for stage in self._stages for replica in stage.replicas)

    def send(self, now: float, batch: Batch) -> Call:
        """Send a batch to the replica that holds the fewest calls of those compared.

        In an outage it goes to none, and the call fails at once.
        """
        stage = self._stages[batch.stage]
        arrives_s = now + stage.servers.hop_s
        if not stage.steady and stage.pace_at(now) == inf:
            return Call(batch, None, NOWHERE, arrives_s + stage.servers.hop_s)
        index = self._choose(stage.replicas)
        call = Call(batch, index, NOWHERE, 0.0)
        stage.take(call, stage.replicas[index], arrives_s, stage.noise)
        return call

    def _choose(self, replicas: Sequence[Replica]) -> int:
        """The replica with the fewest calls of those compared."""
        count = len(replicas)
        if count == 1:
            return 0
        if self._compared is None or self._compared >= count:
            held = [replica.calls for replica in replicas]
            return held.index(min(held))
        return min(self._chance.sample(range(count), self._compared), key=lambda index: replicas[index].calls)

    def moved(self, call: Call) -> list[Call]:
        """The call that was sent last, and those whose instants it may have changed."""
        stage = self._stages[call.batch.stage]
        if call.replica is None or not (stage.servers.merged_rows or stage.shared):
            return [call]
        if stage.shared is not None:
            return stage.shared.not_begun(stage.replicas[call.replica], call.batch.started_s + stage.servers.hop_s)
        # It has joined a pass, or made the one before its own begin earlier.
        return [each for work in list(stage.replicas[call.replica].passes)[-2:] for each in work.calls]

    def came_back(self, call: Call) -> Pass | None:
        """The result of a call was received.

        Returns:
            Its pass if no other call of it is still to come back; the replica holds it no more.
        """
        call.back_s = inf  # once and no more, however often it was moved
        if call.replica is None:
            return None
        call.work.calls.remove(call)
        if call.work.calls:
            return None
        self._stages[call.batch.stage].replicas[call.replica].passes.remove(call.work)
        call.work.before = None
        return call.work

    def give_up(self, now: float, call: Call) -> list[Call]:
        """Nobody waits for a call any more: what has begun runs on, what has not is taken out.

        Returns:
            The calls that wait at its replica, whose instants may have changed.
        """
        call.given_up = True
        if call.replica is None or call.work.start_s <= now:
            return []
        stage = self._stages[call.batch.stage]
        replica = stage.replicas[call.replica]
        if stage.shared is not None:
            call.replica = None
            return stage.shared.take_out(call, replica, now)
        waiting = [work for work in replica.passes if work.start_s > now]
        for work in waiting:
            replica.passes.remove(work)
        replica.last = waiting[0].before
        # With one call fewer the others fill no more passes than before, so that each finds a factor.
        factors = iter([work.factor for work in waiting])
        left = [each for work in waiting for each in work.calls if each is not call]
        for each in left:
            stage.take(each, replica, each.batch.started_s + stage.servers.hop_s, factors)
        call.replica = None
        call.back_s = inf
        return left

    def lose(self, stage: int) -> list[Pass]:
        """All replicas of a stage are gone, and with them those of the stages that run on them.

        Returns:
            The passes that they had begun or would have made, in the order in which their first calls were sent.
        """
        lost = [work for replica in self._stages[stage].replicas for work in replica.passes]
        for replica in self._stages[stage].replicas:
            replica.passes.clear()
            replica.last = None
        for work in lost:
            for call in work.calls:
                call.back_s = inf
        return sorted(lost, key=lambda work: work.calls[0].batch.started_s)


def _factors(random: Generator, cv: float, noise: Noise) -> Iterator[float]:
    """Factors of mean 1 and coefficient of variation ``cv``, without end."""
    if cv == 0:
        while True:
            yield 1.0
    variance = log1p(cv * cv)
    while True:
        if noise == "lognormal":
            yield from random.lognormal(-variance / 2, sqrt(variance), BLOCK).tolist()
        else:
            yield from random.gamma(1 / cv**2, cv**2, BLOCK).tolist()
