"""Replicas in virtual time: which of them gets a batch, and when that comes back. Knows no request and decides nothing.

A replica runs one batch at a time, in the order in which they reach it. A batch of n rows is (a + b n) x noise seconds of
work; a slowdown makes every second of work last longer while it holds, also for the batch that is being run.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log1p, sqrt
from typing import Literal

from numpy.random import Generator, SeedSequence, default_rng

from cascade.errors import ConfigError
from cascade.policy.commands import Batch

Noise = Literal["lognormal", "gamma"]
"""Distribution of the factor on service times, mean 1; gamma with a coefficient of variation of 1 is exponential."""

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
    """

    a_s: float
    b_s: float
    replicas: int = 1
    calls_per_replica: int = 1
    hop_s: float = 0.0

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


@dataclass(eq=False, slots=True)
class Call:
    """A batch that is with a stage.

    Attributes:
        batch: the batch.
        replica: which replica has it, None if the stage was out.
        work_s: how long it takes at full speed.
        start_s: when its replica begins.
        finish_s: when its replica is done, infinite if an outage comes first.
        back_s: when its result, or its failure, is known where it was sent from; infinite if it never will be.
        given_up: whether nobody waits for it any more.
    """

    batch: Batch
    replica: int | None
    work_s: float
    start_s: float
    finish_s: float
    back_s: float
    given_up: bool = False


class _Stage:
    """Replicas of one stage."""

    def __init__(self, servers: StageServers, noise: Iterator[float], slowdowns: Sequence[Slowdown]) -> None:
        self.servers = servers
        self.noise = noise
        self.replicas: list[deque[Call]] = [deque() for _ in range(servers.replicas)]
        edges = sorted({0.0, *(s.from_s for s in slowdowns), *(s.to_s for s in slowdowns)})
        self.edges = edges
        self.pace = [1.0] * len(edges)
        for index, edge in enumerate(edges):
            for slowdown in slowdowns:
                if slowdown.from_s <= edge < slowdown.to_s:
                    self.pace[index] *= slowdown.factor
        self.steady = not slowdowns

    def pace_at(self, instant: float) -> float:
        """Seconds that a second of work lasts."""
        return self.pace[bisect_right(self.edges, instant) - 1]

    def finish(self, start_s: float, work_s: float) -> float:
        """When work that begins at ``start_s`` is done."""
        if self.steady:
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

    def schedule(self, call: Call, after: Call | None, arrives_s: float) -> None:
        """Set the instants of a call that follows ``after`` at its replica."""
        call.start_s = arrives_s if after is None else max(arrives_s, after.finish_s)
        call.finish_s = inf if call.start_s == inf else self.finish(call.start_s, call.work_s)
        call.back_s = call.finish_s + self.servers.hop_s


class Cluster:
    """All stages.

    Args:
        stages: cheapest first.
        slowdowns: in any order; where several overlap their factors multiply.
        cv: coefficient of variation of service times; 0 for none.
        noise: their distribution.
        seed: of the noise. The k-th batch of a stage has the same factor in every run.
    """

    def __init__(
        self,
        stages: Sequence[StageServers],
        *,
        slowdowns: Sequence[Slowdown] = (),
        cv: float = 0.1,
        noise: Noise = "lognormal",
        seed: SeedSequence | int = 0,
    ) -> None:
        if not 0 <= cv < inf:
            raise ConfigError(f"cv must be a coefficient of variation, 0 or more, got {cv:g}")
        for slowdown in slowdowns:
            if not 0 <= slowdown.stage < len(stages):
                raise ConfigError(f"a slowdown names stage {slowdown.stage}, there are {len(stages)}, counted from 0")
        self.servers = tuple(stages)
        self.slowdowns = tuple(slowdowns)
        seeds = (SeedSequence(seed) if isinstance(seed, int) else seed).spawn(len(stages))
        self._stages = tuple(
            _Stage(servers, _factors(default_rng(own), cv, noise), [s for s in slowdowns if s.stage == index])
            for index, (servers, own) in enumerate(zip(stages, seeds, strict=True))
        )

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
        return not any(calls for stage in self._stages for calls in stage.replicas)

    def send(self, now: float, batch: Batch) -> Call:
        """Send a batch to the replica that holds the fewest; to none in an outage, and the call then fails at once."""
        stage = self._stages[batch.stage]
        servers = stage.servers
        arrives_s = now + servers.hop_s
        if not stage.steady and stage.pace_at(now) == inf:
            return Call(batch, None, 0.0, inf, inf, arrives_s + servers.hop_s)
        replica = 0
        if len(stage.replicas) > 1:
            replica = min(range(len(stage.replicas)), key=lambda index: len(stage.replicas[index]))
        calls = stage.replicas[replica]
        call = Call(batch, replica, (servers.a_s + servers.b_s * len(batch.walks)) * next(stage.noise), 0.0, 0.0, 0.0)
        stage.schedule(call, calls[-1] if calls else None, arrives_s)
        calls.append(call)
        return call

    def came_back(self, call: Call) -> None:
        """The result of a call was received: its replica holds it no more."""
        if call.replica is not None:
            self._stages[call.batch.stage].replicas[call.replica].popleft()

    def give_up(self, now: float, call: Call) -> list[Call]:
        """Nobody waits for a call any more: what has begun runs on, what has not is taken out.

        Returns:
            The calls behind it, whose instants have changed.
        """
        call.given_up = True
        if call.replica is None or call.start_s <= now:
            return []
        stage = self._stages[call.batch.stage]
        calls = stage.replicas[call.replica]
        place = calls.index(call)
        behind = list(calls)[place + 1 :]
        before = calls[place - 1] if place else None
        del calls[place]
        call.replica = None
        call.back_s = inf
        for later in behind:
            stage.schedule(later, before, later.batch.started_s + stage.servers.hop_s)
            before = later
        return behind

    def lose(self, stage: int) -> list[Call]:
        """All replicas of a stage are gone.

        Returns:
            The calls that were with them, in the order in which they were sent.
        """
        lost = [call for calls in self._stages[stage].replicas for call in calls]
        for calls in self._stages[stage].replicas:
            calls.clear()
        for call in lost:
            call.back_s = inf
        return sorted(lost, key=lambda call: call.batch.started_s)


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
