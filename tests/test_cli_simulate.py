"""`cascade simulate` on a throw-away ladder: its arguments, its table, its document, its figure."""

import json
import shutil

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from cascade.calibration.artefact import ServiceProfile
from cascade.cli import plan, simulate
from cascade.cli.simulate import parse_slowdown, stage_servers, with_replicas
from cascade.errors import ConfigError
from cascade.simulation.cluster import Slowdown, StageServers
from cascade.spec import Ladder

app = typer.Typer()
app.callback()(lambda: None)
simulate.register(app)


def invoke(*arguments):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)], env={"COLUMNS": "250"})


def document(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_one_document_with_one_run_a_workload(calibrated):
    found = document(calibrated, "--workload", "poisson:200", "--workload", "step:50@1,2000@1", "--seconds", "2")
    assert [run["workload"] for run in found["runs"]] == ["poisson:200", "step:50@1,2000@1"]
    steady, step = found["runs"]
    assert 300 < steady["overall"]["offered"] < 500
    assert [phase["name"] for phase in step["phases"]] == ["1: 50/s", "2: 2,000/s"]
    for run in found["runs"]:
        for report in (run["overall"], *run["phases"]):
            ends = ("answered", "shed", "expired", "failed", "cancelled")
            assert sum(report[end] for end in ends) == report["offered"]
            assert 0 <= report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"] <= 1
            assert report["floor"] <= report["best"]
    assert found["rows"] > 0


def test_the_same_seed_gives_the_same_document(calibrated):
    arguments = (calibrated, "--workload", "burst:50@1,800@0.3", "--seconds", "2")
    assert document(*arguments, "--seed", 5) == document(*arguments, "--seed", 5)
    assert document(*arguments, "--seed", 5) != document(*arguments, "--seed", 6)


def test_people_get_a_table_and_are_told_of_fitted_rows(calibrated):
    result = invoke(calibrated, "--workload", "step:50@1,200@1")
    assert result.exit_code == 0, result.output
    for word in ("answered on time", "best possible", "1: 50/s", "2: 200/s", "step:50@1,200@1"):
        assert word in result.stdout
    assert "the calibration was fitted on" in result.stderr
    assert "E may exceed 1" in " ".join(result.stderr.split())


def test_steady_load_needs_no_warning_about_its_limit(calibrated):
    usual = (calibrated, "--workload", "poisson:100", "--seconds", 2)
    assert "E may exceed" not in invoke(*usual, "--deadline", "0.4s").stderr
    assert "E may exceed" in invoke(*usual, "--deadline", "0.5s").stderr


def test_rows_of_the_test_table_are_preferred(calibrated_copy):
    folder = Ladder.read(calibrated_copy).table_path.parent
    shutil.copy(folder / "outcomes.npz", folder / "test-outcomes.npz")
    assert document(calibrated_copy, "--workload", "poisson:50", "--seconds", 1)["table"].endswith("test-outcomes.npz")


def test_a_figure_and_its_numbers_for_each_run(calibrated, tmp_path):
    stem = tmp_path / "new" / "run"
    result = invoke(calibrated, "--workload", "step:100@1,1500@1", "--workload", "poisson:2", "--seconds", 2, "--out", stem)
    assert result.exit_code == 0, result.output
    for place in (1, 2):
        assert (stem.parent / f"run-{place}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (stem.parent / f"run-{place}.svg").read_bytes()
        assert len(json.loads((stem.parent / f"run-{place}.json").read_text())["runs"]) == 1


def test_an_outage_and_a_short_deadline_are_felt(calibrated):
    usual = ("--workload", "poisson:200", "--seconds", 2)
    healthy, down = document(calibrated, *usual), document(calibrated, *usual, "--slow", f"{_last(calibrated)}:0-9xinf")
    name = _last(calibrated)
    assert down["runs"][0]["overall"]["exits"][name] == 0 < healthy["runs"][0]["overall"]["exits"][name]
    assert down["runs"][0]["overall"]["slo_attainment"] == 1
    assert document(calibrated, *usual, "--deadline", "20ms")["deadline_s"] == 0.02


def _last(path):
    return Ladder.read(path).spec.stages[-1].name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workload", "poisson:fast"), "poisson:RATE"),
        (("--workload", "poisson:50", "--replicas", "huge=2"), "no stage 'huge'"),
        (("--workload", "poisson:50", "--hop", "soon"), "--hop: expected a time"),
        (("--workload", "poisson:50", "--slow", "all"), "--slow: expected STAGE:FROM-TOxFACTOR"),
        (("--workload", "poisson:50", "--cv", "-1"), "cv must be"),
        (("--workload", "poisson:50", "--seconds", "0"), "positive number of seconds"),
        (("--workload", "poisson:50", "--table", "none.npz"), "none.npz"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what(calibrated, arguments, said):
    result = invoke(calibrated, *arguments)
    assert result.exit_code == 2
    assert said in Text.from_ansi(result.stderr).plain


def test_slowdowns_name_stages(calibrated_ladder):
    spec = calibrated_ladder.spec
    assert parse_slowdown(f"{spec.stages[1].name}:5-10x3", spec) == Slowdown(1, 5.0, 10.0, 3.0)
    assert parse_slowdown(f"{spec.stages[1].name}:0.5-1xinf", spec).factor == float("inf")
    with pytest.raises(ConfigError, match="0 <= from < to"):
        parse_slowdown(f"{spec.stages[1].name}:5-2x3", spec)


def test_replicas_replace_those_of_the_spec(calibrated_ladder):
    spec = calibrated_ladder.spec
    inside = next((stage.name for stage in spec.stages if stage.placement == "router"), None)
    other = spec.stages[-1].name
    assert with_replicas(spec, [f"{other}=3"]).stages[-1].replicas == 3
    for text in (f"{other}=0", f"{other}=two", other):
        with pytest.raises(ConfigError, match="expected STAGE=N"):
            with_replicas(spec, [text])
    if inside is not None:
        with pytest.raises(ConfigError, match="inside the router"):
            with_replicas(spec, [f"{inside}=2"])


def test_servers_hop_only_to_replicas(calibrated_ladder):
    profile = ServiceProfile.read(calibrated_ladder.service_path)
    for stage, measured, server in zip(
        calibrated_ladder.spec.stages, profile.stages, stage_servers(calibrated_ladder.spec, profile, 0.003), strict=True
    ):
        if stage.placement == "router":
            assert server == StageServers(measured.a_s, measured.b_s, 1, 1, 0.0)
        else:
            places = (stage.replicas, stage.calls_per_replica, 0.003, stage.max_batch_size)
            assert server == StageServers(measured.a_s, measured.b_s, *places)


def test_prices_follow_a_plan_and_one_for_other_stages_is_refused(calibrated, tmp_path):
    plans = typer.Typer()
    plans.callback()(lambda: None)
    plan.register(plans)
    path = tmp_path / "plan.json"
    made = CliRunner().invoke(plans, ["plan", str(calibrated), "--out", str(path)])
    assert made.exit_code == 0, made.output
    forbidding = json.loads(path.read_text())
    for point in forbidding["points"]:
        point["prices"] = [0.0, 1.0, 1.0]
    path.write_text(json.dumps(forbidding))
    workload = ("--workload", "poisson:200", "--seconds", 2)
    planned, free = (
        document(calibrated, *workload, *more)["runs"][0]["overall"]["mean_cost"] for more in (("--plan", path), ())
    )
    assert planned < free / 2, "no gain is worth a price of 1"
    forbidding["stages"][0]["name"] = "other"
    path.write_text(json.dumps(forbidding))
    refused = invoke(calibrated, *workload, "--plan", path)
    assert refused.exit_code == 2
    assert "made for other stages, other, fair, fine" in refused.stderr
