"""Which replicas of a stage lag behind their peers, and are left out for a while. Knows calls, instants and tags.

A replica may answer every ping and yet no call, or answer calls many times more slowly than the others; nobody but its
callers can tell. One router judges by its own calls, and by comparison alone: where all are slow, load is the reason or the
machine, and nobody is ejected. So at most half of a stage's replicas are ever left out, and a single one never is.

An ejected replica gets one call after a pause, a *probe*: a copy of one that goes elsewhere, so nobody waits for it. If that
is answered in good time the replica is back, else the pause doubles.
"""

from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import median

STALL_FACTOR = 5.0
"""A call that is under way for this many times what such calls take is overdue."""
STALL_FLOOR_S = 0.5
"""But no call is overdue before that: pauses of a machine that computes are of this order."""
NEW_STALL_FLOOR_S = 2.0
"""The same for a replica that has not answered yet: its first call opens a connection, and loads what is loaded late."""
SLOW_FACTOR = 2.5
"""A replica is a straggler if its calls take this many times what those of its peers do. Differences that are the load's, or
that of two nodes of one kind, stay below; a replica three times slower than its peers, which this must find, is above."""
SLOW_FLOOR_S = 0.01
"""And so many seconds longer: a way through the network may take several times what one on the same machine does."""
RECENT = 9
"""Calls of a replica, and of a kind, that are remembered; their medians count."""
ENOUGH = 5
"""Calls of a replica below which nothing is said of its pace."""
FIRST_PAUSE_S = 1.0
"""From the ejection to the first probe."""
LONGEST_PAUSE_S = 4.0
"""What pauses double up to: how long one that is well again may still be left out, against one batch's work in so long."""
FORGIVEN_S = 16.0
"""How long after its return a good replica is as good as one that was never ejected."""


@dataclass(slots=True)
class _Call:
    begun_s: float
    kind: Hashable
    replica: int | None
    probes: bool = False


@dataclass(slots=True)
class _Replica:
    """What is known of one replica.

    Attributes:
        paces: kind and seconds of its last calls, infinitely many where they failed.
        newest_s: when the newest call began that it has answered.
        hung: its oldest call that was never answered, and that nobody waits for any more.
        out: whether it is ejected.
        until_s: it is not probed before that.
        pause_s: from the last ejection to the probe.
        back_s: when it was last let in again.
        probe: its probe that is under way.
    """

    paces: deque[tuple[Hashable, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    newest_s: float = -inf
    hung: _Call | None = None
    out: bool = False
    until_s: float = -inf
    pause_s: float = 0.0
    back_s: float = -inf
    probe: int | None = None


class Stragglers:
    """The replicas of one deployment, as one router sees them.

    A driver reports each call when it begins and when it ends, asks `probe` before it sends one that may go anywhere, and
    calls `look` a few times a second while any call is under way.
    """

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._replicas: dict[int, _Replica] = {}
        self._running: frozenset[int] = frozenset()
        self._typical: dict[Hashable, deque[float]] = {}

    @property
    def ejected(self) -> frozenset[int]:
        """Tags of the replicas that no call should go to but a probe."""
        return frozenset(tag for tag, replica in self._replicas.items() if replica.out)

    @property
    def calls(self) -> int:
        """Calls that are under way."""
        return len(self._calls)

    def probe(self, now: float) -> int | None:
        """The ejected replica that the next call should go to as well, to see whether it is well again; None for none."""
        for tag, replica in self._replicas.items():
            if replica.out and replica.probe is None and replica.until_s <= now:
                return tag
        return None

    def begun(self, now: float, call: int, kind: Hashable, to: int | None = None) -> None:
        """A call was made.

        Args:
            now: present instant.
            call: its number.
            kind: calls of a kind take about equally long.
            to: the replica that it must reach; one that is ejected is probed by it. None for any.
        """
        self._calls[call] = made = _Call(now, kind, to)
        replica = None if to is None else self._replicas.get(to)
        if replica is not None and replica.out and replica.probe is None:
            made.probes, replica.probe = True, call

    def answered(self, now: float, call: int, replica: int | None) -> None:
        """It was answered.

        Args:
            now: present instant.
            call: its number.
            replica: the one that it was sent to, if that is known.
        """
        made, own = self._ended(call, replica)
        seconds = now - made.begun_s
        if own is None:
            return
        typical_s = self._typical_s(made.kind)
        if made.probes:
            own.probe = None
            if seconds > max(SLOW_FACTOR * typical_s, typical_s + SLOW_FLOOR_S):
                self._eject(now, own)
                return
            self._let_in(now, own)
        own.newest_s = max(own.newest_s, made.begun_s)
        if own.hung is not None and made.begun_s > own.hung.begun_s:
            own.hung = None
        if own.out:
            return  # a late answer to a call from before; its pace is known
        self._typical.setdefault(made.kind, deque(maxlen=RECENT)).append(seconds)
        own.paces.append((made.kind, seconds))

    def failed(self, now: float, call: int, replica: int | None) -> None:
        """It raised. One that fails while its peers do not is as good as one that never answers."""
        made, own = self._ended(call, replica)
        if own is None:
            return
        if made.probes:
            self._eject(now, own)
        elif not own.out:
            own.paces.append((made.kind, inf))

    def left(self, now: float, call: int, replica: int | None) -> None:
        """Nobody waits for it any more; whether the replica would have answered is not known."""
        made, own = self._ended(call, replica)
        if own is None:
            return
        if made.probes:
            self._eject(now, own)
        elif own.hung is None or made.begun_s < own.hung.begun_s:
            own.hung = made

    def look(self, now: float, running: Collection[int], sent: Mapping[int, int | None]) -> list[int]:
        """See who lags behind.

        Args:
            now: present instant.
            running: tags of the replicas that there are.
            sent: which replica each call went to, as far as it has gone.

        Returns:
            Calls that need not be waited for: their replica does not answer, and they should be made again elsewhere.
        """
        self._running = frozenset(running)
        for gone in self._replicas.keys() - self._running:
            del self._replicas[gone]
        for tag in self._running:
            self._replicas.setdefault(tag, _Replica())
        for number, call in self._calls.items():
            call.replica = sent.get(number) or call.replica
        hopeless: list[int] = []
        for tag, replica in self._replicas.items():
            own = {number: call for number, call in self._calls.items() if call.replica == tag}
            if replica.out:
                hopeless += [number for number, call in own.items() if self._overdue(now, call, replica)]
            elif self._may_eject and self._stalls(now, replica, own):
                self._eject(now, replica)
                hopeless += list(own)
            elif self._may_eject and self._lags(replica):
                self._eject(now, replica)
        self._keep_half(now)
        return hopeless

    # -- judging -------------------------------------------------------------------------------------------------------

    @property
    def _may_eject(self) -> bool:
        return len(self.ejected) < len(self._running) // 2

    def _typical_s(self, kind: Hashable) -> float:
        known = self._typical.get(kind)
        return median(known) if known else 0.0

    def _overdue(self, now: float, call: _Call, replica: _Replica) -> bool:
        floor_s = STALL_FLOOR_S if replica.newest_s > -inf else NEW_STALL_FLOOR_S
        return now - call.begun_s > max(floor_s, STALL_FACTOR * self._typical_s(call.kind))

    def _stalls(self, now: float, replica: _Replica, calls: Mapping[int, _Call]) -> bool:
        """Whether a call of it is overdue, and somebody else has answered one that began later."""
        waiting = [*calls.values(), *([] if replica.hung is None else [replica.hung])]
        overdue_s = min((call.begun_s for call in waiting if self._overdue(now, call, replica)), default=inf)
        return any(other.newest_s > overdue_s for other in self._replicas.values() if other is not replica)

    def _lags(self, replica: _Replica) -> bool:
        if len(replica.paces) < ENOUGH:
            return False
        own, own_s = self._pace(replica)
        peers = [
            self._pace(other)
            for other in self._replicas.values()
            if other is not replica and not other.out and len(other.paces) >= ENOUGH
        ]
        if not peers:
            return False
        pace, seconds = median(each for each, _ in peers), median(each for _, each in peers)
        return own > SLOW_FACTOR * pace and own_s > seconds + SLOW_FLOOR_S

    def _pace(self, replica: _Replica) -> tuple[float, float]:
        """Medians of its last calls: the time they took by what such calls take now, and the time itself."""
        ratios = [seconds / (self._typical_s(kind) or 1.0) for kind, seconds in replica.paces]
        return median(ratios), median(seconds for _, seconds in replica.paces)

    # -- bookkeeping ---------------------------------------------------------------------------------------------------

    def _ended(self, call: int, replica: int | None) -> tuple[_Call, _Replica | None]:
        made = self._calls.pop(call)
        made.replica = replica or made.replica
        return made, None if made.replica is None else self._replicas.get(made.replica)

    def _eject(self, now: float, replica: _Replica) -> None:
        again = replica.out or now < replica.back_s + FORGIVEN_S
        replica.pause_s = min(2 * replica.pause_s, LONGEST_PAUSE_S) if again else FIRST_PAUSE_S
        replica.out, replica.probe, replica.until_s = True, None, now + replica.pause_s

    def _let_in(self, now: float, replica: _Replica) -> None:
        replica.out, replica.probe, replica.hung, replica.back_s = False, None, None, now
        replica.paces.clear()

    def _keep_half(self, now: float) -> None:
        """Where the others have gone since, those that are left out are better than nobody."""
        out = sorted((replica for replica in self._replicas.values() if replica.out), key=lambda replica: replica.until_s)
        for replica in out[: max(0, len(out) - len(self._running) // 2)]:
            self._let_in(now, replica)
