"""Fixed thresholds: the load control of a cascade that has none. One of the two baselines, with the face of `Policy`.

Same rows, same stages, same calibrated gains and the same rule of going on as the product; what differs is that nothing
here looks at the load. May know the policy's own objects; no Ray, no clock, no transport.

Stages are found in order; what a row does at one of them is decided once and for all by its evidence:

- it goes on when its value exceeds the *base* price of the next stage, however long the queue there is, else it is answered;
- queues are served in order of arrival and have no bound: nobody is evicted;
- nobody is turned away at the door, and nobody is answered with the best so far: a row waits for the stage that it asked for
  and, when its deadline passes first, gets no answer at all. It takes no place in a batch after that;
- a batch that fails is not tried again, and a stage that is out is waited for.

Dropping rows whose deadline has passed is kinder than what hand-written cascades do, which compute the answers nobody
waits for any more.
"""

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any

from cascade.assembly import class_configs, stage_configs
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Batch, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.price import continuation_value
from cascade.policy.request import ExitReason, Request
from cascade.policy.walk import State, Walk
from cascade.spec import CascadeSpec


class StaticPolicy(Policy):
    """Fixed thresholds in the place of the policy; see the module.

    What only reads (prices, capacities, counts) is inherited; every event and every decision is replaced.

    Args:
        stages: as for `Policy`; prices, queue bounds and service times of it decide nothing here.
        usual_deadline_s: as for `Policy`.
        classes: as for `Policy`; they are told apart in counts only.
        seed: as for `Policy`.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        *,
        usual_deadline_s: float,
        classes: Sequence[ClassConfig] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(stages, usual_deadline_s=usual_deadline_s, classes=classes, seed=seed)
        self._costs = tuple(stage.cost for stage in stages)
        self._thresholds = tuple(stage.base_price for stage in stages)
        self._lines: tuple[deque[Walk], ...] = tuple(deque() for _ in stages)
        self._in_line = [0 for _ in stages]
        self._out: set[Batch] = set()
        self._expiries: list[tuple[float, int, Walk]] = []
        self._armed = 0

    def waiting(self, stage: int) -> int:
        """Rows in the queue of ``stage``."""
        return self._in_line[stage]

    def next_timer(self) -> float | None:
        """The first deadline of a row without an outcome."""
        while self._expiries and self._expiries[0][2].done:
            heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def set_prices(self, *_prices: Any, **_more: Any) -> None:
        """The plan has new prices: they are not followed."""

    def door(self, *_facts: Any, **_more: Any) -> None:
        """Nobody is turned away."""

    def set_slots(self, stage: int, slots: int) -> list[Command]:
        """The stage's replicas changed; without any, what asked for it waits."""
        self.capacities[stage].slots = slots
        return []

    def arrived(self, now: float, requests: Sequence[Request], lag_s: float = 0.0) -> tuple[Walk, ...] | Shed:  # noqa: ARG002
        """The rows of one message came in: they queue for stage 0."""
        walks = tuple(walk for request in requests for walk in Walk(request).part_each(range(request.rows)))
        self.counts.arrived += len(walks)
        for walk in walks:
            walk.admit()
            self._join(walk, 0)
            self._armed += 1
            heappush(self._expiries, (walk.request.deadline_s, self._armed, walk))
        return walks

    def completed(
        self, now: float, batch: Batch, judgement: Judgement, run_s: float | None = None, poisoned: Collection[int] = ()
    ) -> list[Command]:
        """A batch came back: each row is answered, or goes on whatever waits there; those without numbers fail."""
        self._released(batch)
        stage, busy_s = batch.stage, now - batch.started_s
        self.capacities[stage].observe(len(batch.walks), busy_s, run_s)
        self.counts.stages[stage].count_batch(len(batch.walks), busy_s, batch.walks)
        behind = range(stage + 1, len(self._lines))
        values = continuation_value(judgement.gains, stage, behind, self._thresholds) if behind else None
        commands: list[Command] = []
        for row, walk in enumerate(batch.walks):
            if walk.done:
                continue
            if row in poisoned:
                commands.append(self._fail(walk))
                continue
            walk.result(now, judgement, row)
            if values is not None and values[row] > self._thresholds[stage + 1]:
                walk.defer(now, stage + 1)
                self._join(walk, stage + 1)
                continue
            answer = walk.exit(ExitReason.LAST_STAGE if values is None else ExitReason.CONFIDENT, deferred=False)
            self.counts.count_answer(answer, min(walk.request.priority, len(self.counts.classes)) - 1)
            commands.append(Reply(walk.request.tag, answer, walk.places))
        return commands

    def failed(self, now: float, batch: Batch, *, hung: bool = False) -> list[Command]:  # noqa: ARG002
        """A batch failed, and its rows with it."""
        self._released(batch)
        self.counts.stages[batch.stage].failures += 1
        return [self._fail(walk) for walk in batch.walks if not walk.done]

    def cancelled(self, walk: Walk) -> None:
        """The row's client has gone."""
        if not walk.done:
            self._leave(walk)
            walk.cancel()
            self.counts.cancelled += 1

    def tick(self, now: float) -> list[Command]:
        """Time has passed: rows whose deadline has come are given up, whether they have an answer or not."""
        commands: list[Command] = []
        while self._expiries and self._expiries[0][0] <= now:
            walk = heappop(self._expiries)[2]
            if walk.done:
                continue
            self._leave(walk)
            walk.cancel() if walk.has_answer else walk.expire()
            self.counts.expired += 1
            commands.append(Expire(walk.request.tag, walk.places))
        return commands

    def dispatch(self, now: float) -> list[Command]:
        """Fill every free slot with those that came first."""
        commands: list[Command] = []
        for stage, capacity in enumerate(self.capacities):
            line = self._lines[stage]
            while capacity.free and self._in_line[stage]:
                walks: list[Walk] = []
                while line and len(walks) < capacity.max_batch_size:
                    walk = line.popleft()
                    if not walk.done:
                        walk.called(now, self._costs[stage])
                        walks.append(walk)
                self._in_line[stage] -= len(walks)
                capacity.busy += 1
                batch = Batch(stage, walks, 1, now, inf)
                self._out.add(batch)
                commands.append(Run(batch))
        return commands

    def _fail(self, walk: Walk) -> Command:
        # A row may not fail once it has an answer, which is the very promise that is not given here.
        walk.cancel() if walk.has_answer else walk.fail()
        self.counts.failed += 1
        return Fail(walk.request.tag, walk.places)

    def _join(self, walk: Walk, stage: int) -> None:
        self._lines[stage].append(walk)
        self._in_line[stage] += 1

    def _leave(self, walk: Walk) -> None:
        # It stays in the line, where it is passed over once it has its outcome.
        self._in_line[walk.stage] -= walk.state in (State.WAITING, State.DEFERRED)

    def _released(self, batch: Batch) -> None:
        self._out.remove(batch)
        self.capacities[batch.stage].busy -= 1


def static_policy(
    spec: CascadeSpec, profile: ServiceProfile, seed: int, certificate: Certificate | None = None
) -> StaticPolicy:
    """The policy of one router with fixed thresholds; in the place of `cascade.assembly.build_policy`."""
    return StaticPolicy(
        stage_configs(spec, profile),
        usual_deadline_s=spec.deadline.default_s,
        classes=class_configs(spec, certificate),
        seed=seed,
    )
