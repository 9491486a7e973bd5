"""The table of a series of faults, for people and for programs. Knows verdicts; judges nothing."""

from collections.abc import Sequence
from pathlib import Path

import orjson

from loadtests.faults.judge import Part
from loadtests.faults.trial import Verdict

COLUMNS = (
    "fault", "load", "sent", "answered", "shed", "failed", "lost", "wrong", "late", "p99 ms", "recovered after s",
    "right before / during / after %", "kept", "seen",
)  # fmt: skip
COUNTED = ("one outcome each", "none lost", "none wrong", "no other status", "none failed")
"""Findings that a column of their own tells, unless they were broken."""


def document(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """All figures as plain values."""
    return [
        {**verdict.report.document(), "passed": verdict.passed, "findings": [each._asdict() for each in verdict.findings]}
        for verdict in verdicts
    ]


def markdown(verdicts: Sequence[Verdict]) -> str:
    """One line a run."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|:--|" + "--:|" * (len(COLUMNS) - 3) + ":--|:--|"]
    for verdict in verdicts:
        report = verdict.report
        told = [finding for finding in verdict.findings if not (finding.kept and finding.name in COUNTED)]
        seen = "; ".join(finding.seen if finding.kept else f"**{finding.seen}**" for finding in told)
        cells = [
            report.fault,
            f"{report.load:g}x",
            f"{report.sent:,}",
            f"{report.answered:,}",
            *(str(each) for each in (report.shed, report.failed, report.lost, report.wrong, report.late)),
            f"{1e3 * report.p99_s:.0f}",
            f"{report.recovery_s:.1f}",
            " / ".join(_right(part) for part in (report.before, report.during, report.after)),
            "yes" if verdict.passed else "**no**",
            seen,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Write ``faults.json`` and ``faults.md``."""
    (folder / "faults.json").write_bytes(orjson.dumps(document(verdicts), option=orjson.OPT_INDENT_2))
    (folder / "faults.md").write_text(markdown(verdicts) + "\n", encoding="utf-8")


def _right(part: Part) -> str:
    return f"{100 * part.right / part.sent:.0f}" if part.sent else "–"
