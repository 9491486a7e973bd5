"""The commands that need no server, as a user types them: what they print, what they write, and how they exit."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from ladders import write_ladder
from typer.testing import CliRunner

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli import app
from cascade.serving.environment import FAST_PATH, GRPC, ONE_MACHINE
from cascade.spec import Ladder, json_schema
from cascade.versions import build_digest, version_digest

DONE, VERDICT_FAILED, USAGE = 0, 1, 2
STAGES = ["rough", "fair", "fine"]


def cascade(*arguments: object) -> Result:
    """Run a command in a wide terminal; whatever it sets in the environment is undone."""
    environment = {"COLUMNS": "400", **FAST_PATH, **GRPC, **ONE_MACHINE, "RAY_AUTH_MODE": "disabled"}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def spec(tmp_path) -> Path:
    """The spec of a ladder that was neither profiled nor calibrated."""
    return write_ladder(tmp_path)


def change(spec: Path, edit) -> None:
    document = yaml.safe_load(spec.read_text())
    edit(document)
    spec.write_text(yaml.safe_dump(document))


# -- the way of a ladder -----------------------------------------------------------------------------------------------


def test_a_ladder_is_profiled_calibrated_and_ready(spec):
    assert cascade("check", spec).exit_code == VERDICT_FAILED
    profiled = cascade("profile", spec)
    assert profiled.exit_code == DONE, profiled.output
    assert "600 calibration rows" in profiled.stdout
    assert str(spec.parent / "calibration" / "outcomes.npz") in profiled.stdout
    assert cascade("check", spec).exit_code == VERDICT_FAILED
    calibrated = cascade("calibrate", spec)
    assert calibrated.exit_code == DONE, calibrated.output
    assert str(spec.parent / "calibration" / "calibration.json") in calibrated.stdout
    for stage in STAGES:
        assert stage in profiled.stdout
        assert stage in calibrated.stdout
    checked = cascade("check", spec)
    assert checked.exit_code == DONE
    assert "calibration belongs to it" in checked.stdout


def test_the_artefacts_are_what_the_server_reads(calibrated):
    ladder = Ladder.read(calibrated)
    table = OutcomeTable.read(ladder.table_path)
    assert (list(table.stages), table.rows) == (STAGES, 600)
    digests = ladder.stage_digests()
    Calibration.read(ladder.calibration_path).check_belongs(STAGES, digests)
    ServiceProfile.read(ladder.service_path).check_belongs(STAGES, digests)
    accuracies = [table.correct(stage).mean() for stage in STAGES]
    assert accuracies == sorted(accuracies)


def test_calibrating_again_writes_the_same_file(calibrated_copy):
    path = Ladder.read(calibrated_copy).calibration_path
    before = path.read_bytes()
    assert cascade("calibrate", calibrated_copy).exit_code == DONE
    assert path.read_bytes() == before


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_shows_the_ladder(calibrated):
    result = cascade("check", calibrated)
    assert result.exit_code == DONE
    assert "colours 7" in result.stdout
    assert "x10.0" in result.stdout
    digest = Ladder.read(calibrated).stage_digests()["fine"]
    assert digest[:12] in result.stdout


def test_check_answers_a_machine_in_json(calibrated, spec):
    ready = cascade("check", calibrated, "--json")
    ladder = Ladder.read(calibrated)
    digests = ladder.stage_digests()
    facts = {"build": build_digest(ladder), "version": version_digest(ladder), "calibrated": True, "problem": None}
    assert json.loads(ready.stdout) == {"name": "colours", "stages": digests, **facts}
    raw = cascade("check", spec, "--json")
    assert raw.exit_code == VERDICT_FAILED
    document = json.loads(raw.stdout)
    assert document["calibrated"] is False
    assert "cascade profile" in document["problem"]


def test_check_tells_a_calibration_of_other_weights(calibrated_copy):
    change(calibrated_copy, lambda d: d["stages"][1]["model"]["args"].update(sharpness=9.0))
    result = cascade("check", calibrated_copy)
    assert result.exit_code == VERDICT_FAILED
    assert "'fair'" in result.stdout
    assert "cascade calibrate" in result.stdout


def test_check_shows_brackets_in_a_problem_as_they_are(spec):
    change(spec, lambda d: d.update(calibration="[bold]/[red]"))
    assert "[bold]/[red]" in cascade("check", spec).stdout


@pytest.mark.parametrize(
    ("edit", "mentions"),
    [
        (lambda d: d["stages"][0].update(cost=-1), ["stages.0.cost", "greater than 0", "-1"]),
        (lambda d: d.update(typo=1), ["typo", "unknown field"]),
        (lambda d: d["stages"][0]["model"].update(factory="no_such_module:Net"), ["no_such_module:Net"]),
        (lambda d: d["stages"][0]["model"].update(factory="builtins:dict"), ["stages.rough.model.factory", "Module"]),
        (lambda d: d["stages"][0]["model"].update(weights="none.safetensors"), ["none.safetensors"]),
        (lambda d: d["stages"][0]["model"].update(weights="cascade.yaml"), ["cascade.yaml", "safetensors"]),
        (lambda d: d["stages"][0]["model"]["args"].update(day=yaml.safe_load("2020-01-01")), ["args.day", "JSON"]),
        (lambda d: d["inputs"][0].update(shape=[3]), ["stages.rough.model", "rows of zeros"]),
        (lambda d: d["inputs"][0].update(datatype="BYTES"), ["stages.rough.model", "rows of zeros"]),
    ],
)
def test_check_tells_what_is_wrong_with_a_spec_without_a_traceback(spec, edit, mentions):
    change(spec, edit)
    result = cascade("check", spec)
    assert result.exit_code == USAGE
    assert result.stdout == ""
    for mention in mentions:
        assert mention in result.stderr
    assert "Traceback" not in result.stderr


def test_a_spec_that_is_not_there_is_a_usage_error(tmp_path):
    for command in ("check", "profile", "calibrate", "serve", "demo"):
        result = cascade(command, tmp_path / "none.yaml")
        assert result.exit_code == USAGE, command
        assert "none.yaml" in result.stderr


def test_arguments_that_do_not_exist_are_a_usage_error(spec):
    assert cascade("check").exit_code == USAGE
    assert cascade("check", spec, "--bogus").exit_code == USAGE
    assert cascade("bogus").exit_code == USAGE
    assert cascade("serve", spec, "--port", "0").exit_code == USAGE
    assert cascade("demo", spec, "--rows", "0").exit_code == USAGE


def test_help_names_every_command():
    result = cascade("--help")
    assert result.exit_code == DONE
    for command in ("check", "profile", "calibrate", "schema", "serve", "demo"):
        assert command in result.stdout


# -- profile -----------------------------------------------------------------------------------------------------------


def test_profile_answers_a_machine_in_json(calibrated_copy):
    result = cascade("profile", calibrated_copy, "--json")
    assert result.exit_code == DONE
    document = json.loads(result.stdout)
    assert document["rows"] == 600
    assert document["split"] == "calibration"
    assert document["accuracy"]["fine"] > document["accuracy"]["rough"]
    assert set(document["service"]) == set(STAGES)


def test_test_rows_are_profiled_only_into_a_table_of_their_own(calibrated_copy, tmp_path):
    ladder = Ladder.read(calibrated_copy)
    before = ladder.table_path.read_bytes(), ladder.service_path.read_bytes()
    refused = cascade("profile", calibrated_copy, "--split", "test")
    assert refused.exit_code == USAGE
    assert "--out" in refused.stderr
    out = tmp_path / "new" / "test.npz"
    assert cascade("profile", calibrated_copy, "--split", "test", "--out", out).exit_code == DONE
    assert OutcomeTable.read(out).rows == 600
    assert (ladder.table_path.read_bytes(), ladder.service_path.read_bytes()) == before


def test_an_unknown_split_is_a_usage_error(spec):
    result = cascade("profile", spec, "--split", "train")
    assert result.exit_code == USAGE
    assert "'train'" in result.stderr


def test_rows_that_do_not_fit_are_a_usage_error(spec):
    np.savez(spec.parent / "data" / "calibration.npz", x=np.zeros((5, 3), np.float32), labels=np.zeros(5, int))
    result = cascade("profile", spec)
    assert result.exit_code == USAGE
    assert "[rows, 4], got float32 [5, 3]" in result.stderr
    (spec.parent / "data" / "calibration.npz").write_bytes(b"garbage")
    assert cascade("profile", spec).exit_code == USAGE


def test_a_table_that_cannot_be_written_is_a_usage_error(spec):
    result = cascade("profile", spec, "--out", spec.parent)
    assert result.exit_code == USAGE
    assert "cannot be written" in result.stderr


# -- calibrate ---------------------------------------------------------------------------------------------------------


def test_calibrate_answers_a_machine_in_json(calibrated_copy):
    result = cascade("calibrate", calibrated_copy, "--json")
    assert result.exit_code == DONE
    document = json.loads(result.stdout)
    assert [stage["name"] for stage in document["stages"]] == STAGES
    assert document["table"]["split"] == "calibration"


def test_calibrate_needs_the_table_and_the_times_of_this_ladder(calibrated_copy):
    ladder = Ladder.read(calibrated_copy)
    change(calibrated_copy, lambda d: d["stages"][2]["model"]["args"].update(sharpness=9.0))
    stale = cascade("calibrate", calibrated_copy)
    assert stale.exit_code == USAGE
    assert "'fine'" in stale.stderr
    change(calibrated_copy, lambda d: d["stages"].pop())
    fewer = cascade("calibrate", calibrated_copy)
    assert fewer.exit_code == USAGE
    assert "rough, fair, fine" in fewer.stderr
    ladder.table_path.unlink()
    missing = cascade("calibrate", calibrated_copy)
    assert missing.exit_code == USAGE
    assert "outcomes.npz" in missing.stderr


def test_calibrate_refuses_a_table_of_test_rows(calibrated_copy):
    table = Ladder.read(calibrated_copy).table_path
    cascade("profile", calibrated_copy, "--split", "test", "--out", table)
    result = cascade("calibrate", calibrated_copy)
    assert result.exit_code == USAGE
    assert "calibration" in result.stderr


# -- schema ------------------------------------------------------------------------------------------------------------


def test_schema_prints_the_schema_of_the_spec():
    result = cascade("schema")
    assert result.exit_code == DONE
    assert json.loads(result.stdout) == json_schema()
