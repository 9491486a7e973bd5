"""A series of load tests: which scenarios each system goes through, in what order, and what becomes of a run that fails.

Knows neither Locust nor servers: both come as functions, so the order, the repeats of invalid runs and what is given up can
be tested without them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cascade.errors import ConfigError
from loadtests.capacity import Measured
from loadtests.scenarios import SCENARIOS, SHORT_SET

CARRIED_OUT, INVALID = 0, 3
"""Exit codes of one run; any other one says that it was not carried out."""
REPEATS_OF_INVALID = 2

SMOKE_SET = ("steady-0.5", "steady-8", "step")
SMOKE_SCALE = 0.2
"""Stretches the scenarios of the smoke set, and the windows in which capacity is measured."""
BASELINE_SET = ("steady-0.5", "steady-2", "steady-8", "saturation")
"""What the baselines go through: enough for their curve."""
SOME_CLAUSES = "abg"
"""Clauses of the verdict that a short set, or scenarios that were chosen one by one, can be judged by."""
SETS: dict[str, tuple[str, ...]] = {"smoke": SMOKE_SET, "short": SHORT_SET, "full": tuple(SCENARIOS)}


@dataclass(frozen=True)
class Job:
    """One run of one scenario against one system.

    Attributes:
        system: whom.
        scenario: what.
        folder: for everything that the series writes about the system.
        attempt: 1, or more after invalid runs.
    """

    system: str
    scenario: str
    folder: Path
    attempt: int = 1

    @property
    def record(self) -> Path:
        """Where its recording goes."""
        return self.folder / f"{self.scenario}.npz"


class Idling(Protocol):
    """A server between two runs."""

    def wait_until_idle(self) -> bool:
        """Wait until no queue is left; False if one does not go away."""
        ...


S = TypeVar("S", bound=Idling)


@dataclass(frozen=True)
class Means(Generic[S]):
    """How things are done.

    Attributes:
        start: starts a system and stops it again.
        gauge: measures what the product can do.
        gauge_again: the same of its top stage alone, requests a second, after its runs.
        play: carries one run out; its exit code.
        say: tells a person.
    """

    start: Callable[[str], AbstractContextManager[S]]
    gauge: Callable[[S], Measured]
    gauge_again: Callable[[S], float]
    play: Callable[[Job, S, Measured], int]
    say: Callable[[str], None]


@dataclass
class Series:
    """What came of a series.

    Attributes:
        measured: what the rates were multiples of.
        unit_rate_after: requests a second that the product's top stage could do after its runs; None if that is not known.
        records: recordings by system, in the order of the runs; invalid ones are among them.
        invalid: runs whose generator never kept up.
        broken: runs that were not carried out.
    """

    measured: Measured
    unit_rate_after: float | None = None
    records: dict[str, list[Path]] = field(default_factory=dict)
    invalid: list[Job] = field(default_factory=list)
    broken: list[Job] = field(default_factory=list)


def scenarios_by_system(chosen: str, systems: Sequence[str], candidate: str) -> dict[str, tuple[str, ...]]:
    """What each system goes through.

    Args:
        chosen: name of a set, or names of scenarios with commas.
        systems: which of them, in any order.
        candidate: the one that the verdict is about: it goes through the whole set, first.

    Raises:
        ConfigError: there is no such set or scenario, or the candidate is not among the systems.
    """
    whole = SETS.get(chosen) or tuple(name.strip() for name in chosen.split(","))
    if unknown := [name for name in whole if name not in SCENARIOS]:
        raise ConfigError(
            f"--set must be one of {', '.join(SETS)}, or scenarios of {', '.join(SCENARIOS)}; got {', '.join(unknown)!r}"
        )
    if candidate not in systems:
        raise ConfigError(f"the candidate must be one of --systems {','.join(systems)}, got {candidate!r}")
    some = tuple(name for name in BASELINE_SET if name in whole)
    return {candidate: whole} | {name: some for name in systems if some and name != candidate}


def carry_out(
    plan: Mapping[str, Sequence[str]], means: Means[S], folder: Path, product: str, measured: Measured | None = None
) -> Series:
    """Run every scenario against every system, one system after the other.

    All systems get the same rates: multiples of what the product can do, measured in place when it has started. Where it is
    not the first of the systems it is started for that alone.

    Args:
        plan: scenarios by system, in order.
        means: how.
        folder: where each system gets a folder.
        product: the system that is measured.
        measured: from an earlier measurement, instead of a new one.
    """
    if measured is None and next(iter(plan)) != product:
        with means.start(product) as server:
            measured = means.gauge(server)
    series: Series | None = None if measured is None else Series(measured)
    total, number = sum(map(len, plan.values())), 0
    for system, scenarios in plan.items():
        with means.start(system) as server:
            if series is None:
                series = Series(means.gauge(server))
            for scenario in scenarios:
                number += 1
                means.say(f"[bold]{number}/{total}[/bold] {system}: {scenario}")
                _run(Job(system, scenario, folder / system), server, means, series)
            if system == product and measured is None:
                series.unit_rate_after = means.gauge_again(server)
    if series is None:
        raise ConfigError("there is no system to test")
    return series


def _run(job: Job, server: S, means: Means[S], series: Series) -> None:
    """One scenario, repeated while the generator does not keep up."""
    for attempt in range(1, REPEATS_OF_INVALID + 2):
        if not server.wait_until_idle():
            means.say(f"[red]{job.system} still has a queue from before: {job.scenario} begins all the same[/red]")
        job = Job(job.system, job.scenario, job.folder, attempt)
        code = means.play(job, server, series.measured)
        if code != INVALID:
            break
        again = "once more" if attempt <= REPEATS_OF_INVALID else "given up"
        means.say(f"[bold red]INVALID[/bold red]: the generator could not keep up with {job.scenario}; {again}")
    if code == INVALID:
        series.invalid.append(job)
    elif code != CARRIED_OUT:
        means.say(f"[bold red]{job.scenario} was not carried out[/bold red]: exit code {code}, see {job.folder}")
        series.broken.append(job)
        return
    series.records.setdefault(job.system, []).append(job.record)


def exit_code(series: Series, passed: bool) -> int:
    """0 passed; 3 a generator never kept up, so nothing is proved; 1 failed, or something was not carried out."""
    if series.broken:
        return 1
    if series.invalid:
        return INVALID
    return 0 if passed else 1
