"""`cascade train-exits` as a user types it: what it writes and prints, what it refuses, how it goes on and how it exits."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from exit_cases import adapter, blocks
from safetensors.torch import load_file
from typer.testing import CliRunner

from cascade.cli import app
from cascade.models.stage import load_weights

DONE, USAGE = 0, 2
FACTORY = "exit_cases:blocks"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on busy cores make a tiny step take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cascade(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def data(tmp_path) -> Path:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    path = tmp_path / "rows.npz"
    np.savez(path, x=x, labels=2 * (x[:, 0] > 0) + (x[:, 1] > 0))
    return path


def short(*more: object) -> tuple[object, ...]:
    return ("--epochs", 2, "--lr", 0.01, *more)


def test_weights_and_their_record_are_written(data, tmp_path) -> None:
    out = tmp_path / "made"
    result = cascade("train-exits", FACTORY, data, "--out", out, *short("--holdout", 0.2))
    assert result.exit_code == DONE, result.output
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 160  # the first line is prose, which the terminal folds
    assert "Accuracy on 40 held-out rows" in result.stdout
    assert "epoch 2/2" in result.stderr
    record = json.loads((out / "train.json").read_text())
    content = (out / "weights.safetensors").read_bytes()
    assert record["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert (record["rows"], record["held_out_rows"]) == (160, 40)
    assert len(record["accuracy"]) == 3
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert record["provenance"]["network"] == {"factory": FACTORY, "args": {}, "start": None}
    assert record["provenance"]["objective"]["loss"] == "joint"
    assert record["versions"]["torch"] == torch.__version__
    load_weights(blocks(), out / "weights.safetensors")


def test_machines_get_the_record_on_standard_output(data, tmp_path) -> None:
    result = cascade("train-exits", FACTORY, data, "--out", tmp_path, *short("--json"))
    assert result.exit_code == DONE, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "train.json").read_text())


def test_the_same_seed_writes_the_same_file_whatever_was_rolled_before(data, tmp_path) -> None:
    written = []
    for seed in (1, 1, 2):
        torch.rand(3)
        arguments = short("--seed", seed, "--loss", "equilibrium")
        result = cascade("train-exits", "exit_cases:unseeded_blocks", data, "--out", tmp_path, *arguments)
        assert result.exit_code == DONE, result.output
        written.append((tmp_path / "weights.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_run_goes_on_from_its_checkpoint(data, tmp_path) -> None:
    run = ("train-exits", FACTORY, data, *short("--checkpoint", tmp_path / "kept", "--loss", "distil"))
    assert cascade(*run, "--out", tmp_path / "first").exit_code == DONE
    refused = cascade(*run, "--out", tmp_path / "second")
    assert refused.exit_code == USAGE
    assert "holds the checkpoint" in " ".join(refused.stderr.split())
    resumed = cascade(*run, "--out", tmp_path / "second", "--resume")
    assert resumed.exit_code == DONE, resumed.output
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    other = cascade(*run, "--out", tmp_path / "second", "--resume", "--temperature", 5)
    assert other.exit_code == USAGE
    assert "other temperature" in " ".join(other.stderr.split())


def test_a_frozen_trunk_stays_out_of_the_file(data, tmp_path) -> None:
    arguments = ("train-exits", "exit_cases:adapter", data, *short("--precision", "float16"))
    assert cascade(*arguments, "--out", tmp_path / "part").exit_code == DONE
    assert cascade(*arguments, "--out", tmp_path / "all", "--all-weights").exit_code == DONE
    part, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("part", "all"))
    assert whole.keys() == adapter().state_dict().keys()
    assert whole.keys() - part.keys() == {name for name in whole if name.startswith(("stem", "blocks.0"))}
    record = json.loads((tmp_path / "part" / "train.json").read_text())
    assert record["trained_parameters"] < record["parameters"]


def test_training_starts_from_given_weights(data, tmp_path) -> None:
    first = cascade("train-exits", FACTORY, data, "--out", tmp_path / "a", *short())
    assert first.exit_code == DONE
    start = tmp_path / "a" / "weights.safetensors"
    result = cascade("train-exits", FACTORY, data, "--out", tmp_path / "b", *short("--start", start, "--json"))
    assert result.exit_code == DONE, result.output
    record = json.loads(result.stdout)
    assert record["provenance"]["network"]["start"] == hashlib.sha256(start.read_bytes()).hexdigest()
    before = json.loads((tmp_path / "a" / "train.json").read_text())
    assert record["epochs"][0]["loss"] < before["epochs"][0]["loss"]


def test_without_held_out_rows_nothing_is_claimed(data, tmp_path) -> None:
    result = cascade("train-exits", FACTORY, data, "--out", tmp_path, *short("--holdout", 0))
    assert result.exit_code == DONE, result.output
    assert "nothing is known of the accuracy" in " ".join(result.stderr.split())
    assert json.loads((tmp_path / "train.json").read_text())["accuracy"] == []


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--loss", "sum"), "--loss must be one of joint, distil, equilibrium"),
        (("--weights", "1,x"), "--weights: expected numbers"),
        (("--weights", "1,1"), "--weights: 2 numbers for 3 exits"),
        (("--loss", "distil", "--share", 2), "share learnt from the last exit must lie between 0 and 1"),
        (("--epochs", 0), "--epochs: Input should be greater than or equal to 1"),
        (("--batch-size", 0), "--batch-size: Input"),
        (("--optimizer", "adam"), "--optimizer: Input should be 'adamw' or 'sgd'"),
        (("--holdout", 1), "--holdout must be a share"),
        (("--holdout", 0.999), "leaves none to train on"),
        (("--args", "{"), "--args: not valid JSON"),
        (("--args", "[]"), "--args: expected a JSON object"),
        (("--args", '{"depth": 3}'), "unexpected keyword argument 'depth'"),
        (("--input", "y"), "no array 'y', it has x, labels"),
        (("--input", "x", "--input", "x"), "an input is named twice: x, x"),
        (("--resume",), "--resume needs --checkpoint"),
        (("--precision", "int8"), "--precision must be one of float32, float16"),
        (("--device", "tpu"), "--device must be one of"),
        (("--start", "nowhere.safetensors"), "nowhere.safetensors: cannot be read"),
        (("--threads", -1), "--threads must not be negative"),
        (("--lr", 1e30, "--clip", 0, "--optimizer", "sgd", "--warm-up", 0), "not finite in epoch"),
    ],
)
def test_what_cannot_be_done_is_named_and_exits_with_2(data, tmp_path, more, named) -> None:
    result = cascade("train-exits", FACTORY, data, "--out", tmp_path / "made", *more)
    assert result.exit_code == USAGE, result.output
    assert named in " ".join(result.stderr.split())
    assert not (tmp_path / "made" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        ("exit_cases", "factory"),
        ("exit_cases:nothing", "no attribute 'nothing'"),
        ("exit_cases:no_exits", "cannot be run on the rows"),
        ("pathlib:Path", "must return a torch.nn.Module, got PosixPath"),
    ],
)
def test_a_wrong_factory_is_named_and_exits_with_2(data, tmp_path, factory, named) -> None:
    result = cascade("train-exits", factory, data, "--out", tmp_path / "made")
    assert result.exit_code == USAGE, result.output
    assert named in " ".join(result.stderr.split())


def test_rows_that_cannot_be_used_exit_with_2(tmp_path) -> None:
    for arrays, named in (
        ({"labels": np.zeros(3, int)}, "no inputs"),
        ({"x": np.ones((3, 3), np.float32)}, "'labels' must be whole numbers"),
        ({"x": np.ones((3, 3), np.float32), "labels": np.array([0, -1, 0])}, "'labels' must not be negative"),
        ({"x": np.ones((4, 3), np.float32), "labels": np.zeros(3, int)}, "'x' has 4 rows, 'labels' has 3"),
        ({"x": np.ones((30, 3), np.float32), "labels": np.full(30, 7)}, "labels must lie in 0..3"),
    ):
        path = tmp_path / "rows.npz"
        np.savez(path, **arrays)
        result = cascade("train-exits", FACTORY, path, "--out", tmp_path / "made")
        assert result.exit_code == USAGE, result.output
        assert named in " ".join(result.stderr.split())


def test_a_folder_that_cannot_be_written_exits_with_2(data, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    result = cascade("train-exits", FACTORY, data, "--out", tmp_path / "taken", *short())
    assert result.exit_code == USAGE
    assert "cannot be written" in result.stderr
