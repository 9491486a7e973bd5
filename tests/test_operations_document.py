"""docs/operations.md: its capacity table is what `cascade plan` says, its fields are the spec's, and its links lead."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cascade.cli import app
from cascade.spec import Ladder
from cascade.spec_sections import TelemetrySpec

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"<!-- capacity: cascade (plan [^>]*) -->\n\n((?:\|.*\n)+)")


def chosen(points: list[dict]) -> list[dict]:
    """Rates for a person: the last that is not degraded, each that doubles it, the last that turns nobody away, the first
    that does."""
    calm = [point for point in points if not point["degraded"]]
    served = [point for point in points if not point["shed"]]
    found = [calm[-1]]
    for point in served:
        if point["rate"] >= 2 * found[-1]["rate"]:
            found.append(point)
    return [*found, *(point for point in (served[-1],) if point is not found[-1]), points[len(served)]]


def table(document: dict) -> list[str]:
    """The rows of the table."""
    points, top = document["points"], Ladder.read(ROOT / "deployments" / "fashion" / "cascade.yaml").spec.costs_alone[-1]
    return [
        f"| {point['rate']:,.0f} | {point['accuracy']:.1%} | {point['degraded']:.0%} | {point['shed']:.0%} | "
        f"{1e3 * point['p99_s']:.0f} ms | {point['cost'] / top:.3f} |"
        for point in chosen(points)
    ]


def test_the_capacity_table_is_what_the_plan_says() -> None:
    found = COMMAND.search(TEXT)
    assert found is not None
    result = CliRunner().invoke(app, found[1].split())
    assert result.exit_code == 0, result.output
    assert found[2].splitlines()[2:] == table(json.loads(result.stdout)["plan"])


def test_the_fields_of_the_spec_that_it_shows_are_fields() -> None:
    shown = re.findall(r"^ {4}(telemetry: .*)$", TEXT, re.MULTILINE)
    assert shown
    for block in shown:
        TelemetrySpec.model_validate(yaml.safe_load(block)["telemetry"])
    assert f"its own last {TelemetrySpec().explain_keep}" in TEXT
    assert TelemetrySpec().explain_share == 0.001, "a thousandth"


@pytest.mark.parametrize("path", ["operations.md", "tutorial.md", "metrics.md", "concepts.md", "../README.md"])
def test_links_between_documents_lead_somewhere(path: str) -> None:
    document = (ROOT / "docs" / path).resolve()
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", document.read_text(encoding="utf-8"))
    for link in links:
        assert (document.parent / link).exists(), link
