"""The benchmark of a ladder on a GPU, on a machine without one: its parts run, stand alone, and add up to targets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.gpu import LIMITS_S, in_a_process, run_part, targets
from benchmarks.gpu_loops import roofline
from benchmarks.gpu_setup import FULL, PEAKS, SMOKE, TOP, derive, peak_of
from cascade.spec import Ladder

ROOT = Path(__file__).parents[1]


# -- what it is measured on --------------------------------------------------------------------------------------------


def test_the_ladders_of_a_full_run_are_valid_and_share_one_gpu(tmp_path):
    whole = Ladder.read(derive(tmp_path / "whole", FULL)).spec
    assert [stage.name for stage in whole.stages] == ["linear", "tiny", "small", "medium", "large", TOP]
    assert 0.5 < sum(stage.num_gpus for stage in whole.stages) <= 1
    assert whole.stages[-1].cost == 81 * whole.stages[-2].cost
    (top,) = Ladder.read(derive(tmp_path / "top", FULL, top_alone=True)).spec.stages
    assert (top.name, top.num_gpus, top.precision) == (TOP, 1.0, "bfloat16")
    assert 32 in FULL.sizes


def test_a_smoke_run_reserves_no_gpu(tmp_path):
    path = derive(tmp_path / "whole", SMOKE)
    assert not any(stage.num_gpus for stage in Ladder.read(path).spec.stages)
    assert yaml.safe_load(path.read_text())["data"] == {"calibration": "calibration.npz", "test": "test.npz"}


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-40GB", 1.56e12),
        ("NVIDIA L40S", 0.864e12),
        ("Tesla T4", 0.32e12),
        ("CPU", None),
    ],
)
def test_peaks_are_found_by_name_and_not_guessed(name, bandwidth):
    peak = peak_of(name)
    assert (None if peak is None else peak.bytes_per_s) == bandwidth


def test_the_roofline_is_the_lower_of_arithmetic_and_memory():
    h100 = PEAKS["H100"]
    assert roofline(1e9, 1.0, "bfloat16", h100) == 989e12 / 2e9
    assert roofline(1e9, 1.0, "float32", h100) == 67e12 / 2e9
    assert roofline(1.0, 1e6, "bfloat16", h100) == 3.35e12 / 1e6
    assert roofline(1e9, 1.0, "bfloat16", None) is None


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_limits_leave_less_than_nine_minutes():
    assert sum(LIMITS_S.values()) < 9 * 60


def test_every_check_passes_on_a_faked_gpu(tmp_path):
    assert [each for each in run_part("checks", tmp_path, SMOKE) if not each["passed"]] == []


def test_numerics_are_within_the_rounding_of_each_precision_on_a_faked_gpu(tmp_path):
    found = run_part("numerics", tmp_path, SMOKE)
    assert {each["stage"] for each in found} == {"linear", TOP}
    assert len(found) == 10
    for each in found:
        assert each["graphs"]
        assert each["most_u"] <= (48 if each["how"].startswith("float32") else 8), each


def test_loops_measure_every_stage_at_every_size(tmp_path):
    found = run_part("loops", tmp_path, SMOKE)
    assert [(each["stage"], each["batch"]) for each in found] == [("linear", n) for n in (1, 8, 128)] + [(TOP, 1), (TOP, 8)]
    for each in found:
        assert all(each[loop] > 0 for loop in ("naive", "bare", "device", "ours", "macs", "bytes"))
        assert each["limit"] is None  # of a CPU nothing is known here


def test_a_part_that_fails_says_why(tmp_path):
    found = in_a_process("nonsense", tmp_path, smoke=True, limit_s=120)
    assert "nonsense" in found["error"]


def test_a_part_that_takes_too_long_is_cut_off(tmp_path):
    assert "cut off" in in_a_process("loops", tmp_path, smoke=True, limit_s=0.05)["error"]


# -- targets -----------------------------------------------------------------------------------------------------------


def measured(rows_per_s=950.0, idle_share=0.05, passed=True):
    return {
        "checks": {"result": [{"check": "it works", "passed": passed, "says": ""}]},
        "loops": {
            "result": [{"stage": TOP, "batch": batch, "bare": bare} for batch, bare in ((8, 5e3), (32, 800), (128, 1e3))]
        },
        "top": {"result": {"points": [{"rows_per_s": rows, "idle_share": idle_share} for rows in (rows_per_s, 10.0)]}},
        "whole": {"error": "cut off", "seconds": 1},
    }


def verdicts(parts):
    return [(target["measured"], target["met"]) for target in targets(parts)]


def test_targets_are_held_against_the_bare_loop_at_batches_of_32_and_more():
    assert verdicts(measured()) == [("all pass", True), ("95%", True), ("5%", True)]
    assert verdicts(measured(700.0, 0.2, False)) == [("it works", False), ("70%", False), ("20%", False)]


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert verdicts(measured(idle_share=None))[2] == ("not measured", None)
    assert targets({"top": {"error": "no server", "seconds": 3}}) == []


@pytest.mark.ray
def test_the_whole_benchmark_runs_on_a_machine_without_a_gpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(out), "--only", "top,whole"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(out.read_text())["parts"]
    (point,) = parts["top"]["result"]["points"]
    assert point["rows_per_s"] > 0
    assert point["refused"] == 0
    loads = parts["whole"]["result"]["loads"]
    assert [load["multiple"] for load in loads] == list(SMOKE.multiples)
    assert all(load["answered"] > 0 for load in loads)
    assert "targets" in done.stdout
