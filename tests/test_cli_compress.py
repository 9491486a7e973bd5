"""`cascade compress` as a user types it: what it makes, measures and says, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from ladders import CLASSES, FEATURES
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from cascade.calibration.artefact import MeasuredBatch
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli import app
from cascade.loading import load_network
from cascade.models.compress import Method
from cascade.rungs import Rung
from cascade.spec import Ladder, StageSpec

DONE, USAGE = 0, 2


class Layered(nn.Module):
    """Three scores of rows [n, 4] through one hidden layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, width)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x)))


def cascade(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def labelled(path: Path, x: np.ndarray) -> None:
    np.savez(path, x=x, labels=np.abs(x[:, :3]).argmax(axis=1))


@pytest.fixture
def spec(tmp_path) -> Path:
    """A ladder of two networks, and training rows of which a part is stolen from the test rows."""
    random = np.random.default_rng(1)
    x = random.normal(size=(900, FEATURES)).astype(np.float32)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    labelled(tmp_path / "data" / "calibration.npz", x[:300])
    labelled(tmp_path / "data" / "test.npz", x[300:600])
    labelled(tmp_path / "training.npz", x[500:])
    stages = []
    for name, width, cost in (("low", 4, 30.0), ("high", 32, 300.0)):
        torch.manual_seed(width)
        save_file(Layered(width).state_dict(), tmp_path / "weights" / f"{name}.safetensors")
        model = {"factory": "test_cli_compress:Layered", "args": {"width": width}, "weights": f"weights/{name}.safetensors"}
        stages.append({"name": name, "model": model, "cost": cost, "max_batch_size": 8})
    document = {
        "name": "layered",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [FEATURES]}],
        "labels": list(CLASSES),
        "stages": stages,
    }
    (tmp_path / "cascade.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "cascade.yaml"


def test_variants_are_made_measured_and_stand_in_a_spec(spec):
    out = spec.parent / "made"
    rows = spec.parent / "training.npz"
    asked = ["--method", "int8-dynamic", "--method", "int8-static", "--method", "bfloat16", "--method", "distilled"]
    result = cascade("compress", spec, "high", *asked, "--rows", rows, "--student", "low", "--epochs", 2, "--out", out)
    assert result.exit_code == DONE, result.output
    assert "100 rows" in result.stderr  # 500 to 599 are test rows
    rungs = yaml.safe_load((out / "rungs.yaml").read_text())
    names = {stage["name"] for stage in rungs["stages"]}
    assert names == {"low", "high", "high-int8-dynamic", "high-int8-static", "high-bfloat16", "high-distilled"}
    costs = [stage["cost"] for stage in rungs["stages"]]
    assert costs == sorted(costs)
    table = OutcomeTable.read(out / "outcomes.npz")
    assert table.cost_unit == "seconds"
    assert set(table.split) == {"calibration"}
    for name in names - {"low", "high"}:
        assert f"{name}: " in result.stdout
    # Every one of them is a stage that a spec can name, with weights that are no pickles.
    document = yaml.safe_load(spec.read_text())
    for stage in rungs["stages"]:
        document["stages"] = [stage]
        spec.write_text(yaml.safe_dump(document))
        ladder = Ladder.read(spec)
        loaded = load_network(ladder, ladder.spec.stages[0])
        found = loaded.run({"x": np.load(spec.parent / "data" / "calibration.npz")["x"][:50]}).logits
        assert found.argmax(axis=1).tolist() == table.prediction(stage["name"])[:50].tolist()
    assert load_file(out / "weights" / "high-int8-static.safetensors")["head.weight_int8"].dtype == torch.int8


def test_the_table_that_it_writes_designs_a_ladder_by_seconds(spec):
    out = spec.parent / "made"
    assert cascade("compress", spec, "low", "high", "--method", "float16", "--out", out).exit_code == DONE
    declared = cascade("ladder", out / "outcomes.npz", "--json")
    measured = cascade("ladder", out / "outcomes.npz", "--cost-by", "seconds", "--json")
    assert measured.exit_code == DONE, measured.output
    assert json.loads(measured.stdout)["cost_unit"] == "seconds"
    for one, other in zip(json.loads(declared.stdout)["models"], json.loads(measured.stdout)["models"], strict=True):
        assert one["cost"] == pytest.approx(other["cost"])


def test_machines_get_one_document_and_the_test_table_if_they_ask(spec):
    out = spec.parent / "made"
    result = cascade("compress", spec, "high", "--method", "int8-dynamic", "--out", out, "--test", "--json")
    assert result.exit_code == DONE, result.output
    document = json.loads(result.stdout)
    found = {rung["stage"]["name"]: rung for rung in document["rungs"]}["high-int8-dynamic"]
    assert found["parent"] == "high"
    assert found["method"] == "int8-dynamic"
    assert found["bytes"] < (spec.parent / "weights" / "high.safetensors").stat().st_size * 2
    assert found["accuracy_change_se"] >= 0
    assert found["macs"] is not None
    assert OutcomeTable.read(out / "test-outcomes.npz").rows == 300
    assert str(out / "test-outcomes.npz") in document["written"]


def rung(speed: float, speed_se: float, change: float, change_se: float) -> Rung:
    batch = MeasuredBatch(rows=8, median_s=0.008, p99_s=0.01, runs=30)
    stage = StageSpec.model_validate({"name": "high-float16", "cost": 1.0, "model": {"factory": "a:b"}})
    how = Method.FLOAT16
    return Rung(stage, "high", how, "", None, 10, 0.9, change, change_se, batch, batch, speed, speed_se)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ((0.5, 0.02, 0.0, 0.001), "slower than high: it earns no place"),
        ((1.03, 0.02, 0.0, 0.001), "no cheaper than high: it earns no place"),
        ((1.5, 0.02, -0.01, 0.001), "cheaper than high, and less accurate"),
        ((1.5, 0.02, -0.001, 0.001), "cheaper than high, and as accurate as far as these rows tell"),
    ],
)
def test_a_variant_that_is_no_cheaper_than_its_parent_is_said_to_be_so(measured, words):
    assert rung(*measured).verdict == words
    assert rung(*measured).is_cheaper == words.startswith("cheaper")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["none"], "the ladder has no stage 'none'"),
        (["high", "--method", "magic"], "--method magic: expected one of"),
        (["high", "--method", "int8-static"], "--method int8-static needs --rows"),
        (["high", "--method", "distilled", "--rows", "training.npz"], "needs --student"),
        (["high", "--method", "distilled", "--rows", "training.npz", "--student", "x"], "neither a stage (low, high)"),
        (["high", "--student", "low", "--student-args", '{"width": 3}'], "arguments of its own"),
        (["high", "--student", "a:b", "--student-args", "["], "--student-args: not JSON"),
        (["high", "--keep", "1.5"], "--keep"),
        (["high", "--norm", "l3"], "--norm"),
        (["high", "--soft", "2"], "--soft"),
        (["high", "--minutes", "0"], "--minutes"),
        (["high", "--rows", "data/test.npz"], "all its rows are calibration or test rows"),
        (["high", "--rows", "missing.npz"], "missing.npz: cannot be read"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_says_why(spec, arguments, named, monkeypatch):
    monkeypatch.chdir(spec.parent)
    result = cascade("compress", spec, *arguments)
    assert result.exit_code == USAGE, result.output
    assert named in " ".join(result.stderr.split())
    assert not (spec.parent / "compressed").exists()
