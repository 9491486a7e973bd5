"""A burst of clients that all ask again: the router is itself again within two seconds of its end. In virtual time."""

import asyncio

import numpy as np
import pytest
from ladders import SURE, UNSURE, config, make_router, row, told

from cascade.errors import DeadlineExceeded, Overloaded
from cascade.serving.fakes import FakeStage

pytestmark = pytest.mark.looptime(noop_cycles=0)

DEADLINE_S, RETRIES = 1.0, 3
CALM, BURST = 0.5, 2.5
"""Arrivals as shares of what the first stage can do."""
BURST_FROM_S, BURST_TO_S, END_S = 3.0, 6.0, 12.0


async def test_after_a_burst_of_retries_clients_are_answered_in_time_again():
    random = np.random.default_rng(1)
    stages = [
        FakeStage(told(0), seconds=lambda rows: 0.02 + 0.01 * rows),
        FakeStage(told(1), seconds=lambda rows: 0.1 + 0.05 * rows),
    ]
    configs = [config(a_s=0.02, b_s=0.01), config(cost=10.0, slots=1, a_s=0.1, b_s=0.05)]
    router = make_router(stages, configs)
    capacity = 2 * 8 / (0.02 + 0.08)
    loop = asyncio.get_running_loop()
    on_time: list[tuple[float, bool]] = []
    tried = 0

    async def client(came_s: float) -> None:
        nonlocal tried
        await asyncio.sleep(came_s)
        for _ in range(1 + RETRIES):
            tried += 1
            asked_s = loop.time()
            try:
                await router.answer(row(random.choice([SURE, UNSURE]), SURE), 1, budget_s=DEADLINE_S)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s)
            except DeadlineExceeded:
                continue
            else:
                on_time.append((came_s, loop.time() - asked_s <= DEADLINE_S))
                return
        on_time.append((came_s, False))

    arrivals, now_s = [], 0.0
    while now_s < END_S:
        share = BURST if BURST_FROM_S <= now_s < BURST_TO_S else CALM
        now_s += random.exponential(1 / (share * capacity))
        arrivals.append(now_s)
    await asyncio.gather(*(client(came_s) for came_s in arrivals))

    def share(from_s: float, to_s: float) -> float:
        return float(np.mean([ok for came_s, ok in on_time if from_s <= came_s < to_s]))

    assert tried > len(arrivals)  # there was something to come back from
    assert share(0.0, BURST_FROM_S) == 1.0
    assert share(BURST_TO_S + 2.0, END_S) >= 0.99
    counts = router.policy.counts
    assert counts.arrived == counts.answered + counts.shed + counts.expired + counts.failed + counts.cancelled
    assert counts.live == 0
