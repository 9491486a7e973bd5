"""One policy's events, taken down in a simulated run and played to a fresh policy: its CPU time, memory and decisions.

The simulator's own time is not in the figures, and two versions of the policy can be given the very same events:

    python -m benchmarks.scale.replay EVENTS.pickle ROUNDS LIMIT_S    # one document, of whatever `cascade` is on the path

Knows the policy's face; nothing of what it decides.
"""

import gc
import json
import pickle
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from itertools import count
from pathlib import Path
from time import process_time
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from cascade.policy.commands import Abandon, Batch, Command, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import Request
from cascade.policy.walk import Walk

ARRIVED, COMPLETED, TICK, DISPATCH, NEXT_TIMER = range(5)
Event = tuple[Any, ...]
"""Kind and instant, then what the method of that name is given; a batch is the number of its `Run` command."""
GC_THRESHOLDS = (10_000, 20, 100)
"""Of Python's garbage collector, as in a router of the server (`cascade/serving/app.py`)."""


class Recorder:
    """A policy that takes down what it is told; to the simulator, and to a fleet, it is that policy.

    Args:
        policy: the policy, fresh.

    Attributes:
        events: what it was told, in order.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._numbers: dict[Batch, int] = {}
        self._next = count()
        self.events: list[Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def arrived(self, now: float, requests: Sequence[Request]) -> tuple[Walk, ...] | Shed:
        self.events.append((ARRIVED, now, tuple(requests)))
        return self._policy.arrived(now, requests)

    def completed(self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None) -> list[Command]:
        self.events.append((COMPLETED, now, self._numbers.pop(batch), judgement, run_s))
        return self._noted(self._policy.completed(now, batch, judgement, run_s))

    def tick(self, now: float) -> list[Command]:
        self.events.append((TICK, now))
        return self._noted(self._policy.tick(now))

    def dispatch(self, now: float) -> list[Command]:
        self.events.append((DISPATCH, now))
        return self._noted(self._policy.dispatch(now))

    def next_timer(self) -> float | None:
        self.events.append((NEXT_TIMER, 0.0))
        return self._policy.next_timer()

    def _noted(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            if isinstance(command, Run):
                self._numbers[command.batch] = next(self._next)
        return commands


@dataclass(frozen=True, slots=True)
class Recording:
    """What one policy was told.

    Attributes:
        stages: of the policy.
        usual_deadline_s: of the policy.
        events: what happened.
        begin: place of the first event that is measured: before it the run fills up.
    """

    stages: tuple[StageConfig, ...]
    usual_deadline_s: float
    events: list[Event]
    begin: int

    @property
    def rows(self) -> int:
        """Rows that came while it is measured."""
        return sum(len(event[2]) for event in self.events[self.begin :] if event[0] == ARRIVED)

    def policy(self) -> Policy:
        """The policy, fresh."""
        return Policy(self.stages, usual_deadline_s=self.usual_deadline_s)


class Player:
    """Tells a policy what happened.

    Args:
        policy: the policy, fresh.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._batches: dict[int, Batch] = {}
        self._next = count()

    def play(self, events: Sequence[Event], commanded: Callable[[list[Command]], None] | None = None) -> None:
        """Go on with these events.

        Args:
            events: those that follow what was played before.
            commanded: told what the policy commands.
        """
        policy, batches = self.policy, self._batches
        for kind, now, *given in events:
            if kind == NEXT_TIMER:
                policy.next_timer()
                continue
            if kind == ARRIVED:
                policy.arrived(now, given[0])
                continue
            if kind == COMPLETED:
                commands = policy.completed(now, batches.pop(given[0]), given[1], given[2])
            elif kind == DISPATCH:
                commands = policy.dispatch(now)
            else:
                commands = policy.tick(now)
            for command in commands:
                if type(command) is Run:
                    batches[next(self._next)] = command.batch
            if commanded is not None:
                commanded(commands)


class Figures(NamedTuple):
    """What the replays of one recording came to.

    Attributes:
        rows: rows that came in the part that is measured.
        events: events in it.
        cpu_s: CPU seconds of it, a value a round.
        decisions: digest of all commands from the first event on.
        live: rows under way at the end.
        waiting: rows in the queues at the end.
        running: batches under way at the end.
        bytes: memory of the policy, its rows and their evidence at the end.
        idle_bytes: memory of the policy before its first event.
    """

    rows: int
    events: int
    cpu_s: list[float]
    decisions: str
    live: int
    waiting: int
    running: int
    bytes: int
    idle_bytes: int


def measure(recording: Recording, rounds: int, limit_s: float) -> Figures:
    """Replay a recording: for its time, for its decisions, for its memory.

    Args:
        recording: what happened.
        rounds: replays that are timed, at most.
        limit_s: CPU seconds after which no more rounds are begun.
    """
    before, measured = recording.events[: recording.begin], recording.events[recording.begin :]
    player = Player(recording.policy())
    decisions, late = sha256(), deque[list[Command]]()
    player.play(before, lambda commands: decisions.update(b"".join(map(_told, commands))))
    began_s = process_time()
    cpu_s = [_timed(player, measured, late.append)]  # taken down here, and digested when the time has been taken
    for commands in late:
        decisions.update(b"".join(map(_told, commands)))
    while len(cpu_s) < rounds and process_time() - began_s < limit_s:
        again = Player(recording.policy())
        again.play(before)
        cpu_s.append(_timed(again, measured))
    policy = player.policy
    return Figures(
        recording.rows,
        len(measured),
        cpu_s,
        decisions.hexdigest(),
        policy.counts.live,
        sum(map(policy.waiting, range(len(recording.stages)))),
        sum(capacity.busy for capacity in policy.capacities),
        size_of(policy),
        size_of(recording.policy()),
    )


def _timed(player: Player, events: Sequence[Event], commanded: Callable[[list[Command]], None] | None = None) -> float:
    """CPU seconds that a policy takes for these events."""
    gc.collect()
    start_s = process_time()
    player.play(events, commanded)
    return process_time() - start_s


def size_of(root: object) -> int:
    """Bytes of an object and of everything that it refers to, code and modules left out."""
    seen: set[int] = set()
    left, total = [root], 0
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType | Enum):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        left += gc.get_referents(item)
        if isinstance(item, np.ndarray) and item.base is not None:
            left.append(item.base)
    return total


def _told(command: Command) -> bytes:
    """What a command says, without the objects in it."""
    match command:
        case Run(batch):
            return repr((batch.stage, batch.attempt, [walk.request.tag for walk in batch.walks])).encode()
        case Reply(tag, answer):
            return repr((tag, answer.stage, answer.reason, answer.cost)).encode()
        case Abandon(batch):
            return repr((batch.stage, batch.started_s)).encode()
        case other:
            return repr((type(other).__name__, other.tag)).encode()


def main(path: Path, rounds: int, limit_s: float) -> None:
    """Replay the recording of a file and print the figures."""
    gc.set_threshold(*GC_THRESHOLDS)
    recording: Recording = pickle.loads(path.read_bytes())
    gc.freeze()
    print(json.dumps(measure(recording, rounds, limit_s)._asdict()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
