"""``python -m loadtests.verdict``: files in, exit code and files out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.fitting import fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import ConfigError
from cascade.spec import Ladder
from loadtests.tables import BEGIN
from loadtests.verdict import Capacities, by_system, main
from tests.loadtests.recorded import blank, good

SHIPPED = Path(__file__).parents[2] / "deployments" / "fashion" / "cascade.yaml"
CAPACITIES = {"rows_per_s": {"linear": 2000, "tiny": 400, "small": 40}, "stage0_rate": 500, "unit_rate": 40, "windows": []}
STAGES = ("linear", "tiny", "small")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The three cheapest rungs of the shipped ladder with their outcomes: as many as the recordings have."""
    folder, shipped = tmp_path_factory.mktemp("ladder"), Ladder.read(SHIPPED)
    document = yaml.safe_load(SHIPPED.read_text())
    document["stages"] = document["stages"][: len(STAGES)]
    for stage in document["stages"]:
        stage["model"]["weights"] = str(shipped.path(stage["model"]["weights"]))
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(document))
    ladder = Ladder.read(path)
    ladder.table_path.parent.mkdir()
    for name in ("outcomes.npz", "test-outcomes.npz"):
        with np.load(shipped.table_path.with_name(name)) as archive:
            arrays = {key: archive[key] for key in archive.files if "/" not in key or key.split("/")[1] in STAGES}
        kept = arrays | {key: arrays[key][: len(STAGES)] for key in ("stages", "cost")}
        np.savez(ladder.table_path.with_name(name), **kept)
    profile = ServiceProfile.read(shipped.service_path)
    profile.model_copy(update={"stages": profile.stages[: len(STAGES)]}).write(ladder.service_path)
    table = OutcomeTable.read(ladder.table_path)
    prices = ladder.spec.base_prices
    fit(table, ladder.stage_digests(), ladder="fashion", split="calibration", prices=prices).write(ladder.calibration_path)
    return path


@pytest.fixture
def judge(tmp_path, spec):
    app = typer.Typer()
    app.command()(main)
    capacity = tmp_path / "capacity.json"
    capacity.write_text(json.dumps(CAPACITIES))

    def run(*arguments, recordings=("steady-2", "step")):
        paths = [tmp_path / f"{name}.npz" for name in recordings]
        for name, path in zip(recordings, paths, strict=True):
            good(name).save(path)
        options = ["--spec", spec, "--capacity", capacity, "--no-simulation", *arguments]
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
