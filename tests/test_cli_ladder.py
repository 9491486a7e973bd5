"""`cascade ladder` as a user types it: every kind of file, what it prints and writes, and how it exits."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cascade.calibration.outcomes import OutcomeTable
from cascade.cli import ladder

DONE, USAGE = 0, 2
LINES = [
    {"model": "nano", "accuracy": 0.55, "cost": 1.0},
    {"model": "mini", "accuracy": 0.75, "cost": 10.0},
    {"model": "idle", "accuracy": 0.6, "cost": 20.0},
    {"model": "maxi", "accuracy": 0.86, "cost": 100.0},
]


def cascade(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    ladder.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write(path: Path) -> Path:
    """The four models in the form that the suffix names."""
    if path.suffix == ".csv":
        cells = [",".join([*LINES[0], "origin"]), *(",".join([*map(str, line.values()), "somewhere"]) for line in LINES)]
        path.write_text("\ufeff" + "\n".join(cells) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(LINES))
    else:
        path.write_text(yaml.safe_dump(LINES))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    """Three stages whose rightness row by row is known."""
    random = np.random.default_rng(0)
    hard = random.random(300)
    arrays = {
        "stages": np.array(["a", "b", "c"]),
        "cost": np.array([1.0, 5.0, 30.0]),
        "cost_unit": np.array("GFLOP"),
        "labels": np.zeros(300, dtype=np.int64),
    }
    for stage, skill in zip("abc", (0.5, 0.7, 0.9), strict=True):
        arrays[f"correct/{stage}"] = hard + random.normal(0, 0.1, 300) < skill
        arrays[f"score/{stage}"] = random.random(300)
    path = tmp_path / "outcomes.npz"
    OutcomeTable.from_arrays(arrays).write(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "json", "yaml", "yml"])
def test_every_form_of_list_says_the_same(tmp_path, suffix) -> None:
    result = cascade("ladder", write(tmp_path / f"zoo.{suffix}"), "--json")
    assert result.exit_code == DONE, result.output
    document = json.loads(result.stdout)
    assert [(m["model"], m["accuracy"], m["cost"]) for m in document["models"]] == [tuple(line.values()) for line in LINES]
    assert [model["dominated"] for model in document["models"]] == [False, False, True, False]
    assert document["chosen"]["rungs"] == ["nano", "mini", "maxi"]
    assert document["exact_best_by_router"] is None


def test_people_see_ladders_rungs_and_axes(tmp_path) -> None:
    result = cascade("ladder", write(tmp_path / "zoo.csv"), "--rungs", 2, "--cost-unit", "ms")
    assert result.exit_code == DONE, result.output
    assert "4 models" in result.stdout
    assert "1 dominated" in result.stdout
    assert "mini maxi" in result.stdout
    assert "nano mini maxi" not in result.stdout
    assert "cost (ms)" in result.stdout
    assert "range x10, size 2, largest step x10" in result.stdout


def test_a_table_gives_the_exact_bound_too(table) -> None:
    result = cascade("ladder", table, "--json")
    assert result.exit_code == DONE, result.output
    document = json.loads(result.stdout)
    assert document["cost_unit"] == "GFLOP"
    assert document["exact_best_by_cascade"][-1]["gain"] >= document["best_by_cascade"][-1]["cascade"]["subset_gain"]
    shown = cascade("ladder", table)
    assert "best row by row" in shown.stdout
    assert "mean alpha" in shown.stdout


def test_the_figure_and_its_numbers_are_written(table, tmp_path) -> None:
    result = cascade("ladder", table, "--out", tmp_path / "made" / "design")
    assert result.exit_code == DONE, result.output
    for suffix in ("svg", "png", "json"):
        path = tmp_path / "made" / f"design.{suffix}"
        assert path.stat().st_size > 0
        assert str(path) in result.stdout
    assert json.loads((tmp_path / "made" / "design.json").read_text())["chosen"]["rungs"][-1] == "c"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("zoo.csv", "model,accuracy\na,0.5\n", "cost"),
        ("zoo.csv", "model,accuracy,cost\na,76.1,1\n", "76.1"),
        ("zoo.json", "{", "is not JSON"),
        ("zoo.json", '{"model": "a"}', "expected a list"),
        ("zoo.yaml", "- [", "is not YAML"),
        ("zoo.yaml", "- a\n", "expected a list"),
        ("zoo.txt", "model", "npz"),
    ],
)
def test_a_wrong_file_is_named_and_exits_with_2(tmp_path, name, content, named) -> None:
    path = tmp_path / name
    path.write_text(content)
    result = cascade("ladder", path)
    assert result.exit_code == USAGE
    assert name in result.stderr
    assert named in result.stderr


def test_a_missing_file_and_no_rungs_exit_with_2(tmp_path, table) -> None:
    missing = cascade("ladder", tmp_path / "none.csv")
    assert missing.exit_code == USAGE
    assert "cannot be read" in missing.stderr
    none = cascade("ladder", table, "--rungs", 0)
    assert none.exit_code == USAGE
    assert "at least one rung" in none.stderr


def test_a_file_that_cannot_be_written_exits_with_2(table, tmp_path) -> None:
    (tmp_path / "taken").write_text("")
    result = cascade("ladder", table, "--out", tmp_path / "taken" / "design")
    assert result.exit_code == USAGE
    assert "cannot be written" in result.stderr


def service(path: Path, **seconds: float) -> Path:
    """A service profile in which a row of a full batch takes so long at each stage."""
    stages = [
        {
            "name": name,
            "digest": "d",
            "a_s": 0.0,
            "b_s": taken,
            "measured": [
                {"rows": n, "median_s": n * taken * (2 - (n == 8)), "p99_s": n * taken * 2, "runs": 3} for n in (1, 8)
            ],
        }
        for name, taken in seconds.items()
    ]
    machine = {"kind": "a machine", "cpu_count": 1, "torch_threads": 1}
    head = {"format_version": 1, "created_by": "test", "ladder": "zoo", "machine": machine}
    path.write_text(json.dumps({**head, "stages": stages}))
    return path


def test_measured_seconds_of_full_batches_can_be_the_costs_and_order_the_models(table) -> None:
    service(table.parent / "service.json", a=0.001, b=0.03, c=0.02)
    result = cascade("ladder", table, "--cost-by", "seconds", "--json")
    assert result.exit_code == DONE, result.output
    document = json.loads(result.stdout)
    assert document["cost_unit"] == "seconds"
    assert [(model["model"], model["cost"]) for model in document["models"]] == [
        ("a", pytest.approx(0.001)),
        ("c", pytest.approx(0.02)),
        ("b", pytest.approx(0.03)),
    ]
    # b is slower than c and less accurate: by its declared cost it has a place, by the clock it has none.
    assert [model["dominated"] for model in document["models"]] == [False, False, True]
    other = service(table.parent / "other.json", a=0.01, b=0.02, c=0.03)
    elsewhere = cascade("ladder", table, "--cost-by", "seconds", "--service", other, "--json")
    assert [model["model"] for model in json.loads(elsewhere.stdout)["models"]] == ["a", "b", "c"]


def test_times_that_are_missing_or_not_asked_for_exit_with_2(table, tmp_path) -> None:
    cases = [
        ([table, "--cost-by", "watts"], "expected declared or seconds"),
        ([table, "--cost-by", "seconds"], "service.json: cannot be read"),
        ([table, "--service", "service.json"], "goes with --cost-by seconds"),
        ([write(tmp_path / "zoo.csv"), "--cost-by", "seconds"], "needs an outcome table"),
        ([table, "--cost-by", "seconds", "--service", service(tmp_path / "short.json", a=1.0)], "no times of stage 'b'"),
    ]
    for arguments, named in cases:
        result = cascade("ladder", *arguments)
        assert result.exit_code == USAGE, result.output
        assert named in " ".join(result.stderr.split())
