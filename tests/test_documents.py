"""What the documents say of the shipped ladder is what its committed outcome table says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_figure_and_the_numbers_of_the_readme_come_from_the_committed_table(tmp_path: Path) -> None:
    out = tmp_path / "ladder.svg"
    command = [sys.executable, ROOT / "docs" / "figures" / "ladder.py", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 10_000
    numbers = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    accuracy, cost = numbers["shipped"][0], float(numbers["shipped"][1].replace(",", ""))
    assert f"{accuracy[:-1]} % right at a mean of {cost / 1e6:.1f} million" in readme
    accuracy, cost = numbers["large"][0], float(numbers["large"][1].replace(",", ""))
    assert f"{accuracy[:-1]} % at {cost / 1e6:.1f} million" in readme
