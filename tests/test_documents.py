"""What the documents say of the shipped ladder is what its committed outcome table says, and their commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascade.cli import app

ROOT = Path(__file__).resolve().parent.parent
LADDER = ROOT / "deployments" / "fashion"
TABLE, CALIBRATION = LADDER / "calibration" / "test-outcomes.npz", LADDER / "calibration" / "calibration.json"


def text(path: str) -> str:
    """A document, its line breaks taken out."""
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def document(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_numbers_of_the_readme_come_from_the_committed_table() -> None:
    found = document("frontier", TABLE, "--calibration", CALIBRATION)
    shipped, large = found["operating_point"], found["stages"][-1]
    readme = text("README.md")
    assert f"{100 * shipped['accuracy']:.2f} % right at a mean of {shipped['cost'] / 1e6:.1f} million" in readme
    assert f"{100 * large['accuracy']:.2f} % at {large['cost'] / 1e6:.1f} million" in readme
    certificate = document("certify", TABLE, "--calibration", CALIBRATION, "--max-loss", 0.01)
    (point,) = (point for point in certificate["path"] if point["prices"][1:] == shipped["prices"][1:])
    assert f"at most {100 * point['bound']:.2f} % of images" in readme
    results = text("docs/results.md")
    assert f"**{shipped['cost']:,.0f}** mean | | **{100 * shipped['accuracy']:.2f} %**" in results


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "docs/results.md",
        "docs/concepts.md",
        "docs/clusters.md",
        "docs/operations.md",
        "docs/metrics.md",
        "docs/tutorial.md",
        "benchmarks/README.md",
    ],
)
def test_every_command_and_option_in_a_document_exists(path: str) -> None:
    lines = re.findall(r"`(cascade [a-z][^`]*)`|^ *(cascade [a-z].*?)(?:  +#.*)?$", (ROOT / path).read_text(), re.MULTILINE)
    for line in (inline or block for inline, block in lines):
        words = line.split()
        helped = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "300"})
        assert helped.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in helped.output, line


def test_every_script_in_a_document_says_what_it_does() -> None:
    scripts = {
        script
        for path in (
            "README.md",
            "docs/results.md",
            "docs/operations.md",
            "benchmarks/README.md",
            "docs/decisions/0005-what-a-certificate-counts.md",
        )
        for script in re.findall(r"[\w/]+/[\w]+\.py", text(path))
    }
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_the_benchmarks_can_be_asked_for_help() -> None:
    for module in ("serving", "offline", "simulator_speed", "streaming"):
        command = [sys.executable, "-m", f"benchmarks.{module}", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()
