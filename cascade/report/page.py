"""The report of a ladder: one page that holds everything known about it, and its figures as files.

Puts the sections together and writes files. Knows no spec and runs nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cascade.errors import ConfigError
from cascade.report import sections
from cascade.report.anytime import anytime_figure
from cascade.report.anytime_section import anytime
from cascade.report.degradation import degradation_figure, latency_figure
from cascade.report.frontier import frontier_figure
from cascade.report.markup import contents, document, heading, paragraph, section
from cascade.report.plan import plan_figure
from cascade.report.reliability import reliability_figure
from cascade.report.risk import risk_figure
from cascade.report.style import save
from cascade.report.summary import Report

PAGE = "index.html"
"""The page in its folder."""

SECTIONS = {
    "summary": "At a glance",
    "ladder": "The ladder",
    "reliability": "Can the confidences be believed?",
    "frontier": "Accuracy against cost",
    "risk": "What may be lost, with a certificate",
    "plan": "The plan by arrival rate",
    "degradation": "Under load",
    "anytime": "For clients that watch",
}


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the page and every figure as SVG and PNG.

    Args:
        report: what to say.
        folder: where; made if it is not there.

    Returns:
        The files, the page first.

    Raises:
        ConfigError: matplotlib is not installed, or a file cannot be written.
    """
    paths, figures = [], {}
    for name, drawn in _figures(report):
        paths += save(drawn, folder / name)
        figures[name] = (folder / f"{name}.svg").read_text(encoding="utf-8")
    page = folder / PAGE
    try:
        page.write_text(render(report, figures), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{page}: cannot be written: {error.strerror or error}") from error
    return [page, *paths]


def _figures(report: Report) -> Iterator[tuple[str, Any]]:
    for number, stage in enumerate(report.reliability, start=1):
        if stage.rows:
            yield f"reliability-{number}", reliability_figure(stage)
    yield "frontier", frontier_figure(report.frontier)
    yield "risk", risk_figure(report.certificate, report.own.prices)
    yield "plan", plan_figure(report.plan)
    yield "degradation", degradation_figure(report.degradation)
    yield "latency", latency_figure(report.degradation)
    if report.anytime is not None:
        yield "anytime", anytime_figure(report.anytime)


def render(report: Report, figures: Mapping[str, str]) -> str:
    """The page.

    Args:
        report: what to say.
        figures: SVG files by the names that `write_report` gives them.
    """
    header = heading(f"{report.name}, version {report.version}") + paragraph(
        f"Every result on this page was measured or simulated on {report.judged.rows:,} test rows. Temperatures, "
        f"probabilities and gains were fitted on {report.calibration.table.rows:,} other rows, the calibration rows; "
        "the two never mix."
    )
    bodies = (
        sections.summary(report),
        sections.ladder(report),
        sections.reliability(report, figures),
        sections.frontier(report, figures["frontier"]),
        sections.risk(report, figures["risk"]),
        sections.plan(report, figures["plan"]),
        sections.degradation(report, figures),
        anytime(report.anytime, figures.get("anytime")),
    )
    main = "".join(section(anchor, SECTIONS[anchor], body) for anchor, body in zip(SECTIONS, bodies, strict=True))
    return document(f"{report.name}: report", header + contents(SECTIONS.items()), main, sections.footer(report))
