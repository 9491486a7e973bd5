"""Clauses about time: recovery after a step, a ramp and a retry storm; calm under steady load. Prints and draws nothing."""

from math import hypot, sqrt

import numpy as np
from scipy.stats import chi2, norm

from loadtests.evidence import FEWEST, SETTLING_S, SLO, TRIFLE, Clause, Evidence, Finding, Run, Stretch, clause, few
from loadtests.phases import CONFIDENCE, Floats, Limits, right_on_time, row_adjusted
from loadtests.record import Recording

SETTLED_REQUESTS = 200
"""Requests that are looked at from then on: more would let a slow recovery hide behind what came after it. Two lost ones are
a point."""
BACK = 0.02
"""Accuracy that may still be missing then."""
EMPTY_RATIO, EMPTY_SHARE = 3.0, 0.2
"""A queue cannot be seen from outside, the wait in it can: the p99 of what comes then is at most this many times the p99
before the step, or at most this share of the deadline, which is what admission lets anybody wait for stage 0."""
BIN_S, STEADY_EXCESS, FEWEST_IN_BIN = 0.5, 0.05, 5
"""Width of the bins in which the share of the last stage is followed, its standard deviation beyond chance, and the answers
below which a bin says nothing."""


def recovered(evidence: Evidence) -> Clause:
    """(e) a step leaves no trace after 2 s; a ramp down retraces the ramp up."""
    findings = [_after_step(run, evidence.limits) for run in evidence.named("step", "spike")]
    if not evidence.named("step"):
        findings.append((False, "no step run"))
    findings += [_retraced(run, evidence.limits) for run in evidence.named("ramp")] or [(False, "no ramp run")]
    wanted = f"{SETTLING_S:g} s after a step within {BACK:.0%} and queues empty; ramp down as ramp up"
    return clause("e", "recovery, no hysteresis", findings, wanted)


def calm(evidence: Evidence) -> Clause:
    """(f) the mix of stages does not oscillate under steady load."""
    broken, most, seen = [], 0.0, 0
    for run, phase in evidence.steady():
        recording = run.recording
        answered = run.mask(phase) & recording.answered & (recording.stage >= 0)
        last = len(evidence.limits.table.stages) - 1
        levels = (("last-stage share", recording.stage == last), ("mean stage", recording.stage / max(last, 1)))
        for title, values in levels:
            excess, proved = excess_deviation(recording.scheduled_s[answered], np.asarray(values, np.float64)[answered])
            most, seen = max(most, excess if proved else 0.0), seen + 1
            if proved and excess >= STEADY_EXCESS:
                broken.append(f"{title} {excess:.3f} ({run.scenario})")
    text = few(broken) if broken else f"at most {most:.3f} beyond chance" if seen else "no steady run"
    wanted = f"s.d. in {BIN_S:g} s bins < {STEADY_EXCESS} beyond chance"
    return Clause("f", "no oscillation", bool(seen) and not broken, text, wanted)


def storm_over(evidence: Evidence) -> Clause:
    """(r) after a retry storm everything is as before within 2 s."""
    findings = []
    for run in evidence.named("storm"):
        recording, burst = run.recording, max(run.stretches(), key=lambda stretch: stretch.rate)
        after = np.flatnonzero(recording.scheduled_s >= burst.end_s + SETTLING_S)
        if len(after) < FEWEST:
            findings.append((False, f"only {len(after)} requests after the storm"))
            continue
        shares = [float(recording.on_time[rows].mean()) for rows in (after[:SETTLED_REQUESTS], after)]
        text = f"{shares[0]:.2%} of the first {min(len(after), SETTLED_REQUESTS)}, {shares[1]:.2%} of all {len(after):,}"
        findings.append((min(shares) >= SLO, text))
    findings = findings or [(False, "no storm run")]
    return clause("r", "retry storm", findings, f">= {SLO:.0%} on time from {SETTLING_S:g} s after the burst")


def excess_deviation(instants: Floats, values: Floats) -> tuple[float, bool]:
    """Standard deviation of the means of `BIN_S` bins beyond what independent values have, and whether it is beyond chance.

        sqrt(max(0, var(m_b) - s2 mean(1 / n_b))),   X2 = sum_b n_b (m_b - m)^2 / s2 ~ chi2(B - 1)

    For a share, s2 = p (1 - p) and this is the binomial dispersion test. At ten answers a bin chance alone puts the first
    figure above 0.05 now and then; therefore the test.

    Args:
        instants: [n] seconds.
        values: [n] of each answer.
    """
    if len(instants) == 0:
        return 0.0, False
    place = ((instants - instants[0]) / BIN_S).astype(np.intp)
    counts, sums = np.bincount(place).astype(np.float64), np.bincount(place, values)
    kept = counts >= FEWEST_IN_BIN
    variance = float(values.var())
    if kept.sum() < 3 or variance == 0.0:
        return 0.0, False
    counts, means = counts[kept], sums[kept] / counts[kept]
    statistic = float((counts * (means - np.average(means, weights=counts)) ** 2).sum()) / variance
    excess = sqrt(max(0.0, float(means.var(ddof=1)) - variance * float((1 / counts).mean())))
    return excess, bool(chi2.sf(statistic, len(counts) - 1) < 1 - CONFIDENCE)


def _after_step(run: Run, limits: Limits) -> Finding:
    """Rows before and after differ, and so would their accuracy: each is compared with the same row at rest."""
    recording, stretches = run.recording, run.stretches()
    before = np.flatnonzero(stretches[0].rows)
    later = np.flatnonzero(recording.scheduled_s >= stretches[-1].start_s + SETTLING_S)[:SETTLED_REQUESTS]
    if min(len(before), len(later)) < FEWEST:
        return False, f"{run.scenario}: only {len(before)} requests before and {len(later)} after it"
    missing = limits.rest_right[recording.row].astype(np.float64) - right_on_time(recording)
    lost = float(missing[later].mean() - missing[before].mean())
    error = hypot(*(float(missing[rows].std(ddof=1)) / sqrt(len(rows)) for rows in (before, later)))
    p99_s = [
        float(np.quantile(recording.latency_s[kept], 0.99)) if len(kept) else np.inf
        for kept in (rows[recording.answered[rows]] for rows in (before, later))
    ]
    deadline_s = float(np.median(recording.deadline_s[later]))
    empty = p99_s[1] <= max(EMPTY_RATIO * p99_s[0], EMPTY_SHARE * deadline_s)
    waits = f"p99 {1e3 * p99_s[0]:.0f} ms before and {1e3 * p99_s[1]:.0f} after"
    text = f"{run.scenario}: {-100 * lost:+.1f}±{100 * error:.1f} points, {waits}"
    return lost <= BACK and empty, text


def _retraced(run: Run, limits: Limits) -> Finding:
    """Mirrored pieces of the ramp, two-sided at 99 % over all of them (Bonferroni), each beside A* at its own rate."""
    recording, stretches = run.recording, run.stretches()
    half = len(stretches) // 2
    pairs = [
        (up, down)
        for up, down in zip(stretches[:half], stretches[::-1], strict=False)
        if min(up.rows.sum(), down.rows.sum()) >= FEWEST
    ]
    if not pairs:
        return False, "ramp: too few requests"
    z = float(norm.ppf(1 - (1 - CONFIDENCE) / 2 / len(pairs)))
    gaps, apart = [], 0
    for pair in pairs:
        (before, before_se), (after, after_se) = (_short(recording, piece, limits) for piece in pair)
        gaps.append(after - before)
        apart += abs(after - before) > max(TRIFLE, z * hypot(before_se, after_se))
    late = sum(
        recording.on_time[piece.rows].mean() < SLO
        for piece in stretches
        if piece.rate <= limits.stage0_rate and piece.rows.any()
    )
    widest = 100 * max(gaps, key=abs)
    text = f"ramp: down less up at most {widest:+.1f} points, {apart} of {len(pairs)} pairs beyond noise"
    return not apart and not late, text + (f", {late} pieces miss the SLO" if late else "")


def _short(recording: Recording, piece: Stretch, limits: Limits) -> tuple[float, float]:
    """Right answers on time less A* at the rate of a stretch, and the standard error."""
    right = right_on_time(recording)[piece.rows]
    value, error = row_adjusted(right, recording.row[piece.rows], limits.known(piece.rate))
    return value - limits.best(piece.rate), error
