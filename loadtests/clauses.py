"""The clauses of the verdict: each reads recorded runs and says whether one promise was kept. Prints and draws nothing.

A clause whose run is missing has failed: what was not shown is not proved. Point estimates decide where a promise names a
number; where it says *equal* or *no more than noise*, a one-sided test at 99 % does.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from math import hypot

import numpy as np
from scipy.stats import binomtest, nbinom, norm

from loadtests.evidence import (
    ACHIEVED,
    FEWEST,
    SLO,
    TRIFLE,
    Clause,
    Evidence,
    Finding,
    Run,
    clause,
    few,
    generator_trouble,
    settled,
)
from loadtests.phases import CONFIDENCE, Bools, PhaseFigures, refused, row_adjusted
from loadtests.recovery import calm, recovered, storm_over
from loadtests.scenarios import EFFICIENT

QUIET = 0.95
"""Up to this part of stage 0's rate nobody is turned away."""
LEAST_EFFICIENCY = 0.90
"""E at the loads of `EFFICIENT`."""
GOODPUT = 0.9
"""Of stage 0's rate, in on-time answers a second, when more than that is offered."""
COMPARED = ("steady-0.5", "steady-2", "steady-8")
"""Scenarios that every baseline must have gone through."""
Z = float(norm.ppf(CONFIDENCE))


def requests_needed(late: int) -> int:
    """Requests with ``late`` of them not on time from which `SLO` is proved at `CONFIDENCE`: 459 for none, 662 for one.

    The smallest n with P(Binomial(n, 1 - SLO) <= late) <= 1 - CONFIDENCE.
    """
    return int(nbinom.ppf(CONFIDENCE, late + 1, 1 - SLO)) + late + 1


def on_time(evidence: Evidence) -> Clause:
    """(a) at least 99 % of the offered are answered on time in every phase up to stage 0's rate."""
    limits, judged = evidence.limits, list(_phases_up_to(evidence, 1.0))
    missed, proved, shares = [], 0, []
    for run, phase, rows in judged:
        offered, timely = int(rows.sum()), int(run.recording.on_time[rows].sum())
        shares.append((timely / offered, f"{timely / offered:.2%} ({run.scenario}, {phase.name}, {offered:,} requests)"))
        proved += offered >= requests_needed(offered - timely)
        if timely / offered < SLO:
            missed.append(shares[-1])
    what = f"on time in each phase up to {limits.stage0_rate:,.0f}/s"
    if not judged:
        return Clause("a", what, False, "no run with such a phase", f">= {SLO:.0%}")
    if missed:
        return Clause("a", what, False, few([text for _, text in sorted(missed)]), f">= {SLO:.0%}")
    told = f"lowest {min(shares)[1]}"
    if proved < len(judged):
        told += f"; proved at {CONFIDENCE:.0%} confidence in {proved} of {len(judged)}, the others have too few requests"
    return Clause("a", what, True, told, f">= {SLO:.0%}")


def not_rejected(evidence: Evidence) -> Clause:
    """(b) nobody is turned away, not even for a first attempt, below 0.95 of stage 0's rate."""
    judged = list(_phases_up_to(evidence, QUIET))
    broken, requests = [], 0
    for run, phase, rows in judged:
        recording, requests = run.recording, requests + int(rows.sum())
        turned, lost = int(refused(recording)[rows].sum()), int((~recording.answered)[rows].sum())
        retries = int((recording.attempts[rows] - 1).sum())
        if lost or retries:
            text = f"{turned} refused, {lost - turned} without an answer, {retries} retried"
            broken.append(f"{run.scenario}, {phase.name}: {text} of {int(rows.sum()):,}")
    title = f"no rejection below {QUIET * evidence.limits.stage0_rate:,.0f}/s"
    seen = few(broken) if broken else f"none in {requests:,} requests" if judged else "no run with such a phase"
    return Clause("b", title, bool(judged) and not broken, seen, "not one")


def graceful(evidence: Evidence) -> Clause:
    """(c) accuracy falls with load and never below stage 0's; E at least 0.90 from 2x to 8x."""
    findings = [_monotone(evidence), _above_stage0(evidence), _efficient(evidence)]
    low, high = EFFICIENT
    wanted = f"no rise beyond noise; never below stage 0; E >= {LEAST_EFFICIENCY} at {low:g}x-{high:g}x"
    return clause("c", "accuracy gives way to load", findings, wanted)


def saturated(evidence: Evidence) -> Clause:
    """(d) beyond stage 0's rate the rest is served in time."""
    rate = evidence.limits.stage0_rate
    findings = []
    for run in evidence.named("saturation"):
        phase = run.steady
        if phase is None or phase.offered_per_s <= rate:
            findings.append((False, f"only {0 if phase is None else phase.offered_per_s:,.0f}/s offered"))
            continue
        goodput = phase.slo_attainment * phase.offered_per_s
        rows = run.mask(phase) & run.recording.answered
        share = (
            float(np.quantile((run.recording.latency_s / run.recording.deadline_s)[rows], 0.99)) if rows.any() else np.inf
        )
        text = (
            f"{goodput:,.0f}/s on time of {phase.offered_per_s:,.0f}/s ({goodput / rate:.2f} C0), p99 {share:.2f} deadlines"
        )
        findings.append((goodput >= GOODPUT * rate and share <= 1.0, text))
    findings = findings or [(False, "no saturation run")]
    return clause("d", f"beyond {rate:,.0f}/s", findings, f"goodput >= {GOODPUT} C0, p99 within the deadline")


def valid(evidence: Evidence) -> Clause:
    """(g) the generator kept up in every run, of every system."""
    broken, lags = [], []
    for system, runs in evidence.runs.items():
        for run in runs:
            lags.append(float(np.quantile(run.recording.lag_s, 0.99)) if len(run.recording.lag_s) else np.inf)
            if trouble := generator_trouble(run):
                broken.append(f"{system}, {run.scenario}: {trouble}")
    text = few(broken) if broken else f"send lag p99 at most {1e3 * max(lags, default=np.inf):.1f} ms in {len(lags)} runs"
    wanted = f"p99 of send lag <= 20 ms or a tenth of the deadline, rate within {ACHIEVED:.0%}"
    return Clause("g", "the generator was valid", bool(lags) and not broken, text, wanted)


def compared(evidence: Evidence) -> Clause:
    """(h) the baselines went through the same scenarios."""
    wanted = [*COMPARED, *(["saturation"] if evidence.named("saturation") else [])]
    missing = []
    for system in evidence.baselines:
        there = {run.scenario: run for run in evidence.runs.get(system, ())}
        lacks = [name for name in wanted if name not in there or generator_trouble(there[name]) is not None]
        missing += [f"{system}: no valid run of {', '.join(lacks)}"] if lacks else []
    text = few(missing) or f"{', '.join(evidence.baselines)} at {', '.join(wanted)}"
    return Clause("h", "baselines, same script", not missing and bool(evidence.baselines), text, "each at 0.5x, 2x, 8x")


CLAUSES: dict[str, Callable[[Evidence], Clause]] = {
    "a": on_time,
    "b": not_rejected,
    "c": graceful,
    "d": saturated,
    "e": recovered,
    "f": calm,
    "g": valid,
    "h": compared,
    "r": storm_over,
}
"""All of them, by letter."""


def _phases_up_to(evidence: Evidence, share: float) -> Iterator[tuple[Run, PhaseFigures, Bools]]:
    """Phases of the candidate that were offered at most this share of stage 0's rate, with their requests."""
    for run in evidence.own:
        calm_rows = settled(run.recording, evidence.limits.stage0_rate)
        for phase in run.phases:
            rows = run.mask(phase) & calm_rows
            if phase.offered_per_s <= share * evidence.limits.stage0_rate and rows.any():
                yield run, phase, rows


def _monotone(evidence: Evidence) -> Finding:
    """The luck of the rows is taken out: it would hide rises, and make some."""
    points = []
    for run, phase in evidence.steady():
        rows = run.mask(phase) & run.recording.on_time
        if rows.sum() >= FEWEST:
            known = evidence.limits.known(phase.offered_per_s)
            points.append((run.scenario, *row_adjusted(run.recording.correct[rows], run.recording.row[rows], known)))
    if len(points) < 2:
        return False, f"{len(points)} steady runs, two are needed"
    rises = [
        f"{later} is {100 * (high - low):.1f} points above {earlier}"
        for (earlier, low, low_se), (later, high, high_se) in combinations(points, 2)
        if high - low > max(TRIFLE, Z * hypot(low_se, high_se))
    ]
    return not rises, few(rises) or f"falls from {points[0][1]:.1%} to {points[-1][1]:.1%}"


def _above_stage0(evidence: Evidence) -> Finding:
    """McNemar's exact test on the on-time answers of each phase: right here and wrong at stage 0, against the reverse."""
    below = []
    for run in evidence.own:
        first = evidence.limits.table.served[run.recording.row, 0]
        for phase in run.phases:
            rows = run.mask(phase) & run.recording.on_time
            won, lost = int((run.recording.correct & ~first)[rows].sum()), int((~run.recording.correct & first)[rows].sum())
            if lost > won and binomtest(won, won + lost, alternative="less").pvalue < 1 - CONFIDENCE:
                below.append(f"{run.scenario}, {phase.name}: {100 * (lost - won) / rows.sum():.1f} points below stage 0")
    return not below, few(below) or "never below stage 0"


def _efficient(evidence: Evidence) -> Finding:
    low, high = EFFICIENT
    points = [(run, phase) for run, phase in evidence.steady() if low <= _multiple(run.scenario) <= high]
    missing = {f"steady-{low:g}", f"steady-{high:g}"} - {run.scenario for run, _ in points}
    if missing:
        return False, f"no run of {', '.join(sorted(missing))}"
    told, good = [], True
    for run, phase in points:
        if phase.efficiency is None:
            told.append(f"nothing to win at {run.scenario}")
            continue
        good &= phase.efficiency >= LEAST_EFFICIENCY
        told.append(f"{phase.efficiency:.2f}±{phase.efficiency_se:.2f} at {_multiple(run.scenario):g}x")
    return good, f"E {', '.join(told)}"


def _multiple(scenario: str) -> float:
    """The multiple in the name of a steady scenario; nan for another one."""
    kind, _, number = scenario.partition("-")
    return float(number) if kind == "steady" else np.nan
