"""The laws of load control that are compared, each a few lines over `QueueLaw`, and the product's policy beside them.

All of them know the same gain tables and get their prices from the same market clearing, so that they differ in how they
react and not in what they know. Parameters were chosen by ``--tune``, on other seeds than those of the comparison.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, inf, log
from typing import Any

from benchmarks.laws.plan import Prices
from benchmarks.laws.queue_law import Options, QueueLaw
from cascade.policy.commands import Batch, Command
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy, StageConfig

HIGHEST_LOAD = 40.0
"""The most restrained setting of the laws that know no rate, in capacities of the top stage."""
HIGHEST_LOG = log(HIGHEST_LOAD)


class Static(QueueLaw):
    """Thresholds set once, for the load that just fills the top stage, so that they hold there without any control."""

    def __init__(self, stages: Sequence[StageConfig], prices: Prices, **more: Any) -> None:
        super().__init__(stages, **more)
        self.set_prices(prices.setting(1.05))


class Plain(QueueLaw):
    """Every row goes on wherever a gain is to be had, unless a plan sets prices."""

    def __init__(self, stages: Sequence[StageConfig], prices: Prices, **more: Any) -> None:  # noqa: ARG002
        super().__init__(stages, **more)


class Aimd(QueueLaw):
    """Additive increase, multiplicative decrease of the share of rows that may go on (Chiu and Jain 1989).

    With quality q in (0, 1], the prices are those for 1 / q times the top stage's capacity. Every period
    q <- q + increase, or q <- q * decrease while more than ``target`` deadlines of work wait before some stage.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        prices: Prices,
        *,
        increase: float = 0.02,
        decrease: float = 0.8,
        target: float = 0.3,
        **more: Any,
    ) -> None:
        super().__init__(stages, **more)
        self._settings = prices
        self._increase, self._decrease, self._target = increase, decrease, target
        self._quality = 1.0

    def control(self) -> None:
        """See `QueueLaw`."""
        congested = max(self.wait_s(1), self.wait_s(2)) > self._target * self.deadline_s
        self._quality = self._quality * self._decrease if congested else self._quality + self._increase
        self._quality = min(max(self._quality, 1 / HIGHEST_LOAD), 1.0)
        self.set_prices(self._settings.setting(1.0 / self._quality))


class PiDimmer(QueueLaw):
    """A dimmer under proportional-integral control of the wait (Klein et al., Brownout, ICSE 2014).

    With e the longest wait before a stage less ``target``, both in deadlines, the prices are those for
    exp(kp e + sum of ki e) times the top stage's capacity; sum and exponent stay within the settings there are.
    """

    def __init__(
        self,
        stages: Sequence[StageConfig],
        prices: Prices,
        *,
        kp: float = 0.5,
        ki: float = 0.3,
        target: float = 0.3,
        **more: Any,
    ) -> None:
        super().__init__(stages, **more)
        self._settings = prices
        self._kp, self._ki, self._target = kp, ki, target
        self._integral = 0.0

    def control(self) -> None:
        """See `QueueLaw`."""
        error = max(self.wait_s(1), self.wait_s(2)) / self.deadline_s - self._target
        self._integral = min(max(self._integral + self._ki * error, 0.0), HIGHEST_LOG)
        self.set_prices(self._settings.setting(exp(min(max(self._kp * error + self._integral, 0.0), HIGHEST_LOG))))


class QueuePrice(QueueLaw):
    """Backlog as price: drift plus penalty (Neely 2010). With ``horizon`` deadlines of work waiting, no visit is worth it.

    price_k = TOP_GAIN * wait_k / (horizon * deadline)
    """

    TOP_GAIN = 0.7

    def __init__(
        self,
        stages: Sequence[StageConfig],
        prices: Prices,  # noqa: ARG002
        *,
        horizon: float = 1.0,
        **more: Any,
    ) -> None:
        super().__init__(stages, **more)
        self._slope = self.TOP_GAIN / (horizon * self.deadline_s)

    def completed(
        self,
        now: float,
        batch: Batch,
        judgement: Judgement,
        run_s: float | None = None,  # noqa: ARG002
    ) -> list[Command]:
        """See `QueueLaw`; the price is that of the instant."""
        self.set_prices([0.0, *(self._slope * self.wait_s(k) for k in range(1, len(self.capacities)))])
        return super().completed(now, batch, judgement)


def _ours(stages: Sequence[StageConfig], prices: Prices, **more: Any) -> Policy:  # noqa: ARG001
    return Policy(stages, **more)


def _open_door(stages: Sequence[StageConfig], prices: Prices, **more: Any) -> Policy:  # noqa: ARG001
    return Policy(stages, wait_share=1e9, **more)


@dataclass(frozen=True)
class Law:
    """A law by name.

    Attributes:
        name: short, for tables and the command line.
        title: what it is.
        make: builds one from stages and prices, given ``usual_deadline_s`` and ``seed``.
        rho: utilisation that a plan by arrival rate and learned capacities aims at; None for no plan.
        drain_s: time in which the plan works off what waits before a stage; infinite if it does not look at it.
        plan_period_s: how often it plans.
        replicas: of the last stage.
    """

    name: str
    title: str
    make: Callable[..., Any]
    rho: float | None = None
    plan_period_s: float = 0.5
    replicas: int = 1
    drain_s: float = inf

    def planner(self, prices: Prices) -> Callable[[float, float, Any], Sequence[float]] | None:
        """What the simulator calls every ``plan_period_s``: clearing prices for the rate and the learned capacities."""
        if self.rho is None:
            return None
        rho = self.rho

        def plan(_now: float, rate: float, driven: Any) -> Sequence[float]:
            # What waits takes its part of the capacity; a little is left, or one long queue would stop the stage behind too.
            room = [
                max(rho * stage.rows_per_s - driven.waiting(k) / self.drain_s, LEAST_ROOM * stage.rows_per_s)
                for k, stage in enumerate(driven.capacities)
            ]
            return prices.clearing(rate, room, 1.0)

        return plan


NAIVE = Options(fallback=False, slack=False, wait_share=inf)
DEAREST = Options(entry=2, wait_share=0.5)
NO_SLACK = Options(slack=False)
LIFO = Options(newest_first=True)
GEAR_PERIOD_S = 0.1
LEAST_ROOM = 0.05
LAWS = (
    Law("ours+plan", "value queue (the product's policy), plan at rho 1.10", _ours, rho=1.10),
    Law("ours", "value queue (the product's policy), no plan", _ours),
    Law("naive", "static thresholds, waits for the answer, FIFO", partial(Static, options=NAIVE)),
    Law("dearest", "dearest model only, 3 replicas, shedding", partial(Plain, options=DEAREST), replicas=3),
    Law("static", "static thresholds, answers at the deadline, FIFO", partial(Static, options=NO_SLACK)),
    Law("slack", "every row goes on while time is left, FIFO", Plain),
    Law("aimd", "AIMD of the share that goes on, slack, FIFO", Aimd),
    Law("pi", "PI dimmer on the wait, slack, FIFO", PiDimmer),
    Law("gear-noslack", "gear by arrival rate, FIFO", partial(Plain, options=NO_SLACK), 0.85, GEAR_PERIOD_S),
    Law("gear", "gear by arrival rate, slack, FIFO", Plain, 0.9, GEAR_PERIOD_S),
    Law("gear-lifo", "gear by arrival rate, slack, LIFO", partial(Plain, options=LIFO), 0.95, GEAR_PERIOD_S),
    Law("gear-drain", "gear by arrival rate and backlog, slack, FIFO", Plain, 1.1, GEAR_PERIOD_S, drain_s=0.5),
    Law("queue-price", "price from the backlog, slack, FIFO", QueuePrice),
)
BY_NAME = {law.name: law for law in LAWS}
OPEN_DOOR = Law("open door", "value queue, nothing shed", _open_door)
