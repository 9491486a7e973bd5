"""``python -m loadtests.verdict``: files in, exit code and files out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cascade.errors import ConfigError
from loadtests.tables import BEGIN
from loadtests.verdict import Capacities, by_system, main
from tests.loadtests.recorded import blank, good

SPEC = Path(__file__).parents[2] / "deployments" / "loadtest" / "cascade.yaml"
CAPACITIES = {"rows_per_s": {"linear": 2000, "tiny": 400, "panel": 40}, "stage0_rate": 500, "unit_rate": 40, "windows": []}
STAGES = ("linear", "tiny", "panel")


@pytest.fixture
def judge(tmp_path):
    app = typer.Typer()
    app.command()(main)
    capacity = tmp_path / "capacity.json"
    capacity.write_text(json.dumps(CAPACITIES))

    def run(*arguments, recordings=("steady-2", "step")):
        paths = [tmp_path / f"{name}.npz" for name in recordings]
        for name, path in zip(recordings, paths, strict=True):
            good(name).save(path)
        options = ["--spec", SPEC, "--capacity", capacity, "--no-simulation", *arguments]
        return CliRunner().invoke(app, [str(each) for each in (*paths, *options)])

    return run


def test_a_kept_promise_exits_with_0_and_writes_what_was_asked_for(judge, tmp_path):
    names = ("--json", "v.json", "--figure", "curve", "--results", "results.md")
    arguments = [name if name.startswith("--") else tmp_path / name for name in names]
    found = judge("--clauses", "abg", *arguments)
    assert found.exit_code == 0, found.output
    assert "VERDICT: PASS" in found.output
    document = json.loads((tmp_path / "v.json").read_text())
    assert [run["meta"]["scenario"] for run in document["runs"]["cascade"]] == ["steady-2", "step"]
    assert {path.name for path in tmp_path.glob("curve*")} == {"curve.svg", "curve.png", "curve-step.svg", "curve-step.png"}
    assert BEGIN in (tmp_path / "results.md").read_text()


def test_a_broken_promise_exits_with_1(judge):
    found = judge()
    assert found.exit_code == 1
    assert "VERDICT: FAIL" in found.output


def test_a_file_that_is_no_recording_exits_with_2(judge):
    assert judge("--candidate", "cascade", Path(__file__)).exit_code == 2


def test_capacities_must_be_of_this_ladder(tmp_path):
    path = tmp_path / "capacity.json"
    path.write_text(json.dumps(CAPACITIES))
    assert Capacities.read(path, STAGES).unit_rate == 40
    with pytest.raises(ConfigError, match="expected the stages linear, tiny"):
        Capacities.read(path, STAGES[:2])
    path.write_text(json.dumps({**CAPACITIES, "unit_rate": 0}))
    with pytest.raises(ConfigError, match="unit_rate"):
        Capacities.read(path, STAGES)
    with pytest.raises(ConfigError, match="cannot be read"):
        Capacities.read(tmp_path / "none.json", STAGES)


def test_recordings_are_sorted_by_system_and_scenario():
    names = [("step", "cascade"), ("steady-8", "static"), ("steady-10", "cascade"), ("steady-2", "cascade")]
    recordings = [blank(scenario, system) for scenario, system in names]
    own = replace(recordings[0], meta={**recordings[0].meta, "scenario": "my own"})
    found = by_system([own, *recordings])
    assert {system: [each.meta["scenario"] for each in runs] for system, runs in found.items()} == {
        "cascade": ["steady-2", "steady-10", "step", "my own"],
        "static": ["steady-8"],
    }
