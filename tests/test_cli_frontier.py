"""`cascade frontier` as a user types it: tables with and without a calibration, what it prints and writes, how it exits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cascade.calibration.fitting import fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli import frontier
from tests.calibration.table_cases import networks

DONE, USAGE = 0, 2
ROWS = 1200


def cascade(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    frontier.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a table in two splits, and a calibration that was fitted on one of them."""
    folder = tmp_path_factory.mktemp("frontier")
    arrays = dict(networks(ROWS, seed=4).arrays())
    arrays["split"] = np.array(["calibration"] * (ROWS // 3) + ["test"] * (ROWS - ROWS // 3))
    table = OutcomeTable.from_arrays(arrays)
    table.write(folder / "outcomes.npz")
    digests = {stage: stage for stage in table.stages}
    prices = (0.0, 0.01, 0.1)
    fit(table, digests, ladder="nets", split="calibration", prices=prices).write(folder / "calibration.json")
    return folder


def test_without_a_calibration_two_are_fitted_and_people_see_the_comparison(files) -> None:
    result = cascade("frontier", files / "outcomes.npz")
    assert result.exit_code == DONE, result.output
    # Every label is halved on its own, so each of the five may add one row.
    judged = re.search(r"(\d+) rows of", result.stdout)
    assert judged is not None
    assert abs(int(judged[1]) - ROWS // 2) <= 5
    for word in ("best", "replace", "only net0", "only net2", "random", "oracle", "guaranteed, alpha = 1"):
        assert word in result.stdout
    assert "as configured" not in result.stdout


def test_machines_get_one_document(files) -> None:
    result = cascade(
        *(
            "frontier",
            files / "outcomes.npz",
            "--fit-split",
            "calibration",
            "--check-split",
            "test",
            "--points",
            10,
            "--json",
        )
    )
    assert result.exit_code == DONE, result.output
    document = json.loads(result.stdout)
    assert document["rows"] == ROWS - ROWS // 3
    assert set(document["sweeps"]) == {"best", "replace"}
    for swept in document["sweeps"].values():
        assert len(swept["points"]) == 10
    assert document["operating_point"] is None
    assert document["oracle"]["exact"]["accuracy"] >= max(stage["accuracy"] for stage in document["stages"])


def test_with_a_calibration_its_own_prices_are_the_operating_point(files) -> None:
    arguments = ("frontier", files / "outcomes.npz", "--calibration", files / "calibration.json", "--check-split", "test")
    result = cascade(*arguments, "--json")
    assert result.exit_code == DONE, result.output
    assert "very rows" not in result.stderr
    document = json.loads(result.stdout)
    assert list(document["sweeps"]) == ["calibrated"]
    assert document["operating_point"]["prices"] == [0.0, 0.01, 0.1]
    assert "as configured" in cascade(*arguments).stdout


@pytest.mark.parametrize("split", [(), ("--check-split", "calibration")])
def test_rows_that_were_fitted_on_are_pointed_out(files, split) -> None:
    result = cascade("frontier", files / "outcomes.npz", "--calibration", files / "calibration.json", *split)
    assert result.exit_code == DONE, result.output
    assert "very rows" in result.stderr


def test_the_figure_and_its_numbers_are_written(files, tmp_path) -> None:
    result = cascade("frontier", files / "outcomes.npz", "--points", 8, "--out", tmp_path / "made" / "frontier")
    assert result.exit_code == DONE, result.output
    for suffix in ("svg", "png", "json"):
        path = tmp_path / "made" / f"frontier.{suffix}"
        assert path.stat().st_size > 0
        assert str(path) in result.stdout
    assert len(json.loads((tmp_path / "made" / "frontier.json").read_text())["sweeps"]["best"]["points"]) == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--points", "2"), "--points"),
        (("--fit-split", "calibration"), "both the split to fit on"),
        (("--fit-split", "calibration", "--check-split", "nowhere"), "'nowhere' has no rows"),
        (("--fit-split", "calibration", "--calibration", "calibration.json"), "nothing is fitted"),
        (("--calibration", "none.json"), "none.json"),
    ],
)
def test_what_cannot_be_exits_with_2(files, arguments, named) -> None:
    arguments = [files / word if word.endswith(".json") else word for word in arguments]
    result = cascade("frontier", files / "outcomes.npz", *arguments)
    assert result.exit_code == USAGE
    assert named in result.stderr


def test_a_missing_table_exits_with_2(tmp_path) -> None:
    result = cascade("frontier", tmp_path / "none.npz")
    assert result.exit_code == USAGE
    assert "none.npz" in result.stderr


def test_with_direct_routing_rows_that_may_skip_stages_stand_beside_the_cascade(files) -> None:
    result = cascade("frontier", files / "outcomes.npz", "--routing", "direct", "--points", 20, "--json")
    assert result.exit_code == DONE, result.output
    sweeps = json.loads(result.stdout)["sweeps"]
    assert list(sweeps) == ["direct", "best"]
    # What skips the second stage costs what the cascade charges for it less.
    costs = {name: {point["cost"] for point in sweep["points"]} for name, sweep in sweeps.items()}
    assert costs["direct"] != costs["best"]


def test_a_routing_that_is_none_exits_with_2(files) -> None:
    result = cascade("frontier", files / "outcomes.npz", "--routing", "sideways")
    assert result.exit_code == USAGE
    assert "--routing: expected cascade or direct, got 'sideways'" in " ".join(result.stderr.split())
