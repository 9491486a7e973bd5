"""What the clauses of the verdict read: runs with their figures, and whether a run can be trusted. Judges no system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loadtests.generator import lag_limit_s
from loadtests.phases import Bools, Limits, PhaseFigures, phase_rates
from loadtests.record import Recording
from loadtests.scenarios import WARM_UP

SLO = 0.99
"""Share of the requests offered that must be answered on time, up to the rate that stage 0 can take."""
SETTLING_S = 2.0
"""After this long an overload, or a step, must have left no trace."""
FEWEST = 20
"""Requests that say anything at all."""
MANY = 500
"""A phase of as many requests must have been sent on time by itself; fewer are judged with their run."""
TRIFLE = 0.01
"""Accuracy below which a difference is nobody's concern. It may be beyond chance: with the luck of the rows taken out, a
tenth of it can be."""
ACHIEVED = 0.02
"""Relative difference between the rate that was drawn and the one that was sent."""


@dataclass(frozen=True)
class Clause:
    """One promise.

    Attributes:
        letter: which.
        title: in a few words.
        passed: whether it was kept; None if it was not asked for.
        measured: what was seen.
        wanted: what should be.
    """

    letter: str
    title: str
    passed: bool | None
    measured: str
    wanted: str


@dataclass(frozen=True, eq=False)
class Run:
    """A recording with its figures, and those that the simulator predicts for the same requests."""

    recording: Recording
    phases: tuple[PhaseFigures, ...]
    predicted: tuple[PhaseFigures, ...] | None = None

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return str(self.recording.meta["scenario"])

    @property
    def steady(self) -> PhaseFigures | None:
        """The longest phase, if the run is one of constant load."""
        constant = self.scenario.startswith("steady-") or self.scenario == "saturation"
        return max(self.phases, key=lambda phase: phase.seconds) if constant and self.phases else None

    def mask(self, phase: PhaseFigures) -> Bools:
        """[N] the requests of a phase."""
        return np.asarray(self.recording.phase == self.recording.arrivals.phases.index(phase.name))

    def stretches(self) -> list["Stretch"]:
        """The stretches of time in order, without the warm-up."""
        arrivals, scheduled_s = self.recording.arrivals, self.recording.scheduled_s
        return [
            Stretch(start_s, end_s, np.asarray((scheduled_s >= start_s) & (scheduled_s < end_s)))
            for (start_s, end_s), phase in zip(pairwise(arrivals.edges.tolist()), arrivals.labels, strict=True)
            if arrivals.phases[phase] != WARM_UP
        ]


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a run between two changes of its load."""

    start_s: float
    end_s: float
    rows: Bools
    """[N] the requests that come in it."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return float(self.rows.sum()) / (self.end_s - self.start_s)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that was recorded."""

    candidate: str
    baselines: tuple[str, ...]
    runs: Mapping[str, Sequence[Run]]
    limits: Limits

    @property
    def own(self) -> Sequence[Run]:
        """The runs of the candidate."""
        return self.runs.get(self.candidate, ())

    def named(self, *scenarios: str) -> list[Run]:
        """The candidate's runs of these scenarios."""
        return [run for run in self.own if run.scenario in scenarios]

    def steady(self, system: str | None = None) -> list[tuple[Run, PhaseFigures]]:
        """Runs of constant load and their steady phase, by rising rate."""
        runs = self.own if system is None else self.runs.get(system, ())
        found = [(run, run.steady) for run in runs]
        return sorted(((run, phase) for run, phase in found if phase is not None), key=lambda pair: pair[1].offered_per_s)


Finding = tuple[bool, str]
"""Whether it is as it should be, and what was measured."""


def few(texts: Sequence[str]) -> str:
    """The first three of a list."""
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def clause(letter: str, title: str, findings: Sequence[Finding], wanted: str) -> Clause:
    """A clause of several findings, all of which must be as they should."""
    return Clause(letter, title, all(good for good, _ in findings), "; ".join(text for _, text in findings), wanted)


def settled(recording: Recording, stage0_rate: float) -> Bools:
    """[N] False for requests that come within `SETTLING_S` of the end of an overload: they belong to its recovery."""
    arrivals, rates = recording.arrivals, phase_rates(recording)
    calm = np.ones(len(recording.scheduled_s), dtype=np.bool_)
    for stretch, phase in enumerate(arrivals.labels):
        if rates[phase] > stage0_rate:
            end_s = arrivals.edges[stretch + 1]
            calm &= ~((recording.scheduled_s >= end_s) & (recording.scheduled_s < end_s + SETTLING_S))
    return calm


def generator_trouble(run: Run) -> str | None:
    """Why a run says nothing about the server; None if it does."""
    recording, drawn = run.recording, len(run.recording.arrivals.instants)
    if not drawn or not len(recording.scheduled_s):
        return "no requests"
    sent = int((recording.scheduled_s + recording.lag_s < recording.arrivals.seconds).sum())
    if abs(sent / drawn - 1) > ACHIEVED:
        return f"{sent:,} of {drawn:,} requests sent in the time"
    parts = [("", np.ones(len(recording.lag_s), dtype=np.bool_))]
    parts += [(f" in {phase.name}", run.mask(phase)) for phase in run.phases if phase.offered >= MANY]
    for where, rows in parts:
        lag_s = float(np.quantile(recording.lag_s[rows], 0.99))
        if not lag_s <= lag_limit_s(float(recording.deadline_s.min())):
            return f"send lag p99 {1e3 * lag_s:.0f} ms{where}"
    return None
