"""What a plan must know of a deployment: stages as times, batches and replicas; its capacity, and how long answers take.

Knows no file and no network. Latency is an estimate from closed forms; `Deployment.latency` says what it is good for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cascade.calibration.fluid import Capacity, OperatingPoint
from cascade.calibration.judged import Floats
from cascade.calibration.queueing import Delay, batch_capacity, batched_delay, erlang_c, mixture_quantile
from cascade.errors import ConfigError
from cascade.policy.bounds import LAST_QUEUE_SHARE, QUEUE_SHARE


@dataclass(frozen=True)
class StageInputs:
    """One stage.

    Attributes:
        name: its name.
        a_s: seconds of any batch.
        b_s: seconds that a row adds.
        max_batch_size: rows in a batch, at most.
        replicas: how many run it.
        calls: batches that a replica may hold.
        base_price: gain that a visit must promise when nothing is scarce.
        num_cpus: CPUs of a replica.
        num_gpus: GPUs of a replica.
        fixed: whether its replicas are not for the plan to choose, as with a stage inside the router.
        owner: index of the stage on whose replicas it runs; None if they are its own. It is fixed then, and has as many.
    """

    name: str
    a_s: float
    b_s: float
    max_batch_size: int
    replicas: int = 1
    calls: int = 1
    base_price: float = 0.0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    fixed: bool = False
    owner: int | None = None

    def batch_s(self, rows: int) -> float:
        """Seconds of a batch."""
        return self.a_s + self.b_s * rows

    @property
    def rows_per_s(self) -> float:
        """Rows a second of all replicas at full batches."""
        return batch_capacity(self.a_s, self.b_s, self.max_batch_size, self.replicas)


@dataclass(frozen=True)
class Deployment:
    """A ladder as deployed.

    Attributes:
        stages: cheapest first.
        deadline_s: the usual deadline, against which queues are bounded.
        wait_share: share of the deadline that a request may wait for stage 0.
        shared_cores: cores that all stages share, or None where every replica has its own.
    """

    stages: tuple[StageInputs, ...]
    deadline_s: float
    wait_share: float = 0.2
    shared_cores: float | None = None

    @property
    def base_prices(self) -> Floats:
        """[S] price of a visit when nothing is scarce."""
        return np.array([stage.base_price for stage in self.stages])

    @property
    def capacity(self) -> Capacity:
        """Rows a second of each stage at full batches; with shared cores also the work that they can do together.

        Raises:
            ConfigError: the number of shared cores is not above 0.
        """
        rows_per_s = np.array([stage.rows_per_s for stage in self.stages])
        if self.shared_cores is None:
            return Capacity(rows_per_s, together=tuple(group for group in self.groups if len(group) > 1))
        work_s = np.array([stage.batch_s(stage.max_batch_size) / stage.max_batch_size for stage in self.stages])
        return Capacity(rows_per_s, work_s, self.shared_cores, tuple(group for group in self.groups if len(group) > 1))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The stages by whose replicas they run on."""
        owners = [index if stage.owner is None else stage.owner for index, stage in enumerate(self.stages)]
        return tuple(tuple(k for k, own in enumerate(owners) if own == owner) for owner in sorted(set(owners)))

    def with_replicas(self, replicas: Sequence[int]) -> "Deployment":
        """The same with other numbers of replicas, one for each stage; a fixed stage keeps its own, or has its owner's.

        Raises:
            ConfigError: not one number for each stage, or one below 1.
        """
        if len(replicas) != len(self.stages) or min(replicas) < 1:
            raise ConfigError(f"replicas: expected {len(self.stages)} numbers from 1, got {list(replicas)}")
        stages = [
            stage if stage.fixed else replace(stage, replicas=int(count))
            for stage, count in zip(self.stages, replicas, strict=True)
        ]
        return replace(
            self,
            stages=tuple(
                stage if stage.owner is None else replace(stage, replicas=stages[stage.owner].replicas) for stage in stages
            ),
        )

    def utilisation(self, point: OperatingPoint) -> Floats:
        """[S] load of each stage by its capacity at full batches, or the part of the shared cores that it takes; of stages
        on the same replicas, the part of these.
        """
        if self.shared_cores is not None:
            work_s = self.capacity.work_s
            assert work_s is not None
            return np.asarray(point.rate * point.visits * work_s / self.shared_cores)
        return np.asarray(point.rate * point.visits / self.capacity.rows_per_s)

    def delays(self, point: OperatingPoint) -> list[Delay]:
        """Wait and service at each stage, of the rows that visit it.

        Where a visit costs no more than its base price there is capacity to spare, and `batched_delay` applies. A surcharge
        says that the stage cannot keep up: it has a wait uniform between 0 and what the policy lets queue up, which is a
        share of the deadline of work or a batch for each place, and then a full batch. So it is with all stages behind
        the first where they share cores that cannot keep up, and with all on the same replicas if one has a surcharge.
        """
        surcharged = point.prices > self.base_prices * (1 + 1e-9)
        surcharged[0] = point.shed > 0
        stretches, waiting = np.ones(len(self.stages)), surcharged
        if self.shared_cores is not None:
            taken = self.utilisation(point)
            cores = max(1, round(self.shared_cores))
            if taken.sum() < 1 and not surcharged.any():
                # M/G/c with shared processors: the mean time in the system of M/M/c, in units of the service time. A
                # stage's batches follow each other, so only the others' work is in its way.
                others = taken.sum() - taken
                stretches = np.array([1.0 + erlang_c(cores, busy * cores) / (cores * (1.0 - busy)) for busy in others])
            else:
                # Every replica runs all the time, and each gets its share of the cores.
                stretches *= max(1.0, sum(stage.replicas for stage in self.stages) / self.shared_cores)
                waiting = np.append(surcharged[0], np.ones(len(self.stages) - 1, np.bool_))
        else:
            taken = self.utilisation(point)
            for group in (list(group) for group in self.groups if len(group) > 1):
                busy, servers = float(taken[group].sum()), self.stages[group[0]].replicas
                if busy >= 1 or surcharged[group].any():
                    waiting[[k for k in group if k]] = True
                else:
                    others = busy - taken[group]  # as above: a stage's own batches are not in its way
                    stretches[group] = [
                        1.0 + erlang_c(servers, part * servers) / (servers * (1.0 - part)) for part in others
                    ]
        visits = point.visits
        found = []
        for k, stage in enumerate(self.stages):
            a_s, b_s = stage.a_s * float(stretches[k]), stage.b_s * float(stretches[k])
            free = batched_delay(point.rate * float(visits[k]), a_s, b_s, stage.max_batch_size, stage.replicas, stage.calls)
            most = self._longest(k)
            if waiting[k] or free is None or free.mean_s > most.mean_s:
                free = most
            found.append(free)
        return found

    def _longest(self, index: int) -> Delay:
        stage = self.stages[index]
        last = index == len(self.stages) - 1
        share = self.wait_share if index == 0 else LAST_QUEUE_SHARE if last else QUEUE_SHARE
        full_s = stage.batch_s(stage.max_batch_size)
        most_s = max(share * self.deadline_s, stage.calls * full_s if index else 0.0)
        return Delay(full_s * min(stage.calls, 2) + most_s / 2, most_s**2 / 12)

    def latency(self, point: OperatingPoint, level: float = 0.99) -> float:
        """Time from arrival to answer that a share ``level`` of the answered requests does not exceed; an estimate.

        A row's time is the sum over the stages that it visits, as if these were independent and their arrivals Poisson;
        requests are a mixture over the stages that they stop at. Never above the deadline, at which the policy answers with
        what it has. Good for choosing numbers of replicas and for spotting a stage that eats the time; within tens of
        percent of a simulation while no stage is saturated. Beyond, it says how long rows may wait rather than how long
        they do, since the most valuable ones overtake the others. With direct routing it errs high, as if rows visited all
        stages before the one that they stop at. Routing, network and the noise of service times are not
        in it.

        Raises:
            ConfigError: ``level`` is not in (0, 1).
        """
        passed = Delay(0.0)
        until: list[Delay] = []
        for delay in self.delays(point):
            passed += delay
            until.append(passed)
        return min(self.deadline_s, mixture_quantile(level, [float(share) for share in point.exit_shares], until))
