"""`cascade plan`, as a user types it: what it prints, what it writes, and how it exits."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.certificate import digest_of
from cascade.calibration.certify import certify
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.plan import Plan
from cascade.cli.console import read_seconds
from cascade.cli.plan import deployment_of, read_replicas, register
from cascade.errors import ConfigError
from cascade.spec import Ladder

DONE, VERDICT_FAILED, USAGE = 0, 1, 2

app = typer.Typer()
app.callback()(lambda: None)
register(app)


def plan(*arguments: object) -> Result:
    """Run the command in a wide terminal."""
    result = CliRunner().invoke(app, ["plan", *(str(argument) for argument in arguments)], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_plan_by_rate_is_shown_and_the_rate_asked_for_is_marked(calibrated):
    shown = plan(calibrated, "--rate", "200", "--slo", "500ms")
    assert shown.exit_code == DONE, shown.output
    for word in ("rough", "fair", "fine", "degraded", "p99", "> 200", "at 200 requests/s", "fewest replicas at 200/s"):
        assert word in shown.stdout


def test_without_a_rate_no_replicas_are_suggested(calibrated):
    shown = plan(calibrated)
    assert shown.exit_code == DONE
    assert "fewest replicas" not in shown.stdout


def test_the_file_is_the_plan_that_is_printed(calibrated, tmp_path):
    printed = plan(calibrated, "--rate", "200", "--out", tmp_path / "new" / "plan.json", "--json")
    assert printed.exit_code == DONE
    document = json.loads(printed.stdout)
    read = Plan.read(tmp_path / "new" / "plan.json")
    assert read.model_dump(mode="json") == document["plan"]
    assert 200.0 in [point.rate for point in read.points]
    assert document["suggestion"]["replicas"] == {"rough": 1, "fair": 1, "fine": 1}


def test_a_figure_is_written(calibrated, tmp_path):
    assert plan(calibrated, "--rate", "200", "--figure", tmp_path / "plan").exit_code == DONE
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "plan.svg").read_text()


def test_replicas_of_the_command_line_count(calibrated):
    few, many = (
        json.loads(plan(calibrated, "--json", *more).stdout)["plan"] for more in ([], ["--replicas", "fair=2,fine=4"])
    )
    assert [stage["replicas"] for stage in many["stages"]] == [1, 2, 4]
    assert many["stages"][2]["rows_per_s"] == pytest.approx(4 * few["stages"][2]["rows_per_s"])


def test_shared_cores_appear_in_the_plan(calibrated):
    document = json.loads(plan(calibrated, "--shared-cores", "2", "--json").stdout)["plan"]
    assert document["shared_cores"] == 2.0
    assert max(sum(point["utilisation"]) for point in document["points"]) <= 1.0001


def test_a_target_that_cannot_be_reached_fails(calibrated):
    failed = plan(calibrated, "--rate", "200", "--target-accuracy", "1.0")
    assert failed.exit_code == VERDICT_FAILED
    assert "not reached" in failed.stdout
    assert "with nothing loaded" in failed.stdout


def test_an_slo_that_cannot_be_kept_fails(calibrated):
    failed = plan(calibrated, "--rate", "200", "--slo", "0.000001")
    assert failed.exit_code == VERDICT_FAILED
    assert "one row alone takes" in failed.stdout


def test_a_budget_of_replicas_is_spent(calibrated):
    shown = plan(calibrated, "--rate", "200", "--max-replicas", "5")
    assert shown.exit_code == DONE, shown.output
    assert "best within 5 at 200/s" in shown.stdout


def test_a_certificate_bounds_the_loss(calibrated, tmp_path):
    ladder = Ladder.read(calibrated)
    calibration = Calibration.read(ladder.calibration_path)
    judged = judge_table(OutcomeTable.read(ladder.table_path), calibration)
    certificate = certify(judged, max_loss=0.1, confidence=0.9, calibration=digest_of(calibration))
    certificate.write(tmp_path / "certificate.json")
    shown = plan(calibrated, "--certificate", tmp_path / "certificate.json", "--json")
    assert shown.exit_code == DONE, shown.output
    points = json.loads(shown.stdout)["plan"]["points"]
    assert [point["certified_loss"] for point in points] == [certificate.bound_at(point["prices"]) for point in points]
    assert "lost <" in plan(calibrated, "--certificate", tmp_path / "certificate.json").stdout


def test_a_certificate_of_another_calibration_is_refused(calibrated, tmp_path):
    ladder = Ladder.read(calibrated)
    judged = judge_table(OutcomeTable.read(ladder.table_path), Calibration.read(ladder.calibration_path))
    certify(judged, max_loss=0.1, confidence=0.9, calibration="0" * 64).write(tmp_path / "other.json")
    assert plan(calibrated, "--certificate", tmp_path / "other.json").exit_code == USAGE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slo", "fast"], "100ms"),
        (["--slo", "0ms"], "a time above 0"),
        (["--replicas", "fair"], "tiny=2"),
        (["--replicas", "huge=2"], "no stage 'huge'"),
        (["--replicas", "rough=2"], "inside the router"),
        (["--max-replicas", "5"], "--rate"),
        (["--target-accuracy", "0.9"], "--rate"),
        (["--rate", "10", "--max-replicas", "5", "--target-accuracy", "0.9"], "either"),
        (["--rate", "10", "--max-gpus", "1"], "--max-replicas"),
        (["--rate", "10", "--max-replicas", "1"], "one replica of each"),
        (["--rate", "-1"], "rate"),
        (["--rho", "0"], "rho"),
        (["--shared-cores", "0"], "above 0"),
        (["--table", "none.npz"], "none.npz"),
    ],
)
def test_wrong_arguments_are_named(calibrated, arguments, said):
    refused = plan(calibrated, *arguments)
    assert refused.exit_code == USAGE, refused.output
    assert said in refused.stderr


def test_a_ladder_without_calibration_is_refused(calibrated_copy):
    Ladder.read(calibrated_copy).calibration_path.unlink()
    assert plan(calibrated_copy).exit_code == USAGE


def test_a_budget_of_replicas_is_refused_where_gpus_count(calibrated_copy):
    document = yaml.safe_load(Path(calibrated_copy).read_text())
    document["stages"][2]["num_gpus"] = 1
    calibrated_copy.write_text(yaml.safe_dump(document))
    assert plan(calibrated_copy, "--rate", "10", "--max-replicas", "5").exit_code == USAGE
    assert plan(calibrated_copy, "--rate", "10", "--max-gpus", "2").exit_code == DONE


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("0.1s", 0.1), ("0.1", 0.1), (" 2 s ", 2.0), (".5s", 0.5), ("2 us", 2e-6)]
)
def test_times_are_read_with_their_unit(text, seconds):
    assert read_seconds(text, "--slo") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1s", "1h", "1 m", "ms"])
def test_other_times_are_refused(text):
    with pytest.raises(ConfigError, match=r"--slo: .*100ms"):
        read_seconds(text, "--slo")


@pytest.mark.parametrize("text", ["a", "a=0", "a=1.5", "a=1,a=2", "=2", "a=1,,b=2"])
def test_malformed_replicas_are_refused(text):
    with pytest.raises(ConfigError):
        read_replicas(text)


def test_the_deployment_is_the_specs(calibrated_ladder):
    service = ServiceProfile.read(calibrated_ladder.service_path)
    deployment = deployment_of(calibrated_ladder, service, None, {"fine": 3})
    assert [stage.replicas for stage in deployment.stages] == [1, 1, 3]
    assert [stage.fixed for stage in deployment.stages] == [True, False, False]
    assert [stage.calls for stage in deployment.stages] == [1, 2, 2]
    assert deployment.base_prices.tolist() == list(calibrated_ladder.spec.base_prices)
