"""A driver of the policy in virtual time: event heap, Poisson arrivals, a synthetic ladder. Knows only its public face.

Service is exactly a + b n of the *true* stages, which may differ from the profile that the policy was given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from cascade.policy.commands import Abandon, Command, Expire, Fail, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import Answer, Request

GRID_S = 1 / 65536
"""Instants lie on this grid, so that they are exact also when the whole run begins late."""


@dataclass
class Table:
    """Rows of known difficulty u, uniform in [0, 1]: stage k is right with probability 1 - error_k u^2.

    The gains it hands out are the true ones: error_k u^2 - error_j u^2 for a dearer stage j.
    """

    errors: tuple[float, ...] = (0.9, 0.5, 0.1)
    rows: int = 4096
    u: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.u = np.random.default_rng(0).random(self.rows)

    def judge(self, stage: int, rows: Sequence[int]) -> Judgement:
        """The judgement of a batch of these rows by ``stage``."""
        difficulty = self.u[list(rows)] ** 2
        right = 1 - self.errors[stage] * difficulty
        gains = [(self.errors[stage] - error) * difficulty for error in self.errors[stage + 1 :]]
        return Judgement(np.stack([right, 1 - right], axis=1), right, right, np.reshape(gains, (-1, len(rows))).T)


@dataclass
class Outcome:
    """What became of one run; every list in the order of the events."""

    policy: Policy
    replies: dict[int, tuple[float, Answer]] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    row_of: dict[int, int] = field(default_factory=dict)
    shed: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    abandoned: int = 0
    log: list[tuple[object, ...]] = field(default_factory=list)


def simulate(
    stages: Sequence[StageConfig],
    *,
    rate_per_s: float,
    seconds: float,
    deadline_s: float = 0.5,
    true_stages: Sequence[StageConfig] | None = None,
    hangs: Callable[[int, int], bool] = lambda stage, number: False,
    classes: int = 1,
    happenings: Sequence[tuple[float, Callable[[Policy], list[Command]]]] = (),
    begin_s: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Run the policy until nothing is left to happen.

    Args:
        stages: what the policy is told.
        rate_per_s: messages a second, of one row each.
        seconds: how long they come.
        deadline_s: time that each row has.
        true_stages: how long batches really take; as told if not given.
        hangs: whether the n-th batch of a stage never comes back.
        classes: rows are of the classes 1 to this one, equally often.
        happenings: what else happens to the policy, and when after the beginning.
        begin_s: instant of the beginning.
        seed: of the arrivals.
    """
    rng = np.random.default_rng(seed)
    table = Table()
    out = Outcome(Policy(stages, usual_deadline_s=deadline_s, seed=seed))
    policy, heap, order = out.policy, [], count()
    true_stages = true_stages or stages
    sent = [0 for _ in stages]

    def at(when_s: float, what: Callable[[float], list[Command]]) -> None:
        heappush(heap, (when_s, next(order), what))

    def snap(seconds: float) -> float:
        return round(seconds / GRID_S) * GRID_S

    def arrival(tag: int, priority: int) -> Callable[[float], list[Command]]:
        def happen(now: float) -> list[Command]:
            # An odd sixteenth of the grid keeps deadlines apart from every predicted instant.
            until_s = now + deadline_s + GRID_S / 16
            out.requests[tag] = Request(tag, now, until_s - 640 * GRID_S, until_s, priority)
            verdict = policy.arrived(now, [out.requests[tag]])
            if isinstance(verdict, Shed):
                out.shed.append(tag)
                out.log.append((now - begin_s, "shed", tag, verdict.retry_after_s))
            return []

        return happen

    def obey(now: float, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Run(batch):
                    tags = [walk.request.tag for walk in batch.walks]
                    out.log.append((now - begin_s, "run", batch.stage, batch.attempt, *tags))
                    sent[batch.stage] += 1
                    if not hangs(batch.stage, sent[batch.stage]):
                        judgement = table.judge(batch.stage, [out.row_of[tag] for tag in tags])
                        true = true_stages[batch.stage]
                        back_s = now + snap(true.a_s + true.b_s * len(tags))
                        at(
                            back_s,
                            lambda now, batch=batch, judgement=judgement: policy.completed(now, batch, judgement),
                        )
                case Reply(tag, answer):
                    assert tag not in out.replies
                    out.replies[tag] = (now, answer)
                    out.log.append((now - begin_s, "reply", tag, answer.stage, answer.reason, answer.cost))
                case Expire(tag) | Fail(tag):
                    out.refused.append(tag)
                    out.log.append((now - begin_s, type(command).__name__, tag))
                case Abandon(batch):
                    out.abandoned += 1
                    out.log.append((now - begin_s, "abandon", batch.stage))

    now = 0.0
    for tag in range(int(rate_per_s * seconds)):
        now += rng.exponential(1 / rate_per_s)
        out.row_of[tag] = int(rng.integers(table.rows))
        at(begin_s + snap(now), arrival(tag, 1 + int(rng.integers(classes))))
    for after_s, what in happenings:
        at(begin_s + after_s, lambda now, what=what: what(policy))
    while heap or policy.next_timer() is not None:
        timer = policy.next_timer()
        if timer is not None and (not heap or timer <= heap[0][0]):
            now, commands = timer, policy.tick(timer)
        else:
            now, _, what = heappop(heap)
            commands = what(now)
        obey(now, commands)
        obey(now, policy.dispatch(now))
    return out
