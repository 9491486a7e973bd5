"""Recordings as an ideal ladder would have given them, and the same with one thing gone wrong.

The ladder of `difficulty_ladder` on machines of known capacity. The good server shares requests out as the fluid optimum
at the stretch's rate does, turns away what stage 0 cannot take, and answers within some tens of milliseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.fluid import Capacity, Fluid
from loadtests.phases import Limits
from loadtests.record import Recording
from loadtests.scenarios import SCENARIOS, WARM_UP, draw_run
from tests.calibration.judged_cases import difficulty_ladder

UNIT, STAGE0, DEADLINE_S = 40.0, 500.0, 1.0
ROWS_PER_S = (2000.0, 400.0, UNIT)
TABLE = difficulty_ladder(4000)
REST = TABLE.walk([0.0, 0.0, 0.0])
SCENARIO_SET = (
    *(f"steady-{multiple}" for multiple in ("0.5", "1", "2", "4", "6", "8", "10")),
    "saturation",
    "step",
    "ramp",
    "storm",
)
BASELINE_SET = ("steady-0.5", "steady-2", "steady-8", "saturation")
Rows = NDArray[np.bool_]


def limits() -> Limits:
    return Limits(TABLE, ROWS_PER_S, stage0_rate=STAGE0, unit_rate=UNIT)


def blank(scenario: str, system: str, seed: int = 1) -> Recording:
    """Every request sent at its instant, and none answered."""
    run = draw_run(SCENARIOS[scenario], unit_rate=UNIT, stage0_rate=STAGE0, seed=seed, rows=TABLE.rows)
    count = len(run.row)
    askers = run.scenario.askers
    return Recording(
        scheduled_s=run.arrivals.instants,
        lag_s=np.full(count, 0.001),
        latency_s=np.full(count, np.nan),
        status=np.zeros(count, np.int16),
        stage=np.full(count, -1, np.int8),
        reason=np.full(count, "", "U16"),
        degraded=np.zeros(count, np.bool_),
        price=np.full(count, np.nan),
        cost=np.full(count, np.nan),
        correct=np.zeros(count, np.bool_),
        row=run.row.astype(np.int32),
        priority=np.array([askers[each].priority or 1 for each in run.asker], np.int8),
        tenant=np.array([askers[each].tenant for each in run.asker], "U16"),
        deadline_s=np.array([askers[each].deadline_s or DEADLINE_S for each in run.asker]),
        attempts=np.ones(count, np.int8),
        phase=run.arrivals.phase.astype(np.int16),
        arrivals=run.arrivals,
        meta={"system": system, "scenario": scenario, "seed": seed, "stages": list(TABLE.stages)},
    )


def answer(recording: Recording, stage: NDArray[np.intp], there: Rows, latency_s: NDArray[np.float64]) -> Recording:
    """Answers at given stages, [N], for the requests ``there``, which is all that is known of them."""
    stage = np.where(there, stage, -1)
    kept = np.maximum(stage, 0)
    return replace(
        recording,
        latency_s=np.where(there, latency_s, 0.002),
        status=np.where(there, 200, 503).astype(np.int16),
        stage=stage.astype(np.int8),
        reason=np.where(there, "confident", "").astype("U16"),
        degraded=there & (kept < REST.exits[recording.row]),
        cost=np.where(there, np.cumsum(TABLE.cost)[kept], np.nan),
        correct=there & TABLE.served[recording.row, kept],
    )


@cache
def fluid() -> Fluid:
    return Fluid(TABLE)


@cache
def good(scenario: str, system: str = "cascade", seed: int = 1) -> Recording:
    """An ideal server: the fluid optimum in every stretch."""
    recording = blank(scenario, system, seed)
    random = np.random.default_rng(seed + 100)
    stage = np.zeros(len(recording.row), np.intp)
    there = np.ones(len(recording.row), np.bool_)
    arrivals = recording.arrivals
    capacity = Capacity(np.array([STAGE0, *ROWS_PER_S[1:]]))
    for start_s, end_s in zip(arrivals.edges, arrivals.edges[1:], strict=False):
        own = np.flatnonzero((recording.scheduled_s >= start_s) & (recording.scheduled_s < end_s))
        point = fluid().at(len(own) / (end_s - start_s), capacity)
        shares = np.array([share for _, share in point.mix])
        gear = random.choice(len(shares) + 1, size=len(own), p=np.append(shares, point.shed) / (shares.sum() + point.shed))
        there[own] = gear < len(shares)
        exits = np.stack([used.exits for used, _ in point.mix])
        stage[own] = exits[np.minimum(gear, len(shares) - 1), recording.row[own]]
    return answer(recording, stage, there, 0.01 + 0.02 * random.gamma(2.0, size=len(stage)))


@cache
def overwhelmed(scenario: str, system: str, seed: int = 1) -> Recording:
    """A baseline: every row goes on as if nothing were loaded, or to the top, and what that cannot take gets nothing."""
    recording = blank(scenario, system, seed)
    random = np.random.default_rng(seed + 200)
    exits = np.full(TABLE.rows, 2) if system == "top" else REST.exits
    rate = len(recording.row) / recording.arrivals.seconds
    share = min(1.0, UNIT / rate / float((exits == 2).mean()))
    there = (exits[recording.row] < 2) | (random.random(len(recording.row)) < share)
    return answer(recording, exits[recording.row], there, 0.05 + 0.05 * random.gamma(2.0, size=len(recording.row)))


def all_good() -> dict[str, list[Recording]]:
    """A complete series that keeps every promise."""
    return {
        "cascade": [good(name) for name in SCENARIO_SET],
        "top": [overwhelmed(name, "top") for name in BASELINE_SET],
        "static": [overwhelmed(name, "static") for name in BASELINE_SET],
    }


def with_change(scenario: str, change: Callable[[Recording], Recording]) -> dict[str, list[Recording]]:
    """The same with one run of the candidate changed."""
    runs = all_good()
    place = SCENARIO_SET.index(scenario)
    runs["cascade"][place] = change(runs["cascade"][place])
    return runs


def in_phase(recording: Recording, *names: str) -> Rows:
    """[N] the requests of these phases."""
    return np.isin(recording.phase, [place for place, name in enumerate(recording.arrivals.phases) if name in names])


def concluding(recording: Recording) -> Rows:
    """[N] the requests after the warm-up."""
    return ~in_phase(recording, WARM_UP)


def some(rows: Rows, share: float) -> Rows:
    """A part of some requests, evenly spread over them."""
    chosen = np.flatnonzero(rows)
    kept = np.zeros(len(rows), np.bool_)
    kept[chosen[np.floor(np.arange(len(chosen)) * share) > np.floor((np.arange(len(chosen)) - 1) * share)]] = True
    return kept


def slow(rows: Callable[[Recording], Rows], latency_s: float) -> Callable[[Recording], Recording]:
    """These requests take so long."""
    return lambda recording: replace(recording, latency_s=np.where(rows(recording), latency_s, recording.latency_s))


def refuse(rows: Callable[[Recording], Rows]) -> Callable[[Recording], Recording]:
    """These requests are turned away."""

    def change(recording: Recording) -> Recording:
        kept = recording.answered & ~rows(recording)
        return answer(recording, recording.stage.astype(np.intp), kept, recording.latency_s)

    return change


def at_stage(rows: Callable[[Recording], Rows], stage: int) -> Callable[[Recording], Recording]:
    """These requests are answered at one stage."""

    def change(recording: Recording) -> Recording:
        moved = np.where(rows(recording), stage, recording.stage)
        return answer(recording, moved, recording.answered, recording.latency_s)

    return change


def labelled(rows: Callable[[Recording], Rows], correct: bool) -> Callable[[Recording], Recording]:
    """The answers to these requests are all right, or all wrong, whatever the stage knows."""
    return lambda recording: replace(
        recording, correct=np.where(rows(recording), recording.answered & correct, recording.correct)
    )


def failing(clauses: Sequence[object]) -> set[str]:
    """Letters of the clauses that failed."""
    return {clause.letter for clause in clauses if clause.passed is False}
