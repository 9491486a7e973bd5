"""Replicas that several stages share, in virtual time: which of them makes the next pass. Knows passes; decides for no row.

A replica makes one pass at a time. When it is free, a stage that has a full pass waiting goes first, the cheapest such; else
the pass that was asked for first. `cascade.serving.passes.Turns` is the same in the server, where it is explained.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from math import inf
from typing import Protocol

from cascade.simulation.passes import Call, Pass, Replica


class SharingServers(Protocol):
    """See `cascade.simulation.cluster.StageServers`."""

    @property
    def hop_s(self) -> float:
        """Seconds to a replica, and the same back."""
        ...

    @property
    def merged_rows(self) -> int:
        """Rows of a full pass; 0 if each call is a pass."""
        ...


class SharingStage(Protocol):
    """One of the stages."""

    @property
    def servers(self) -> SharingServers:
        """What serves it."""
        ...

    def seconds(self, work: Pass) -> float:
        """Seconds of work of a pass."""
        ...

    def finish(self, start_s: float, work_s: float) -> float:
        """When work that begins at an instant is done."""
        ...


class Shared:
    """One stage's way to the replicas that it shares.

    Args:
        stages: all stages on them, by index.
        index: its own.
    """

    def __init__(self, stages: Mapping[int, SharingStage], index: int) -> None:
        self._stages = stages
        self._index = index

    def take(self, call: Call, replica: Replica, arrives_s: float, factors: Iterator[float]) -> None:
        """Let a call join its stage's pass that waits at a replica, if that has room, or form one of its own."""
        rows, room = len(call.batch.walks), self._room(self._index)
        waiting = [work for work in replica.passes if work.start_s > arrives_s]
        own = [work for work in waiting if work.stage == self._index and work.rows + rows <= room]
        if own:
            work = own[-1]
        else:
            work = Pass(self._index, next(factors), None)
            waiting.append(work)
            replica.passes.append(work)
        call.work = work
        work.calls.append(call)
        work.size += 1
        work.rows += rows
        self._order(replica, waiting, arrives_s)

    def take_out(self, call: Call, replica: Replica, now: float) -> list[Call]:
        """Nobody waits for a call any more whose pass has not begun; the calls whose instants may have changed."""
        work = call.work
        work.calls.remove(call)
        work.rows -= len(call.batch.walks)
        call.back_s = inf
        if not work.calls:
            replica.passes.remove(work)
        waiting = [each for each in replica.passes if each.start_s > now]
        self._order(replica, waiting, now)
        return [each for work in waiting for each in work.calls]

    def not_begun(self, replica: Replica, at_s: float) -> list[Call]:
        """Calls at a replica whose passes begin at an instant or later."""
        return [call for work in replica.passes if work.start_s >= at_s for call in work.calls]

    def _room(self, stage: int) -> int:
        return self._stages[stage].servers.merged_rows

    def _order(self, replica: Replica, waiting: list[Pass], now: float) -> None:
        """Set the order and the instants of the passes that wait."""

        def turn(work: Pass) -> tuple[bool, int]:
            full = work.rows >= self._room(work.stage)
            return not full, work.stage if full else 0  # among equals in the order in which they were asked for

        under_way = [work for work in replica.passes if work not in waiting]
        free_s = max([now, *(work.finish_s for work in under_way)])
        waiting.sort(key=turn)
        for work in waiting:
            stage = self._stages[work.stage]
            work.start_s = free_s
            work.finish_s = free_s = stage.finish(free_s, stage.seconds(work))
            for call in work.calls:
                call.back_s = work.finish_s + stage.servers.hop_s
        replica.passes = deque([*under_way, *waiting])
