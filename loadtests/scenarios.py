"""What is asked of the server: when requests arrive, who asks, and how clients behave. Knows neither HTTP nor Locust.

Arrivals and rows are drawn by the laws and from the streams of the simulator: a simulated run of the same scenario, rates
and seed meets the very same requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from cascade.errors import ConfigError
from cascade.simulation.simulator import draw_rows
from cascade.simulation.workload import (
    RAMP_PIECES,
    Arrivals,
    Burst,
    Diurnal,
    PoissonPath,
    Segment,
    Workload,
    draw,
    level,
    parse_workload,
    run_streams,
)

WARM_UP = "warm-up"
"""Name of the phase that nothing is concluded from: connections are opened and estimates settle."""
WARM_UP_S = 3.0
STEADY = (0.5, 1, 2, 4, 6, 8, 10)
"""Multiples of the top stage's capacity that are held."""
EFFICIENT = (2.0, 8.0)
"""Loads from and to which the verdict asks for efficiency, in multiples of the top stage's capacity."""
STEADY_S, LONG_STEADY_S = 12.0, 30.0
"""How long a load is held, and how long one at which efficiency is asked for: a standard error of 0.04 becomes one of 0.025,
less than what separates a good law from the limit."""
SATURATION = 1.3
"""Of what stage 0 can answer: beyond it, requests must be turned away."""
SOAK_PIECES = 6
"""A long run is reported in parts, so that drift shows."""


@dataclass(frozen=True)
class Asker:
    """One kind of client.

    Attributes:
        share: of the requests.
        priority: class that it names; None if it names none.
        tenant: whom it names; "" for nobody.
        deadline_s: time limit that it names; None if it leaves that to the server.
    """

    share: float = 1.0
    priority: int | None = None
    tenant: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True)
class Scenario:
    """One load test.

    Attributes:
        name: on the command line.
        about: what it is for, one line.
        law: (unit_rate, stage0_rate, seconds_scale) to its law of arrival; rates in requests/s.
        askers: who asks, at random in these shares.
        retries: how often a client asks again after a 503 or no answer at all, whatever ``Retry-After`` says.
    """

    name: str
    about: str
    law: Callable[[float, float, float], Workload]
    askers: tuple[Asker, ...] = (Asker(),)
    retries: int = 0

    def workload(self, unit_rate: float, stage0_rate: float, seconds_scale: float = 1.0) -> Workload:
        """Its law of arrival, which has an end.

        Args:
            unit_rate: what the top stage can answer, requests/s; loads are multiples of it.
            stage0_rate: what stage 0 can answer, requests/s.
            seconds_scale: stretches all its times.

        Raises:
            ConfigError: one of them is not above 0.
        """
        for name, value in (("unit rate", unit_rate), ("stage-0 rate", stage0_rate), ("seconds scale", seconds_scale)):
            if not 0 < value < np.inf:
                raise ConfigError(f"scenario {self.name!r}: the {name} must be above 0, got {value:g}")
        return self.law(unit_rate, stage0_rate, seconds_scale)


@dataclass(frozen=True, eq=False)
class Run:
    """Everything about a run that is decided before it begins.

    Attributes:
        scenario: of what.
        workload: the law that was drawn from, as text.
        arrivals: when requests come.
        row: [N] row of the test data that each one is.
        asker: [N] index into the scenario's askers.
    """

    scenario: Scenario
    workload: str
    arrivals: Arrivals
    row: NDArray[np.intp]
    asker: NDArray[np.intp]


@dataclass(frozen=True)
class _RowCount:
    """All that drawing rows needs to know of a table."""

    rows: int


def draw_run(
    scenario: Scenario,
    *,
    unit_rate: float,
    stage0_rate: float,
    seed: int,
    rows: int,
    seconds_scale: float = 1.0,
    seconds: float | None = None,
    workload: Workload | None = None,
) -> Run:
    """Draw a run; the same arguments give the same one, and ``simulate`` the same arrivals and rows.

    Args:
        scenario: of what.
        unit_rate: see `Scenario.workload`.
        stage0_rate: see there.
        seed: of arrivals, rows and who asks, which are independent of each other.
        rows: how many rows the test data have.
        seconds_scale: see `Scenario.workload`.
        seconds: ends the run before its law does; None for all of it.
        workload: a law instead of the scenario's own, such as a recorded trace.
    """
    law = scenario.workload(unit_rate, stage0_rate, seconds_scale) if workload is None else workload
    arrival_seed, row_seed, _ = run_streams(seed)
    arrivals = draw(law, seconds, arrival_seed)
    count = len(arrivals.instants)
    if not count:
        raise ConfigError(f"scenario {scenario.name!r}: not one request arrives in {arrivals.seconds:g} s at these rates")
    drawn = draw_rows(_RowCount(rows), count, row_seed)
    # The fourth child of the seed: the simulator has the first three.
    random = default_rng(SeedSequence(seed).spawn(4)[3])
    shares = np.array([asker.share for asker in scenario.askers])
    asker = random.choice(len(shares), size=count, p=shares / shares.sum())
    return Run(scenario, describe(law), arrivals, drawn, asker)


def read_trace(path: Path | str, speed: float) -> Workload:
    """Recorded arrivals, replayed ``speed`` times as fast; see `cascade.simulation.traces` for the formats."""
    return parse_workload(f"trace:{path},speed={speed:g}")


def describe(workload: Workload) -> str:
    """A law in the grammar of `cascade.simulation.workload`, as far as that can say it."""
    if isinstance(workload, WarmedUp):
        return f"step:{workload.rate:g}@{workload.seconds:g} then {describe(workload.law)}"
    if isinstance(workload, PoissonPath):
        if all(segment.start == segment.end for segment in workload.segments):
            return "step:" + ",".join(f"{segment.start:g}@{segment.seconds:g}" for segment in workload.segments)
        return "ramp:" + ",".join(f"{part.start:g}-{part.end:g}@{part.seconds:g}" for part in workload.segments)
    if isinstance(workload, Burst):
        calm, burst = zip(workload.rates, workload.sojourns_s, strict=True)
        return f"burst:{calm[0]:g}@{calm[1]:g},{burst[0]:g}@{burst[1]:g}"
    if isinstance(workload, Diurnal):
        return f"diurnal:{workload.low:g}-{workload.high:g}@{workload.period_s:g}"
    return "recorded"


@dataclass(frozen=True)
class WarmedUp:
    """Poisson arrivals of one rate, as the phase `WARM_UP`, before another law begins."""

    rate: float
    """Per second."""
    seconds: float
    """Of the warm-up."""
    law: Workload

    @property
    def length_s(self) -> float | None:
        """Of both."""
        return None if self.law.length_s is None else self.seconds + self.law.length_s

    def draw(self, seconds: float, random: Generator) -> Arrivals:
        """See `Workload`."""
        first = PoissonPath((level(WARM_UP, self.rate, self.seconds),)).draw(min(self.seconds, seconds), random)
        if seconds <= self.seconds:
            return first
        then = self.law.draw(seconds - self.seconds, random)
        return Arrivals(
            np.concatenate([first.instants, self.seconds + then.instants]),
            seconds,
            (WARM_UP, *then.phases),
            np.concatenate([[0.0], self.seconds + then.edges]),
            np.concatenate([[0], 1 + then.labels]),
        )


# -- the laws ----------------------------------------------------------------------------------------------------------


def _path(first_rate: float, scale: float, segments: Sequence[Segment]) -> Workload:
    whole = [level(WARM_UP, first_rate, WARM_UP_S), *segments]
    return PoissonPath(tuple(Segment(part.name, part.seconds * scale, part.start, part.end) for part in whole))


def _steady(multiple: float, unit: float, _stage0: float, scale: float) -> Workload:
    seconds = LONG_STEADY_S if EFFICIENT[0] <= multiple <= EFFICIENT[1] else STEADY_S
    return _path(multiple * unit, scale, [level("steady", multiple * unit, seconds)])


def _saturation(_unit: float, stage0: float, scale: float) -> Workload:
    return _path(SATURATION * stage0, scale, [level("saturation", SATURATION * stage0, 12)])


def _step(unit: float, _stage0: float, scale: float) -> Workload:
    low, high = 0.5 * unit, 8 * unit
    return _path(low, scale, [level("before", low, 8), level("load", high, 10), level("after", low, 10)])


def _spike(unit: float, _stage0: float, scale: float) -> Workload:
    return _path(unit, scale, [level("before", unit, 4), level("spike", 10 * unit, 0.5), level("after", unit, 8)])


def _ramp(unit: float, _stage0: float, scale: float) -> Workload:
    rates = np.linspace(0.5 * unit, 10 * unit, RAMP_PIECES + 1).tolist()
    seconds = 10 / RAMP_PIECES
    pieces = list(enumerate(pairwise(rates), start=1))
    up = [Segment(f"up {place}", seconds, low, high) for place, (low, high) in pieces]
    down = [Segment(f"down {place}", seconds, high, low) for place, (low, high) in reversed(pieces)]
    return _path(rates[0], scale, up + down)


def _burst(unit: float, _stage0: float, scale: float) -> Workload:
    law = Burst((unit, 8 * unit), (4 * scale, 2 * scale), length_s=30 * scale)
    return WarmedUp(unit, WARM_UP_S * scale, law)


def _soak(unit: float, stage0: float, scale: float) -> Workload:
    rate = 0.9 * min(stage0, 8 * unit)
    seconds = 1800 / SOAK_PIECES
    return _path(rate, scale, [level(f"part {place + 1}", rate, seconds) for place in range(SOAK_PIECES)])


def _day(unit: float, _stage0: float, scale: float) -> Workload:
    law = Diurnal(0.5 * unit, 8 * unit, 30 * scale, length_s=60 * scale)
    return WarmedUp(0.5 * unit, WARM_UP_S * scale, law)


def _classes(unit: float, stage0: float, scale: float) -> Workload:
    return _path(6 * unit, scale, [level("degraded", 6 * unit, 12), level("shedding", SATURATION * stage0, 8)])


def _deadlines(unit: float, _stage0: float, scale: float) -> Workload:
    return _path(4 * unit, scale, [level("steady", 4 * unit, 15)])


POLITE, FLOODING = 0.3, 8.0
"""Multiples of the top stage's capacity that the two tenants ask for."""


def _tenants(unit: float, _stage0: float, scale: float) -> Workload:
    rate = (POLITE + FLOODING) * unit
    return _path(rate, scale, [level("steady", rate, 20)])


def _storm(_unit: float, stage0: float, scale: float) -> Workload:
    low, high = 0.5 * stage0, 1.5 * stage0  # and what is turned away comes up to three times more
    return _path(low, scale, [level("before", low, 5), level("storm", high, 3), level("after", low, 8)])


_ALL = (
    *(
        Scenario(f"steady-{multiple:g}", f"{multiple:g} times what the top stage can do", partial(_steady, multiple))
        for multiple in STEADY
    ),
    Scenario("saturation", f"{SATURATION:g} times what stage 0 can do: some must be turned away", _saturation),
    Scenario("step", "0.5 to 8 times the top stage and back: degrades at once, recovers at once", _step),
    Scenario("spike", "ten times as much for half a second", _spike),
    Scenario("ramp", "0.5 to 10 times the top stage and back: the way down is the way up", _ramp),
    Scenario("burst", "two rates, 1 and 8 times the top stage, held for random times", _burst),
    Scenario("soak", "half an hour of degraded service: nothing may drift", _soak),
    Scenario("trace", "a recorded trace, or two synthetic days", _day),
    Scenario(
        "classes",
        "four classes in equal parts: the least important give way first",
        _classes,
        tuple(Asker(0.25, priority=priority) for priority in (1, 2, 3, 4)),
    ),
    Scenario(
        "deadlines",
        "some are in a hurry",
        _deadlines,
        (Asker(0.4, deadline_s=0.25), Asker(0.6, deadline_s=1.0)),
    ),
    Scenario(
        "tenants",
        "one tenant floods, the other one must not notice",
        _tenants,
        (Asker(POLITE, tenant="polite"), Asker(FLOODING, tenant="flooding")),
    ),
    Scenario("storm", "half as much again as stage 0 can do for 3 s; who is turned away asks again", _storm, retries=3),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
SHORT_SET = tuple(
    name for name in SCENARIOS if name.startswith("steady-") or name in ("saturation", "step", "spike", "ramp", "storm")
)
"""What proves graceful degradation in a few minutes."""
