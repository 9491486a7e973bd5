"""Every command over a ladder of exits, from its rows to its plan."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli import app
from cascade.rows import read_rows
from cascade.spec import Ladder
from loadtests import baselines
from tests.exit_ladders import COSTS, NAMES, rotated_scores, write_exit_ladder


def cascade(*arguments: object) -> str:
    """Run a command that works; what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    path = write_exit_ladder(tmp_path_factory.mktemp("exits"), rows=600)
    cascade("profile", path)
    cascade("calibrate", path)
    cascade("profile", path, "--split", "test", "--out", path.parent / "calibration" / "test-outcomes.npz")
    return path


def test_the_table_holds_what_every_exit_says_in_one_pass_and_what_its_segment_costs(spec):
    import torch

    ladder = Ladder.read(spec)
    table = OutcomeTable.read(ladder.table_path)
    assert table.stages == NAMES
    assert table.cost.tolist() == list(COSTS)
    assert table.resumes.tolist() == [False, True, True]
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.calibration))
    network, _ = rotated_scores()
    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs["x"])).softmax(dim=2).numpy()
    for place, name in enumerate(NAMES):
        np.testing.assert_allclose(table.probs(name), expected[:, place], atol=1e-5)
    profile = ServiceProfile.read(ladder.service_path)
    assert [[batch.rows for batch in stage.measured] for stage in profile.stages] == [[1, 2, 4, 8]] * 3


def test_a_check_says_where_the_exits_run(spec):
    shown = cascade("check", spec)
    assert shown.count("together") == 2
    assert "x11.0" in shown  # 176 after 16, and not 160 after 16


def test_every_command_takes_the_ladder(spec):
    table = Ladder.read(spec).table_path
    assert "first" in cascade("certify", table, "--max-loss", "0.05")
    assert "1,776" in cascade("frontier", table)  # one model for everything: the last exit, from the inputs on
    assert "third" in cascade("plan", spec, "--rate", "500", "--slo", "200ms")
    assert "answered by third" in cascade("simulate", spec, "--workload", "poisson:200", "--seconds", "2")


def test_a_ladder_is_designed_from_the_table(spec):
    made = json.loads(cascade("ladder", Ladder.read(spec).table_path, "--json"))
    assert [model["cost"] for model in made["models"]] == [16.0, 176.0, 1776.0]
    # Between exits of one network nothing is paid twice, so that each can only save.
    assert min(made["all"]["cascade"]["rung_savings"]) >= -1e-9


def test_replicas_belong_to_the_first_of_the_stages_that_run_together(spec):
    refused = CliRunner().invoke(app, ["plan", str(spec), "--replicas", "second=2"])
    assert refused.exit_code == 2
    assert "runs together with 'first'" in refused.output
    refused = CliRunner().invoke(app, ["simulate", str(spec), "--workload", "poisson:100", "--replicas", "third=2"])
    assert refused.exit_code == 2
    assert "runs together with 'first'" in refused.output


def test_the_baseline_that_asks_the_top_stage_only_runs_the_segments_before_it_too(spec):
    ladder = Ladder.read(spec)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    table = OutcomeTable.read(ladder.table_path.with_name("test-outcomes.npz"))
    logits = baselines.TopReplica(ladder)._run(inputs).logits
    assert (logits.argmax(axis=1) == table.probs(NAMES[-1]).argmax(axis=1)).all()
    ongoing, _ = baselines.queue_limits(ladder.spec, ServiceProfile.read(ladder.service_path).stages)
    assert ongoing == 2 * ladder.spec.stages[-1].max_batch_size


def test_a_plan_adds_up_what_stages_take_of_the_replicas_that_they_share(spec, tmp_path):
    shown = cascade("plan", spec, "--out", tmp_path / "plan.json")
    assert "% first" in shown
    assert "% second" not in shown
    stages = json.loads((tmp_path / "plan.json").read_text())["stages"]
    assert [stage["owner"] for stage in stages] == [None, "first", "first"]
