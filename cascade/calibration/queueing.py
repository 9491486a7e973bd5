"""How long work waits: closed forms for queues with several servers and for servers that take batches.

Knows rates, service times and numbers of servers; no stage, no price and no policy. Times are in seconds, rates in rows a
second.
"""

from dataclasses import dataclass
from math import inf, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import gamma, poisson

from cascade.errors import ConfigError

Floats = NDArray[np.float64]

TAKE_ALL_SHAPE = 11.0
"""Shape of the gamma distribution that the latency of take-all batching comes close to: its 95th percentile is 1.5 and its
99th 1.8 times the mean, from light load to heavy. A variance is the squared mean over this."""


def _check(rate: float, *times: float) -> None:
    if rate < 0:
        raise ConfigError(f"rate: expected at least 0 a second, got {rate:g}")
    if min(times) < 0 or max(times) <= 0:
        raise ConfigError(
            f"service times: expected none below 0 and their sum above, got {', '.join(f'{t:g}' for t in times)}"
        )


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c (Erlang 1917).

        B = Poisson(c; a) / sum_{k <= c} Poisson(k; a),   C = B / (1 - a/c (1 - B))

    Args:
        servers: c, at least 1.
        offered: a, arrival rate times mean service time; at c and beyond everything waits, and the answer is 1.

    Raises:
        ConfigError: no server, or an offered load below 0.
    """
    if servers < 1 or offered < 0:
        raise ConfigError(f"Erlang C needs at least one server and an offered load from 0, got {servers} and {offered:g}")
    if offered >= servers:
        return 1.0
    blocked = float(poisson.pmf(servers, offered) / poisson.cdf(servers, offered))
    return blocked / (1 - offered / servers * (1 - blocked))


def wait_tail(wait_s: float, rate: float, service_s: float, servers: int, variability: float = 1.0) -> float:
    """P(W > t) = C exp(-(c / s - rate) t / v), the wait before service with c servers of mean service time s.

    Exact for M/M/c (v = 1). For other arrivals and services v = (ca^2 + cs^2) / 2 stretches the wait (Allen and Cunneen;
    Kingman 1961 for one server in heavy traffic).

    Args:
        wait_s: t.
        rate: arrivals a second; at saturation every wait is endless.
        service_s: s.
        servers: c.
        variability: mean of the squared coefficients of variation of the times between arrivals and of service.

    Raises:
        ConfigError: no server, or a rate or a time out of range.
    """
    _check(rate, service_s)
    waits = erlang_c(servers, rate * service_s)
    slack = servers / service_s - rate
    if slack <= 0:
        return 1.0
    if variability == 0:
        return 0.0
    return waits * float(np.exp(-slack * wait_s / variability))


def wait_quantile(level: float, rate: float, service_s: float, servers: int, variability: float = 1.0) -> float:
    """The wait that a share ``level`` of arrivals does not exceed: max(0, v ln(C / (1 - level)) / (c / s - rate)).

    The inverse of `wait_tail`; infinite at saturation.

    Raises:
        ConfigError: as `wait_tail`; or ``level`` is not in (0, 1).
    """
    _check(rate, service_s)
    if not 0 < level < 1:
        raise ConfigError(f"level: expected a share between 0 and 1, got {level:g}")
    waits = erlang_c(servers, rate * service_s)
    slack = servers / service_s - rate
    if slack <= 0:
        return inf
    return 0.0 if waits <= 1 - level else variability * log(waits / (1 - level)) / slack


def batch_capacity(a_s: float, b_s: float, max_batch_size: int, servers: int = 1) -> float:
    """Rows a second of servers that are always given full batches: servers x B / (a + b B).

    Raises:
        ConfigError: a time is out of range.
    """
    _check(0.0, a_s, b_s)
    return servers * max_batch_size / (a_s + b_s * max_batch_size)


def batch_latency(rate: float, a_s: float, b_s: float) -> float:
    """Mean time from arrival to the end of service where one server takes all that waits and a batch of n takes a + b n.

    The bound of Inoue (2021, arXiv 1912.06322) for Poisson arrivals, tight enough to serve as an estimate:

        min( (b + a) / (2 (1 - r b)) (1 + 2 r a + (1 - r a) / (1 + r b)),
             3/2 a / (1 - r b) + b/2 (r b + 2) / (1 - r^2 b^2) ),     r = rate

    infinite at r b >= 1, where no batch is large enough to keep up.

    Raises:
        ConfigError: the rate or a time is out of range.
    """
    _check(rate, a_s, b_s)
    load = rate * b_s
    if load >= 1:
        return inf
    light = (b_s + a_s) / (2 * (1 - load)) * (1 + 2 * rate * a_s + (1 - rate * a_s) / (1 + load))
    heavy = 1.5 * a_s / (1 - load) + b_s / 2 * (load + 2) / (1 - load * load)
    return min(light, heavy)


@dataclass(frozen=True)
class Delay:
    """A random time by its first two moments; independent ones add up."""

    mean_s: float
    """Mean."""
    variance: float = 0.0
    """Variance, seconds squared."""

    def __add__(self, other: "Delay") -> "Delay":
        return Delay(self.mean_s + other.mean_s, self.variance + other.variance)

    def tail(self, after_s: float) -> float:
        """P(delay > t), of the gamma distribution with these moments."""
        if self.variance == 0:
            return float(after_s < self.mean_s)
        scale = self.variance / self.mean_s
        return float(gamma.sf(after_s, self.mean_s / scale, scale=scale))

    def quantile(self, level: float) -> float:
        """The time that a share ``level`` does not exceed."""
        return mixture_quantile(level, [1.0], [self])


def batched_delay(rate: float, a_s: float, b_s: float, max_batch_size: int, servers: int, calls: int = 1) -> Delay | None:
    """Time from arrival to the end of service on servers that take up to B waiting rows at a time; None at saturation.

    The sum of three parts, S(n) = a + b n:

    * `batch_latency` at the rate that falls to one server, its variance the squared mean over `TAKE_ALL_SHAPE`;
    * what B keeps waiting: full batches as the customers of a queue with c servers, time S(B), v = 1 / (2 B);
    * where a server holds a second batch while the first one runs, that batch's time with the probability that there is
      one: S(n) min(1, r S(n))^2 at the usual batch n = r a / (1 - r b).

    Against simulations of one to four servers, batches of at most 1 to 32 and loads from 20 % to 95 % its 99th percentile
    is between 20 % too small and 60 % too large; most too large where several servers share a light load (twice, at
    5 %), since each is taken to have a queue of its own.

    Args:
        rate: Poisson arrivals a second, of all servers together.
        a_s: time of any batch.
        b_s: time that each row adds.
        max_batch_size: B.
        servers: c.
        calls: batches that a server may hold.

    Raises:
        ConfigError: the rate or a time is out of range, or there is no server.
    """
    _check(rate, a_s, b_s)
    if rate >= batch_capacity(a_s, b_s, max_batch_size, servers):
        return None
    each, full_s = rate / servers, a_s + b_s * max_batch_size
    if max_batch_size == 1:
        taken = Delay(full_s)
    else:
        mean_s = batch_latency(each, a_s, b_s)
        taken = Delay(mean_s, mean_s * mean_s / TAKE_ALL_SHAPE)
    waits = erlang_c(servers, rate * full_s / max_batch_size)
    kept_s = 0.5 / max_batch_size / (servers / full_s - rate / max_batch_size)
    kept = Delay(waits * kept_s, (2 - waits) * waits * kept_s * kept_s)
    usual_s = a_s / (1 - each * b_s) + b_s
    held = Delay(usual_s * min(1.0, each * usual_s) ** 2 if calls > 1 and max_batch_size > 1 else 0.0)
    return taken + kept + held


def mixture_quantile(level: float, shares: list[float], delays: list[Delay]) -> float:
    """The time that a share ``level`` of requests does not exceed, where a share of them has each delay.

    Args:
        level: in (0, 1).
        shares: share of requests with each delay; of their sum, if that is not 1. At least one above 0.
        delays: the delays, means above 0.

    Raises:
        ConfigError: ``level`` is not in (0, 1), or no share is above 0.
    """
    if not 0 < level < 1 or max(shares, default=0.0) <= 0:
        raise ConfigError(f"expected a level between 0 and 1 and a share above 0, got {level:g} and {shares}")
    parts = [(share / sum(shares), delay) for share, delay in zip(shares, delays, strict=True) if share > 0]
    fixed = sorted((delay.mean_s, share) for share, delay in parts)
    if all(delay.variance == 0 for _, delay in parts):
        passed = np.cumsum([share for _, share in fixed])
        return fixed[int(np.searchsorted(passed, level * (1 - 1e-12)))][0]
    # Cantelli: no delay exceeds mean + sd / sqrt(1 - level) with more than the share that is left.
    most_s = max(delay.mean_s + sqrt(delay.variance / (1 - level)) for _, delay in parts)
    return float(brentq(lambda t: sum(share * delay.tail(t) for share, delay in parts) - (1 - level), 0.0, most_s * 1.01))
