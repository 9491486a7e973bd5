"""What one run of one fault comes to: outcomes counted, answers checked, invariants judged. Knows recordings, no Ray.

Every request has one line in the recording, so it has one outcome; what must be judged is which. An answer is *wrong*
if no way through the ladder that ends at the stage it names gives that label to that row.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.phases import REFUSED
from loadtests.record import Recording

DEADLINE_MISSED = 504
"""Status of a request that had no answer of any stage at its deadline."""
UNAVAILABLE = 503


class Finding(NamedTuple):
    """One thing that a run must show.

    Attributes:
        name: what.
        kept: whether it does.
        seen: what it shows.
    """

    name: str
    kept: bool
    seen: str


@dataclass(frozen=True)
class Part:
    """Some of a run's requests: before the fault, while it lasts, and after it.

    Attributes:
        sent: requests.
        answered: with an answer.
        on_time: of them, within the deadline.
        right: of those on time, with the true label.
        degraded: of the answered, where the unloaded rule would have gone on.
        stages: answered by stage.
    """

    sent: int
    answered: int
    on_time: int
    right: int
    degraded: int
    stages: dict[str, int]


@dataclass(frozen=True)
class Refusals:
    """Requests turned away from a second after the fault began: how many, how fast, how many were told when to come back."""

    count: int
    p50_s: float
    p99_s: float
    with_retry_after: int


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        fault: its name.
        load: in multiples of what the last stage can do.
        stage: what the fault befell, or was about.
        deadline_s: of every request.
        sent: requests, of which each has one of the next outcomes.
        answered: 200.
        shed: 503 or 429.
        cancelled: by the client, which never does.
        failed: any other status of 500 and more.
        other: any other status.
        lost: nothing came back.
        wrong: of the answered, with a label that no way to their stage gives.
        late: of the answered, after the deadline.
        p99_s: 99th percentile of the latency of answers, from the instant when each request was due.
        recovery_s: from the fault to the last request that was not answered on time; 0 if there is none after it.
        lag_p99_s: how late the client sent.
        before: requests before the fault.
        during: while it lasted, the first second left out.
        after: after it.
        refusals: see there; None for none.
        share_of_hurt: rows that came to the replicas that it befell, of all of their stage, from `EJECTED_S` on.
        rows_of_hurt_after: rows that they ran after the fault was taken back; None if they have ended.
        whole_s: from the end of the run until everything ran again.
        why: of those without an answer, what the client saw.
        company: what clients that behaved badly beside them did and were told, how often.
    """

    fault: str
    load: float
    stage: str
    deadline_s: float
    sent: int
    answered: int
    shed: int
    cancelled: int
    failed: int
    other: int
    lost: int
    wrong: int
    late: int
    p99_s: float
    recovery_s: float
    lag_p99_s: float
    before: Part
    during: Part
    after: Part
    refusals: Refusals | None
    share_of_hurt: float | None
    rows_of_hurt_after: int | None
    whole_s: float
    why: dict[str, int]
    company: dict[str, int]

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Hurt:
    """When the fault began and ended, in seconds of the run, and what it did to the replicas that it befell.

    Attributes:
        began_s: instant of the fault.
        ended_s: when it was taken back, or the end of the run.
        share: see `Report.share_of_hurt`.
        rows_after: see `Report.rows_of_hurt_after`.
        whole_s: see `Report`.
        company: see `Report`.
    """

    began_s: float
    ended_s: float
    share: float | None
    rows_after: int | None
    whole_s: float
    company: dict[str, int] = field(default_factory=dict)


def judge(
    recording: Recording, extra: Path, possible: NDArray[np.bool_], fault: str, load: float, stage: str, hurt: Hurt
) -> Report:
    """Count and check.

    Args:
        recording: of the client.
        extra: the labels and announced waits beside it.
        possible: [rows, S, classes], see `loadtests.faults.ladder.possible_answers`.
        fault: its name.
        load: see `Report`.
        stage: see `Report`.
        hurt: what else is known.
    """
    with np.load(extra) as archive:
        labels, waits = archive["labels"], archive["waits"]
    answered, status, at_s = recording.answered, recording.status, recording.scheduled_s
    fine = np.zeros(len(status), bool)
    fine[answered] = possible[recording.row[answered], recording.stage[answered], labels[answered]]
    late = answered & ~recording.on_time
    shed = np.isin(status, REFUSED)
    missed = ~recording.on_time & (at_s >= hurt.began_s - recording.deadline_s)
    refused = shed & (at_s >= hurt.began_s + 1.0) & (at_s < hurt.ended_s)
    latencies = recording.latency_s[answered]
    return Report(
        fault=fault,
        load=load,
        stage=stage,
        deadline_s=float(recording.deadline_s[0]),
        sent=len(status),
        answered=int(answered.sum()),
        shed=int(shed.sum()),
        cancelled=0,
        failed=int(((status >= 500) & ~shed).sum()),
        other=int(((status > 0) & (status < 500) & ~answered & ~shed).sum()),
        lost=int((status == 0).sum()),
        wrong=int((answered & ~fine).sum()),
        late=int(late.sum()),
        p99_s=float(np.quantile(latencies, 0.99)) if len(latencies) else float("inf"),
        recovery_s=max(0.0, float(at_s[missed].max() - hurt.began_s)) if missed.any() else 0.0,
        lag_p99_s=float(np.quantile(recording.lag_s, 0.99)),
        before=_part(recording, at_s < hurt.began_s),
        during=_part(recording, (at_s >= hurt.began_s + 1.0) & (at_s < hurt.ended_s - recording.deadline_s)),
        after=_part(recording, at_s >= hurt.ended_s),
        refusals=_refusals(recording.latency_s[refused], waits[refused]) if refused.any() else None,
        share_of_hurt=hurt.share,
        rows_of_hurt_after=hurt.rows_after,
        whole_s=hurt.whole_s,
        why=dict(recording.meta["generator"]["faults"]),
        company=hurt.company,
    )


def invariants(report: Report, *, loses: float, refuses: bool) -> list[Finding]:
    """What must hold whatever the fault: one outcome each, none lost, none wrong, no error for one that had an answer.

    Args:
        report: of a run.
        loses: share of the requests that may be lost with the process that they were with.
        refuses: whether stage 0 was out, so that requests may be turned away, or end without any answer.
    """
    outcomes = report.answered + report.shed + report.cancelled + report.failed + report.other + report.lost
    found = [
        Finding("one outcome each", outcomes == report.sent, f"{outcomes} outcomes of {report.sent} requests"),
        Finding("none lost", report.lost <= loses * report.sent, f"{report.lost} lost"),
        Finding("none wrong", report.wrong == 0, f"{report.wrong} wrong"),
        Finding("no other status", report.other == 0, f"{report.other} with a status that nobody should get"),
    ]
    if not refuses:
        found.append(Finding("none failed", report.failed == 0, f"{report.failed} failed"))
    return found


def _part(recording: Recording, rows: NDArray[np.bool_]) -> Part:
    answered, on_time = recording.answered & rows, recording.on_time & rows
    names = recording.meta["stages"]
    counts = np.bincount(recording.stage[answered], minlength=len(names))
    return Part(
        int(rows.sum()),
        int(answered.sum()),
        int(on_time.sum()),
        int((on_time & recording.correct).sum()),
        int((answered & recording.degraded).sum()),
        {name: int(count) for name, count in zip(names, counts, strict=True)},
    )


def _refusals(seconds: NDArray[np.float64], waits: NDArray[np.float64]) -> Refusals:
    return Refusals(len(seconds), float(np.median(seconds)), float(np.quantile(seconds, 0.99)), int((waits > 0).sum()))
