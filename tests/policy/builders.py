"""Short ways to make the policy's values in tests. Knows the policy's public types only."""

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np

from cascade.policy.commands import Batch, Command, Reply, Run
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import ExitReason, Request
from cascade.policy.walk import Walk

MS = 1 / 1024
"""About a millisecond, and exact in binary, so that sums of instants do not round."""


def stage(
    slots: int = 1,
    batch: int = 4,
    cost: float = 1.0,
    base_price: float = 0.0,
    a_s: float = 8 * MS,
    b_s: float = 2 * MS,
    timeout_floor_s: float = 1.0,
) -> StageConfig:
    """One stage with small round numbers."""
    return StageConfig(slots, batch, cost, base_price, a_s, b_s, timeout_floor_s)


def ladder(*stages: StageConfig, usual_deadline_s: float = 1.0, **more: Any) -> Policy:
    """A policy over ``stages``."""
    return Policy(stages, usual_deadline_s=usual_deadline_s, **more)


def three(**changes: Any) -> Policy:
    """A policy over three stages of cost 1, 10, 100."""
    return ladder(stage(cost=1), stage(cost=10), stage(cost=100), **changes)


def request(
    tag: object = None,
    arrived_s: float = 0.0,
    answer_by_s: float = 0.9375,
    deadline_s: float = 1.0,
    priority: int = 1,
    budget: float = inf,
    tenant: str = "",
    min_confidence: float = inf,
    refine: bool = False,
) -> Request:
    """One row; its answer leaves a sixteenth of a second before its deadline."""
    return Request(tag, arrived_s, answer_by_s, deadline_s, priority, budget, tenant, min_confidence, refine)


def judged(*gains: Sequence[float], p_correct: float = 0.5) -> Judgement:
    """The judgement of a batch, given the gains of each of its rows."""
    rows = len(gains)
    probabilities = np.full((rows, 2), 0.5)
    return Judgement(
        probabilities, np.full(rows, 0.5), np.full(rows, p_correct), np.array(gains, dtype=float).reshape(rows, -1)
    )


def admit(policy: Policy, now: float, *requests: Request) -> tuple[Walk, ...]:
    """Bring the rows in; the door must be open."""
    walks = policy.arrived(now, requests)
    assert isinstance(walks, tuple), walks
    return walks


def batches(commands: Sequence[Command]) -> list[Batch]:
    """The batches that are to be run."""
    return [command.batch for command in commands if isinstance(command, Run)]


def replies(commands: Sequence[Command]) -> list[Reply]:
    """The answers that are to be given."""
    return [command for command in commands if isinstance(command, Reply)]


def defer(policy: Policy, now: float, gains: Sequence[Sequence[float]], requests: Sequence[Request]) -> tuple[Walk, ...]:
    """Bring rows in and through stage 0, where they are judged with ``gains``; most of them now wait behind it."""
    walks = admit(policy, now, *requests)
    for batch in batches(policy.dispatch(now)):
        if batch.stage:
            continue
        order = [walks.index(walk) for walk in batch.walks]
        policy.completed(now, batch, judged(*(gains[i] for i in order)))
    return walks


def only_reply(commands: Sequence[Command]) -> Reply:
    """The one command, which is an answer."""
    (reply,) = commands
    assert isinstance(reply, Reply)
    return reply


def reasons(commands: Sequence[Command]) -> dict[object, ExitReason]:
    """Why each row that is answered stopped."""
    return {reply.tag: reply.answer.reason for reply in replies(commands)}


def at_stage0(policy: Policy, *requests: Request, now: float = 0.0) -> Batch:
    """The one batch in which these rows run on stage 0."""
    admit(policy, now, *requests)
    (batch,) = batches(policy.dispatch(now))
    return batch
