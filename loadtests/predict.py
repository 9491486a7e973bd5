"""What the simulator says about a recorded run: the same requests, the same policy and slow loop as the server's, no server.

The result is a `Recording` too, so that measured and predicted figures come from the same code. Clients that ask again are
not simulated: a run with retries has no prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cascade.assembly import build_policy, class_configs, router_slots
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.calibration.judged import Floats, JudgedTable
from cascade.cli.simulate import stage_servers, with_replicas
from cascade.errors import ConfigError
from cascade.policy.market import Market
from cascade.policy.policy import Policy
from cascade.policy.request import Request
from cascade.serving.slow_loop import PERIOD_S, Control, SlowLoop, StagePlaces
from cascade.simulation.clients import Mix
from cascade.simulation.cluster import Cluster, StageServers
from cascade.simulation.record import REASONS, Ending, Record
from cascade.simulation.simulator import simulate
from cascade.simulation.workload import run_streams
from cascade.spec import CascadeSpec
from cascade.spec_exits import owners_of
from loadtests.record import Recording

SIMULATED = "simulated"
"""System of a predicted recording."""
STATUS = {Ending.ANSWERED: 200, Ending.SHED: 503, Ending.EXPIRED: 504, Ending.FAILED: 500, Ending.CANCELLED: 499}
"""How the server would have put it."""
LEAST_CORRECTION = 0.1
"""Of the profiled service time: below that a measured capacity is not explained by service times."""


@dataclass(frozen=True, eq=False)
class Simulator:
    """A ladder and its machines, ready to meet recorded requests.

    Attributes:
        table: the judged test rows.
        spec: the ladder's.
        profile: service times as the policy is told them.
        corrections: [S] true service times as multiples of the profiled ones; None for all 1.
        certificate: what may be lost at which prices; needed where a class has a floor.
        market: what the slow loop sets prices by; None for base prices, always.
        hop_s: seconds to a replica, and the same back.
        cv: coefficient of variation of service times.
    """

    table: JudgedTable
    spec: CascadeSpec
    profile: ServiceProfile
    corrections: Sequence[float] | Floats | None = None
    certificate: Certificate | None = None
    market: Market | None = None
    hop_s: float = 0.001
    cv: float = 0.1

    def servers(self) -> list[StageServers]:
        """The machines, with their true service times.

        Raises:
            ConfigError: there is not one correction above 0 for each stage.
        """
        servers = stage_servers(with_replicas(self.spec, []), self.profile, self.hop_s)
        factors = np.ones(len(servers)) if self.corrections is None else np.asarray(self.corrections, np.float64)
        if factors.shape != (len(servers),) or not (factors > 0).all():
            raise ConfigError(f"corrections: expected {len(servers)} numbers above 0, got {factors.tolist()}")
        return [
            replace(server, a_s=server.a_s * factor, b_s=server.b_s * factor)
            for server, factor in zip(servers, factors.tolist(), strict=True)
        ]

    def predict(self, recording: Recording) -> Recording | None:
        """What would have come of the recorded requests, or None where clients asked again.

        Raises:
            ConfigError: the recording has requests that never arrived, or rows that the table lacks.
        """
        if (recording.attempts > 1).any():
            return None
        seed = int(recording.meta["seed"])
        spec = with_replicas(self.spec, [])
        policy = build_policy(spec, self.profile, seed, self.certificate)
        places = [
            StagePlaces(stage.replicas, partial(router_slots, stage, 1), owner=owner)
            for stage, owner in zip(spec.placed, owners_of(spec.stages), strict=True)
        ]
        control = Control(class_configs(spec, self.certificate), places, self.market, self.certificate)
        # No stage comes or goes here, so that a round has nothing to carry out.
        loop = SlowLoop(policy, control, lambda _: None, 0.0)
        record = simulate(
            _Metered(policy, loop),
            Cluster(self.servers(), cv=self.cv, seed=run_streams(seed)[2]),
            self.table,
            recording.arrivals,
            recording.row.astype(np.intp),
            Mix(recording.deadline_s, recording.priority.astype(np.int64), recording.tenant, spec.deadline.margin_s),
            planner=lambda now, _rate, _driven: loop.step(now),
            plan_period_s=PERIOD_S,
        )
        return _recorded(record, recording, self.table)


def corrections(
    spec: CascadeSpec, profile: ServiceProfile, rows_per_s: Sequence[float] | Floats, hop_s: float = 0.001
) -> Floats:
    """Factors on the profiled service times that give the capacities measured in place, [S].

    A stage of r replicas that hold c calls each, B rows a batch, gets through B min(r / t, r c / (t + 2 hop)) rows a second;
    t is solved for and divided by the profiled a + b B.

    Args:
        spec: the ladder's.
        profile: the profiled service times.
        rows_per_s: [S] measured.
        hop_s: seconds to a replica, and the same back.
    """
    factors = []
    for stage, server, rate in zip(
        spec.stages, stage_servers(with_replicas(spec, []), profile, hop_s), rows_per_s, strict=True
    ):
        batch = stage.max_batch_size
        batch_s = min(server.replicas * batch / rate, server.slots * batch / rate - 2 * server.hop_s)
        factors.append(max(LEAST_CORRECTION, batch_s / (server.a_s + server.b_s * batch)))
    return np.array(factors)


class _Metered:
    """A policy whose slow loop is told of everything that comes to the door, as the router tells it."""

    def __init__(self, policy: Policy, loop: SlowLoop) -> None:
        self._policy = policy
        self._loop = loop

    def arrived(self, now: float, requests: Sequence[Request]) -> Any:
        """See `cascade.simulation.simulator.Driven`."""
        for request in requests:
            self._loop.arrived(now, request.priority, 1)
        return self._policy.arrived(now, requests)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the policy's own."""
        return getattr(self._policy, name)


def _recorded(record: Record, recording: Recording, table: JudgedTable) -> Recording:
    count = len(recording.row)
    answered = record.ending == Ending.ANSWERED
    reasons = np.array([*map(str, REASONS), ""], dtype="U16")
    codes = np.zeros(len(Ending), dtype=np.int16)
    codes[list(STATUS)] = list(STATUS.values())
    return replace(
        recording,
        lag_s=np.zeros(count),
        latency_s=record.done_s - recording.scheduled_s,
        status=codes[record.ending],
        stage=np.where(answered, record.stage, -1).astype(np.int8),
        reason=reasons[np.where(answered, record.reason, -1)],
        degraded=record.degraded & answered,
        price=np.full(count, np.nan),
        cost=np.where(answered, record.cost, np.nan),
        correct=answered & table.served[recording.row, np.maximum(record.stage, 0)],
        attempts=np.ones(count, dtype=np.int8),
        meta={**recording.meta, "system": SIMULATED},
    )
