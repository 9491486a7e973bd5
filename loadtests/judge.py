"""From recordings to a verdict: figures, clauses, comparison with baselines, prediction. Reads no file, prints nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np

from cascade.errors import ConfigError
from loadtests.clauses import CLAUSES
from loadtests.evidence import Clause, Evidence, Run
from loadtests.phases import Limits, measure, phase_rates, right_on_time
from loadtests.record import Recording

BASELINES = ("top", "static")
"""Everything to the last stage, and fixed thresholds."""
EXPLAIN = 0.02
"""Accuracy by which measurement and simulation may differ without a word."""
CURVE_POINTS = 40
"""Rates of the curves of the limits."""

Predict = Callable[[Recording], Recording | None]


@dataclass(frozen=True)
class Comparison:
    """The candidate beside a baseline under one load, in right answers on time by requests offered.

    Attributes:
        baseline: what it is compared with.
        scenario: the load.
        ours: of the candidate.
        theirs: of the baseline.
        difference: ours - theirs.
        standard_error: of that; of paired differences if both met the same requests.
        paired: whether they did.
        our_slo: on-time answers by requests offered.
        their_slo: the same of the baseline.
    """

    baseline: str
    scenario: str
    ours: float
    theirs: float
    difference: float
    standard_error: float
    paired: bool
    our_slo: float
    their_slo: float


@dataclass(frozen=True)
class Gap:
    """A phase in which the simulator is off by more than `EXPLAIN`."""

    scenario: str
    phase: str
    measured: float
    predicted: float


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the load tests prove.

    Attributes:
        evidence: what was judged.
        clauses: by letter.
        comparisons: with each baseline under each load that both went through.
        gaps: where measurement and simulation part.
    """

    evidence: Evidence
    clauses: tuple[Clause, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]

    @property
    def passed(self) -> bool:
        """Whether no clause failed, and at least one was judged."""
        judged = [clause.passed for clause in self.clauses if clause.passed is not None]
        return bool(judged) and all(judged)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        limits = self.evidence.limits
        rates, best, floors = self.curve()
        return {
            "candidate": self.evidence.candidate,
            "passed": self.passed,
            "unit_rate": limits.unit_rate,
            "stage0_rate": limits.stage0_rate,
            "rows_per_s": dict(zip(limits.table.stages, limits.capacity.rows_per_s.tolist(), strict=True)),
            "clauses": [asdict(clause) for clause in self.clauses],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "gaps": [asdict(gap) for gap in self.gaps],
            "curve": {"rate": rates, "best": best, "floor": floors},
            "runs": {
                system: [
                    {
                        "meta": run.recording.meta,
                        "phases": [asdict(phase) for phase in run.phases],
                        "predicted": None if run.predicted is None else [asdict(phase) for phase in run.predicted],
                    }
                    for run in runs
                ]
                for system, runs in self.evidence.runs.items()
            },
        }

    def curve(self) -> tuple[list[float], list[float], list[float]]:
        """Rates, A* and floor over the range of the steady loads; none without any."""
        limits = self.evidence.limits
        rates = [phase.offered_per_s for system in self.evidence.runs for _, phase in self.evidence.steady(system)]
        if not rates:
            return [], [], []
        spread = np.geomspace(min(rates), max(rates) * (1 + 1e-9), CURVE_POINTS).tolist()
        limits.prepare(spread)
        return spread, [limits.best(rate) for rate in spread], [limits.floor(rate) for rate in spread]


def judge_runs(
    runs: Mapping[str, Sequence[Recording]],
    limits: Limits,
    *,
    candidate: str = "cascade",
    baselines: Sequence[str] = BASELINES,
    clauses: Iterable[str] | None = None,
    predict: Predict | None = None,
) -> Verdict:
    """Judge recorded runs.

    Args:
        runs: by system.
        limits: what the machines allow.
        candidate: the system that has promised something.
        baselines: systems that it is compared with; the candidate is none of them.
        clauses: letters of the clauses that are asked for; the others say so. All if left out.
        predict: simulates a recorded run, see `loadtests.predict`.

    Raises:
        ConfigError: there is no such clause, or a recording does not fit the limits' table.
    """
    asked = set(CLAUSES) if clauses is None else set(clauses)
    if unknown := asked - set(CLAUSES):
        raise ConfigError(f"clauses: expected letters of {', '.join(CLAUSES)}, got {', '.join(sorted(unknown))}")
    limits.prepare({float(rate) for each in runs.values() for run in each for rate in phase_rates(run) if rate > 0})
    measured = {
        system: tuple(_run(recording, limits, predict if system == candidate else None) for recording in recordings)
        for system, recordings in runs.items()
    }
    others = tuple(system for system in baselines if system != candidate)
    evidence = Evidence(candidate, others, measured, limits)
    return Verdict(
        evidence,
        tuple(
            judge(evidence) if letter in asked else Clause(letter, "", None, "not asked for", "")
            for letter, judge in CLAUSES.items()
        ),
        tuple(_comparisons(evidence)),
        tuple(_gaps(evidence)),
    )


def _run(recording: Recording, limits: Limits, predict: Predict | None) -> Run:
    simulated = None if predict is None else predict(recording)
    return Run(recording, measure(recording, limits), None if simulated is None else measure(simulated, limits))


def _comparisons(evidence: Evidence) -> Iterable[Comparison]:
    own = {run.scenario: run for run, _ in evidence.steady()}
    for baseline in evidence.baselines:
        for theirs, their_phase in evidence.steady(baseline):
            ours = own.get(theirs.scenario)
            our_phase = None if ours is None else ours.steady
            if ours is None or our_phase is None:
                continue
            our_right, their_right = (
                right_on_time(run.recording)[run.mask(phase)].astype(np.float64)
                for run, phase in ((ours, our_phase), (theirs, their_phase))
            )
            paired = np.array_equal(ours.recording.row, theirs.recording.row) and np.array_equal(
                ours.recording.scheduled_s, theirs.recording.scheduled_s
            )
            if paired:
                error = float((our_right - their_right).std()) / sqrt(len(our_right))
            else:
                error = hypot(*(float(right.std()) / sqrt(len(right)) for right in (our_right, their_right)))
            ours_mean, theirs_mean = float(our_right.mean()), float(their_right.mean())
            yield Comparison(
                baseline,
                theirs.scenario,
                ours_mean,
                theirs_mean,
                ours_mean - theirs_mean,
                error,
                paired,
                our_phase.slo_attainment,
                their_phase.slo_attainment,
            )


def _gaps(evidence: Evidence) -> Iterable[Gap]:
    for run in evidence.own:
        for phase, predicted in zip(run.phases, run.predicted or (), strict=False):
            if abs(phase.correct_on_time - predicted.correct_on_time) > EXPLAIN:
                yield Gap(run.scenario, phase.name, phase.correct_on_time, predicted.correct_on_time)
