"""How many replicas a stage should have. Knows what a stage is asked for and what a replica can do; starts none itself.

Degradation comes first and at once: queues and prices see to it within a request's own deadline. A replica takes seconds to
start and costs money for as long as it runs, so replicas follow only a need that stays.

Times are the caller's, in seconds on any steady clock.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil, isfinite
from typing import NamedTuple

SURCHARGE_FLOOR = 0.001
"""A smaller surcharge is none: rows are refused that had a chance of one in a thousand to be mended."""
STRAINED_SHARE = 0.8
"""Share of the time that a stage must be short for more replicas to be added; a fifth of it may be noise either way."""
HYSTERESIS = 0.875
"""Replicas are removed at this share of the utilisation that they are added for: 0.7 where the target is 0.8."""
GAP_SHARE = 0.5
"""Without a reading for this share of ``up_after_s``, what was seen before says nothing about now."""
SAMPLES = 50
"""Readings that are kept for ``up_after_s``; more often than that they are not looked at."""
PATIENCE_FACTOR = 4.0
"""How much longer an excess must last after a replica was missed that had been removed."""
PATIENCE_LIMIT = 16.0
"""Longest that an excess must last, in ``down_after_s``."""
REGRET = 3.0
"""A removed replica that is missed within so many times the excess's duration should not have been removed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What routers know about one stage now.

    Attributes:
        surcharge: present price of a visit less its base price, in gain; for the first stage the share of rows turned away.
        demand: rows a second that would visit the stage at base prices; does not depend on its replicas.
        rate: rows a second that one replica can do, at full batches.
    """

    surcharge: float
    demand: float
    rate: float


def combine(readings: list[Reading]) -> Reading | None:
    """One reading of several routers that share a stage; None if there is none of finite numbers.

    Demands add up. Surcharge and rate are means weighted by demand, because a router that nobody asks knows neither; where
    nobody asks any router they are plain means.
    """
    readings = [each for each in readings if isfinite(each.surcharge) and isfinite(each.demand) and isfinite(each.rate)]
    if not readings:
        return None
    demand = sum(each.demand for each in readings)
    weights = [each.demand / demand if demand > 0 else 1 / len(readings) for each in readings]
    return Reading(
        surcharge=sum(weight * each.surcharge for weight, each in zip(weights, readings, strict=True)),
        demand=demand,
        rate=sum(weight * each.rate for weight, each in zip(weights, readings, strict=True)),
    )


class _Sample(NamedTuple):
    now_s: float
    span_s: float
    strained: bool
    demand: float


class _Peak(NamedTuple):
    now_s: float
    demand: float


class Scaler:
    """Decides the number of replicas of one stage.

    Let d be the mean demand over the last ``up_after_s``, r the rate of one replica and u the target utilisation.

    Up, when the stage had a surcharge for ``STRAINED_SHARE`` of ``up_after_s`` with all n replicas at work that it was
    given: to ceil(d / (u min(r, d / n))), at most 2 n. A shortage proves that n replicas do not carry d, whatever r says;
    hence d / n.

    Down by one, at most every ``down_after_s``, when over the last p x ``down_after_s`` there was next to no surcharge and
    the highest d was at most ``HYSTERESIS`` x u x (n - 1) r.

    The patience p is 1. It grows ``PATIENCE_FACTOR`` times, up to ``PATIENCE_LIMIT``, when replicas are added within
    ``REGRET`` x p x ``down_after_s`` of a removal, and falls back to 1 when they are added later than that. So traffic whose
    long bursts are rarer than ``down_after_s``, or a rate that promises too much, makes the number of replicas turn a few
    times, and ever more rarely. A single burst shorter than ``STRAINED_SHARE`` of ``up_after_s`` adds nothing.

    Args:
        min_replicas: never fewer.
        max_replicas: never more.
        up_after_s: time that a shortage must last.
        down_after_s: time that an excess must last.
        target_utilisation: share of the replicas' rate that demand should take after an increase.
    """

    def __init__(
        self,
        *,
        min_replicas: int,
        max_replicas: int,
        up_after_s: float,
        down_after_s: float,
        target_utilisation: float,
    ) -> None:
        self._min = min_replicas
        self._max = max_replicas
        self._up_after_s = up_after_s
        self._down_after_s = down_after_s
        self._utilisation = target_utilisation
        self._samples: deque[_Sample] = deque()
        self._peaks: deque[_Peak] = deque()  # of d, over down_after_s, falling: the first one is the highest
        self._fleet = (0, 0)
        self._last_s: float | None = None
        self._fleet_since_s = 0.0
        self._calm_since_s = 0.0
        self._removed_s: float | None = None
        self._patience = 1.0

    def update(self, now_s: float, reading: Reading, *, target: int, running: int) -> int:
        """Take in a reading and decide.

        Args:
            now_s: now.
            reading: what the routers say, of finite numbers.
            target: replicas that the stage was given.
            running: those of them that are at work.

        Returns:
            Replicas that it should be given, from ``min_replicas`` to ``max_replicas``.
        """
        bounded = min(max(target, self._min), self._max)
        gap_s = 0.0 if self._last_s is None else now_s - self._last_s
        silence = self._last_s is None or not 0 <= gap_s <= GAP_SHARE * self._up_after_s
        moved = (target, running) != self._fleet
        if not (silence or moved) and gap_s < self._up_after_s / SAMPLES:
            return bounded
        if silence:  # or a clock that was set back
            gap_s, self._calm_since_s = 0.0, now_s
            self._samples.clear()
            self._peaks.clear()
        if silence or moved:
            self._fleet, self._fleet_since_s = (target, running), now_s
        self._last_s = now_s
        demand, strained = self._take(now_s, gap_s, reading)
        # A shortage of another fleet says nothing about this one; what rows asked for is the same.
        settled_s = now_s - self._fleet_since_s
        if bounded != target or settled_s < self._up_after_s:
            return bounded
        if strained >= STRAINED_SHARE and demand > 0 and running >= target:
            return self._more(now_s, target, demand, reading.rate)
        if target > self._min and settled_s >= self._down_after_s:
            return self._fewer(now_s, target, reading.rate)
        return target

    def _take(self, now_s: float, span_s: float, reading: Reading) -> tuple[float, float]:
        """Mean demand, and share of the time with a surcharge, over the last ``up_after_s``."""
        self._samples.append(_Sample(now_s, span_s, reading.surcharge > SURCHARGE_FLOOR, reading.demand))
        while self._samples[0].now_s <= now_s - self._up_after_s:
            self._samples.popleft()
        seen_s = sum(sample.span_s for sample in self._samples)
        if seen_s <= 0:
            return reading.demand, 0.0
        demand = sum(sample.span_s * sample.demand for sample in self._samples) / seen_s
        strained = sum(sample.span_s for sample in self._samples if sample.strained) / seen_s
        if strained > 1 - STRAINED_SHARE:
            self._calm_since_s = now_s
        while self._peaks and self._peaks[-1].demand <= demand:
            self._peaks.pop()
        self._peaks.append(_Peak(now_s, demand))
        while self._peaks[0].now_s < now_s - self._excess_s:
            self._peaks.popleft()
        return demand, strained

    @property
    def _excess_s(self) -> float:
        return self._patience * self._down_after_s

    def _more(self, now_s: float, target: int, demand: float, rate: float) -> int:
        proven = demand / target
        per_replica = min(rate, proven) if rate > 0 else proven
        carried = self._utilisation * per_replica
        most = min(2 * target, self._max)
        wanted = most if demand >= most * carried else ceil(demand / carried)  # a rate near 0 would overflow the quotient
        if wanted > target and self._removed_s is not None:
            missed = now_s - self._removed_s <= REGRET * self._excess_s
            self._patience = min(PATIENCE_FACTOR * self._patience, PATIENCE_LIMIT) if missed else 1.0
            self._removed_s = None
        return wanted

    def _fewer(self, now_s: float, target: int, rate: float) -> int:
        calm = now_s - self._calm_since_s >= self._excess_s
        if not calm or self._peaks[0].demand > HYSTERESIS * self._utilisation * rate * (target - 1):
            return target
        self._removed_s = now_s
        return target - 1
