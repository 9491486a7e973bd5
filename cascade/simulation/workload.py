"""When requests arrive: laws of arrival, their textual grammar, and the phases that a report tells apart.

Knows nothing of what the requests ask for or who answers them: a simulation and a load test read the same instants.
Arrivals are drawn before anything runs, so that everything that is compared sees the same ones.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Protocol

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from cascade.errors import ConfigError
from cascade.simulation.traces import read_instants

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

RAMP_PIECES = 4
"""A slope is reported in this many parts, each narrow enough to have a rate of its own."""
DAY_PIECES = 8
"""The same for a period of a daily rhythm; parts of the same height are reported together."""


@dataclass(frozen=True, eq=False)
class Arrivals:
    """The instants of one run, in phases.

    A phase may consist of several stretches of time: the bursts of a bursty run are one phase.
    """

    instants: Floats
    """[N] seconds after the beginning, ascending, all below ``seconds``."""
    seconds: float
    """How long the run lasts."""
    phases: tuple[str, ...]
    """[P] names."""
    edges: Floats
    """[M + 1] where the stretches begin and the last one ends, from 0 to ``seconds``."""
    labels: Indices
    """[M] phase of each stretch."""

    @cached_property
    def phase(self) -> Indices:
        """[N] phase of each arrival."""
        stretch = np.searchsorted(self.edges, self.instants, side="right") - 1
        return np.asarray(self.labels[np.minimum(stretch, len(self.labels) - 1)], dtype=np.intp)

    @cached_property
    def phase_seconds(self) -> Floats:
        """[P] length of each phase."""
        return np.bincount(self.labels, np.diff(self.edges), len(self.phases)).astype(np.float64)


class Workload(Protocol):
    """A law of arrival."""

    @property
    def length_s(self) -> float | None:
        """How long it lasts by itself; None if it has no end."""
        ...

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """Draw the arrivals of the first ``seconds``, of which the law must have enough."""
        ...


def draw(workload: Workload, seconds: float | None, seed: SeedSequence | int) -> Arrivals:
    """Draw arrivals; the same workload, length and seed give the same ones.

    Args:
        workload: the law.
        seconds: how long; None for as long as the workload lasts. One that ends sooner ends the run.
        seed: of the stream of arrivals.

    Raises:
        ConfigError: no length is given and the workload has no end, or the length is no positive number.
    """
    own = inf if workload.length_s is None else workload.length_s
    if seconds is None and own == inf:
        raise ConfigError("this workload has no end: say for how many seconds it shall run")
    length = min(inf if seconds is None else seconds, own)
    if not 0 < length < inf:
        raise ConfigError(f"a run must last a positive number of seconds, got {length:g}")
    return workload.draw(length, default_rng(seed))


def run_streams(seed: int) -> tuple[SeedSequence, SeedSequence, SeedSequence]:
    """Independent streams of one run: for arrivals, for the rows that arrive, for service times.

    Whatever one of them is used for, the others give the same numbers: two policies meet the same requests.
    """
    arrivals, rows, service = SeedSequence(seed).spawn(3)
    return arrivals, rows, service


# -- laws --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A stretch of time on which the rate changes evenly from ``start`` to ``end``, both per second."""

    name: str
    seconds: float
    start: float
    end: float


@dataclass(frozen=True)
class PoissonPath:
    """Poisson arrivals whose rate is linear on each of several segments; the last one may be endless and level.

    With L(t) the integral of the rate, the arrivals are the points L^-1(u) of a unit Poisson process u: exact inversion
    (Cinlar 1975), a square root a segment.
    """

    segments: tuple[Segment, ...]
    """In order."""

    @property
    def length_s(self) -> float | None:
        """Sum of the segments."""
        length = sum(segment.seconds for segment in self.segments)
        return None if length == inf else length

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """See `Workload`."""
        lasting = np.array([segment.seconds for segment in self.segments])
        edges = np.minimum(np.concatenate([[0.0], np.cumsum(lasting)]), seconds)
        edges[-1] = seconds
        begin, length = edges[:-1], np.diff(edges)
        start = np.array([segment.start for segment in self.segments])
        slope = (np.array([segment.end for segment in self.segments]) - start) / lasting
        expected = np.concatenate([[0.0], np.cumsum(length * (start + slope * length / 2))])
        points = np.sort(random.random(random.poisson(expected[-1]))) * expected[-1]
        at = np.minimum(np.searchsorted(expected, points, side="right"), len(self.segments)) - 1
        into = points - expected[at]
        # The root of start x + slope x^2 / 2 = into that also holds where the slope is 0 or the rate starts at 0.
        x = 2 * into / (start[at] + np.sqrt(np.maximum(start[at] ** 2 + 2 * slope[at] * into, 0.0)))
        reached = [segment.name for segment, lasts in zip(self.segments, length, strict=True) if lasts > 0]
        names = tuple(dict.fromkeys(reached))
        return Arrivals(
            np.minimum(begin[at] + x, np.nextafter(seconds, 0)),
            seconds,
            names,
            np.append(begin[length > 0], seconds),
            np.array([names.index(name) for name in reached], dtype=np.intp),
        )


@dataclass(frozen=True)
class Constant:
    """One arrival every 1 / rate seconds, the first after half of that."""

    rate: float
    """Per second."""
    length_s: float | None = None

    def draw(self, seconds: float, random: Generator) -> Arrivals:  # noqa: ARG002
        """See `Workload`."""
        instants: Floats = (np.arange(round(seconds * self.rate) + 1, dtype=np.float64) + 0.5) / self.rate
        return _one_phase("constant", instants[instants < seconds], seconds)


@dataclass(frozen=True)
class Gamma:
    """Independent gaps, gamma distributed, begun in equilibrium so that the rate holds from the first second."""

    rate: float
    """Per second."""
    cv2: float
    """Squared coefficient of variation of the gaps: 1 is Poisson, more is burstier."""
    length_s: float | None = None

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """See `Workload`."""
        shape, scale = 1 / self.cv2, self.cv2 / self.rate
        # In equilibrium the gap under way at 0 is drawn in proportion to its length, and 0 lies anywhere in it.
        instants = [np.array([random.gamma(shape + 1, scale) * random.random()])]
        while instants[-1][-1] < seconds:
            gaps = random.gamma(shape, scale, size=max(1024, int(seconds * self.rate / 4)))
            instants.append(instants[-1][-1] + np.cumsum(gaps))
        joined: Floats = np.concatenate(instants).astype(np.float64)
        return _one_phase("gamma", joined[joined < seconds], seconds)


@dataclass(frozen=True)
class Burst:
    """Poisson arrivals that switch between two rates, each held for an exponential time: an MMPP(2), begun stationary."""

    rates: tuple[float, float]
    """Per second, the calm one first."""
    sojourns_s: tuple[float, float]
    """Mean time that each is held."""
    length_s: float | None = None

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """See `Workload`."""
        state = int(random.random() < self.sojourns_s[1] / sum(self.sojourns_s))
        segments, elapsed = [], 0.0
        while elapsed < seconds:
            held = float(random.exponential(self.sojourns_s[state]))
            segments.append(Segment(("calm", "burst")[state], held, self.rates[state], self.rates[state]))
            elapsed += held
            state = 1 - state
        return PoissonPath(tuple(segments)).draw(seconds, random)


@dataclass(frozen=True)
class Diurnal:
    """Poisson arrivals with a daily rhythm: low + (high - low) (1 - cos(2 pi t / period)) / 2, by thinning.

    Thinning (Lewis and Shedler 1979): arrivals at the highest rate, each kept with the present share of it.
    """

    low: float
    """Per second, at the beginning."""
    high: float
    """Per second, half a period later."""
    period_s: float
    """Length of a day."""
    length_s: float | None = None

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """See `Workload`."""
        instants = np.sort(random.random(random.poisson(self.high * seconds))) * seconds
        height = (1 - np.cos(2 * np.pi * instants / self.period_s)) / 2
        kept = random.random(len(instants)) * self.high < self.low + (self.high - self.low) * height
        pieces = int(np.ceil(seconds * DAY_PIECES / self.period_s))
        edges = np.minimum(np.arange(pieces + 1) * self.period_s / DAY_PIECES, seconds)
        level = np.arange(pieces) % DAY_PIECES
        labels = np.minimum(level, DAY_PIECES - 1 - level)
        names = tuple(f"level {k + 1} of {DAY_PIECES // 2}" for k in range(int(labels.max()) + 1))
        return Arrivals(instants[kept], seconds, names, edges, labels)


@dataclass(frozen=True, eq=False)
class Trace:
    """Recorded instants."""

    instants: Floats
    """[N] seconds, ascending from 0."""
    length_s: float
    """As long as the last gap would be over if it were of mean length."""

    def draw(self, seconds: float, random: Generator) -> Arrivals:  # noqa: ARG002
        """See `Workload`."""
        return _one_phase("trace", self.instants[self.instants < seconds], seconds)


def _one_phase(name: str, instants: Floats, seconds: float) -> Arrivals:
    return Arrivals(instants, seconds, (name,), np.array([0.0, seconds]), np.zeros(1, dtype=np.intp))


def level(name: str, rate: float, seconds: float = inf) -> Segment:
    """A segment of one rate."""
    return Segment(name, seconds, rate, rate)


def slope(seconds: float, start: float, end: float, first: int = 1) -> Sequence[Segment]:
    """A change of rate, in parts that are reported one by one and numbered from ``first``."""
    rates = np.linspace(start, end, RAMP_PIECES + 1).tolist()
    return [
        Segment(f"{place}: {before:,.6g}-{after:,.6g}/s", seconds / RAMP_PIECES, before, after)
        for place, (before, after) in enumerate(pairwise(rates), start=first)
    ]


# -- the grammar -------------------------------------------------------------------------------------------------------

GRAMMAR = """\
poisson:RATE                  independent arrivals, RATE a second
constant:RATE                 one every 1/RATE seconds
step:RATE@SECONDS,...         Poisson at one rate after another, e.g. step:50@5,400@10,50@5
ramp:FROM-TO@SECONDS,...      Poisson, the rate changes evenly, e.g. ramp:50-400@10,400-50@10
burst:RATE@MEAN,RATE@MEAN     Poisson that switches between two rates, each held MEAN seconds on average
gamma:RATE,CV2                gaps of squared coefficient of variation CV2; 1 is Poisson, more is burstier
diurnal:LOW-HIGH@PERIOD       Poisson, the rate swings from LOW to HIGH and back every PERIOD seconds
trace:FILE[,speed=FACTOR]     recorded instants: an Azure LLM trace, or one instant in seconds a line"""

_NUMBER = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
_PAIR = re.compile(rf"{_NUMBER}@{_NUMBER}")
_SLOPE = re.compile(rf"{_NUMBER}-{_NUMBER}@{_NUMBER}")
_TRACE = re.compile(rf"(.+?)(?:,speed={_NUMBER})?")


def parse_workload(text: str) -> Workload:
    """Read a workload from its textual form, see `GRAMMAR`.

    Args:
        text: such as ``step:50@5,400@10,50@5``.

    Raises:
        ConfigError: it is none; the message shows what came and the grammar. Or its trace file is wrong.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in _PARSERS:
        known = ", ".join(_PARSERS)
        raise ConfigError(f"workload {text!r}: expected one of {known}, then a colon\n{GRAMMAR}")
    try:
        return _PARSERS[kind](rest.strip())
    except _Malformed as error:
        raise ConfigError(f"workload {text!r}: {error}\n{GRAMMAR}") from None


class _Malformed(Exception):
    """What is wrong with a workload's text."""


def _numbers(pattern: re.Pattern[str], text: str, form: str) -> list[float]:
    match = pattern.fullmatch(text.strip())
    if match is None:
        raise _Malformed(f"expected {form}, got {text.strip()!r}")
    return [float(number) for number in match.groups()]


def _positive(value: float, name: str) -> float:
    if not 0 < value < inf:
        raise _Malformed(f"{name} must be above 0, got {value:g}")
    return value


def _rate(text: str) -> float:
    return _positive(_numbers(re.compile(_NUMBER), text, "a rate per second")[0], "the rate")


def _poisson(text: str) -> Workload:
    return PoissonPath((level("poisson", _rate(text)),))


def _step(text: str) -> Workload:
    segments = []
    for place, part in enumerate(text.split(","), start=1):
        rate, seconds = _numbers(_PAIR, part, "RATE@SECONDS")
        segments.append(level(f"{place}: {rate:,.6g}/s", rate, _positive(seconds, "SECONDS")))
    return PoissonPath(tuple(segments))


def _ramp(text: str) -> Workload:
    segments: list[Segment] = []
    for part in text.split(","):
        before, after, seconds = _numbers(_SLOPE, part, "FROM-TO@SECONDS")
        segments += slope(_positive(seconds, "SECONDS"), before, after, first=len(segments) + 1)
    return PoissonPath(tuple(segments))


def _burst(text: str) -> Workload:
    states = [_numbers(_PAIR, part, "RATE@MEAN") for part in text.split(",")]
    if len(states) != 2:
        raise _Malformed(f"expected two of RATE@MEAN, got {len(states)}")
    (calm, calm_s), (burst, burst_s) = sorted(states)
    return Burst((calm, burst), (_positive(calm_s, "MEAN"), _positive(burst_s, "MEAN")))


def _gamma(text: str) -> Workload:
    rate, cv2 = _numbers(re.compile(rf"{_NUMBER},\s*{_NUMBER}"), text, "RATE,CV2")
    return Gamma(_positive(rate, "the rate"), _positive(cv2, "CV2"))


def _diurnal(text: str) -> Workload:
    low, high, period_s = _numbers(_SLOPE, text, "LOW-HIGH@PERIOD")
    if low > high:
        raise _Malformed(f"LOW must be at most HIGH, got {low:g}-{high:g}")
    return Diurnal(low, _positive(high, "HIGH"), _positive(period_s, "PERIOD"))


def _trace(text: str) -> Workload:
    match = _TRACE.fullmatch(text)
    if match is None:
        raise _Malformed("expected FILE[,speed=FACTOR]")
    speed = _positive(float(match[2] or 1), "speed")
    instants = read_instants(match[1]) / speed
    count = len(instants)
    if not instants[-1]:
        raise ConfigError(f"{match[1]}: all its instants are the same")
    return Trace(instants, float(instants[-1]) * count / (count - 1))


_PARSERS: dict[str, Callable[[str], Workload]] = {
    "poisson": _poisson,
    "constant": lambda text: Constant(_rate(text)),
    "step": _step,
    "ramp": _ramp,
    "burst": _burst,
    "gamma": _gamma,
    "diurnal": _diurnal,
    "trace": _trace,
}
