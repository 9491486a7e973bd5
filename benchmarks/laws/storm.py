"""A storm of retries: clients that ask again, and a ladder that comes back from it or does not (metastability).

The load is 15 times the top stage's capacity, for 3 s 40 times, which is more than the cheapest stage can do. A client whose
request ran into its deadline asks again at once; one that was turned away waits as it was told. Every attempt has a deadline
of its own, and a client gives up after three retries. Turning away costs nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.random import default_rng

from benchmarks.laws.compare import bench
from benchmarks.laws.laws import Law
from benchmarks.laws.scenarios import ANSWER_MARGIN_S, BY_NAME, DEADLINE_S, SERVERS, SERVICE_CV, TOP
from benchmarks.laws.synthetic import COST
from cascade.calibration.judged import JudgedTable
from cascade.policy.commands import Abandon, Command, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.request import Request
from cascade.simulation.cluster import Cluster
from cascade.simulation.passes import Call
from cascade.simulation.record import ROUNDING_S
from cascade.simulation.workload import PoissonPath, draw, level, run_streams

BASE, PEAK = 15.0, 40.0
PARTS = (
    ("before", 5.0, BASE),
    ("burst", 3.0, PEAK),
    ("+0-5 s", 5.0, BASE),
    ("+5-15 s", 10.0, BASE),
    ("+15-25 s", 10.0, BASE),
)
"""Name, seconds, load."""


@dataclass(frozen=True)
class Storm:
    """What became of the clients.

    Attributes:
        answered: share of clients with an answer in its attempt's time, by the part in which they first asked.
        right: share of clients with such an answer that is right.
        attempts: attempts per client.
    """

    answered: dict[str, float]
    right: dict[str, float]
    attempts: float


class _Clients:
    """Requests, answers and attempts."""

    def __init__(self, asked_s: list[float], retries: int) -> None:
        self.retries = retries
        self.attempts = [0] * len(asked_s)
        self.until_s = [inf] * len(asked_s)
        self.stage = [-1] * len(asked_s)
        self.asking = [(at_s, client) for client, at_s in enumerate(asked_s)]
        """A heap; sorted lists are heaps."""

    def again(self, client: int, at_s: float) -> None:
        """The attempt came to nothing."""
        if self.attempts[client] <= self.retries:
            heappush(self.asking, (at_s, client))


def storm(law: Law, retries: int, seed: int, *, parts: Sequence[tuple[str, float, float]] = PARTS) -> Storm:
    """Let clients ask until nobody asks any more.

    Args:
        law: what serves them.
        retries: how often a client asks again.
        seed: of everything.
        parts: the load.
    """
    at, which, service = run_streams(seed)
    arrivals = draw(PoissonPath(tuple(level(name, load * TOP, seconds) for name, seconds, load in parts)), None, at)
    here = bench()
    rows = default_rng(which).integers(here.table.rows, size=len(arrivals.instants)).tolist()
    policy = law.make(BY_NAME["x10"].stages(COST), here.prices, usual_deadline_s=DEADLINE_S, seed=seed)
    cluster = Cluster(SERVERS, cv=SERVICE_CV, seed=service)
    clients = _Clients(arrivals.instants.tolist(), retries)
    back: list[tuple[float, int, Call]] = []

    def carry_out(now: float, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Run(batch):
                    call = cluster.send(now, batch)
                    heappush(back, (call.back_s, batch.stage, call))  # one slot a stage: no two are equal
                case Reply(client, answer):
                    if now <= clients.until_s[client] + ROUNDING_S:
                        clients.stage[client] = answer.stage
                    else:
                        clients.again(client, now)
                case Abandon():
                    raise AssertionError("no batch hangs here")
                case _:
                    clients.again(command.tag, now)

    while True:
        next_back = back[0][0] if back else inf
        next_ask = clients.asking[0][0] if clients.asking else inf
        timer = policy.next_timer()
        now = min(next_back, next_ask, inf if timer is None else timer)
        if now == inf:
            break
        if timer is not None and timer <= now:
            carry_out(now, policy.tick(now))
        elif next_back <= now:
            call = heappop(back)[2]
            cluster.came_back(call)
            carry_out(now, policy.completed(now, call.batch, _judge(here.table, call, rows)))
        else:
            client = heappop(clients.asking)[1]
            clients.attempts[client] += 1
            until_s = clients.until_s[client] = now + DEADLINE_S
            verdict = policy.arrived(now, [Request(client, now, until_s - ANSWER_MARGIN_S, until_s)])
            if isinstance(verdict, Shed):
                clients.again(client, now + verdict.retry_after_s)
        carry_out(now, policy.dispatch(now))
    stage = np.array(clients.stage)
    answered = stage >= 0
    right = answered & here.table.right[rows, stage]
    of = [arrivals.phase == part for part in range(len(arrivals.phases))]
    return Storm(
        {name: float(answered[mine].mean()) for name, mine in zip(arrivals.phases, of, strict=True)},
        {name: float(right[mine].mean()) for name, mine in zip(arrivals.phases, of, strict=True)},
        float(np.mean(clients.attempts)),
    )


def _judge(table: JudgedTable, call: Call, rows: list[int]) -> Judgement:
    stage = call.batch.stage
    mine = [rows[walk.request.tag] for walk in call.batch.walks]
    p_correct = table.p_correct[mine, stage]
    return Judgement(p_correct[:, None], p_correct, p_correct, table.gains[mine, stage, stage + 1 :])
