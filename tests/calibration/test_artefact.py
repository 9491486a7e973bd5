"""calibration.json and service.json: what is written is what is read, and nothing else is accepted."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from table_cases import networks

from cascade.calibration.artefact import (
    Calibration,
    Machine,
    MeasuredBatch,
    ServiceProfile,
    StageService,
)
from cascade.calibration.fitting import fit
from cascade.errors import CalibrationMismatch, ConfigError

NAMES = ["net0", "net1", "net2"]
DIGESTS = {"net0": "aa", "net1": "bb", "net2": "cc"}


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit(networks(400, seed=1), DIGESTS, ladder="test")


@pytest.fixture(scope="module")
def service() -> ServiceProfile:
    return ServiceProfile(
        format_version=1,
        created_by="cascade 0",
        ladder="test",
        machine=Machine(kind="some processor", cpu_count=2, torch_threads=1),
        stages=tuple(
            StageService(
                name=name,
                digest=DIGESTS[name],
                a_s=0.001,
                b_s=0.0002,
                measured=(MeasuredBatch(rows=1, median_s=0.0012, p99_s=0.002, runs=50),),
            )
            for name in NAMES
        ),
    )


def test_a_calibration_read_equals_the_one_written(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.write(path)
    read = Calibration.read(path)
    assert read == calibration
    read.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_service_profile_read_equals_the_one_written(service: ServiceProfile, tmp_path: Path) -> None:
    service.write(tmp_path / "service.json")
    assert ServiceProfile.read(tmp_path / "service.json") == service


def test_the_file_is_readable_json_in_a_fixed_order_with_short_numbers(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.write(path)
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    assert list(document) == ["format_version", "created_by", "ladder", "table", "prices", "stages"]
    assert list(document["stages"][0]["gains"]) == ["net1", "net2"]
    curve = document["stages"][0]["p_correct"]
    assert f'"x": [{", ".join(str(x) for x in curve["x"])}]' in text, "a curve takes one line"
    assert all(value == float(f"{value:.9g}") for value in curve["x"] + curve["y"])


def test_texts_are_not_touched_by_the_layout(calibration: Calibration, tmp_path: Path) -> None:
    odd = calibration.model_copy(update={"ladder": '[\n 1,\n 2\n] "ü"'})
    odd.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json").ladder == odd.ladder


def broken(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken("stages", 1, "temperature", to=0), r"stages\.1\.temperature: Input should be greater than 0, got 0"),
        (broken("stages", 0, "temperature", to="hot"), r"stages\.0\.temperature: .*valid number, got 'hot'"),
        (broken("stages", 0, "colour", to=1), r"stages\.0\.colour: Extra inputs are not permitted, got 1"),
        (broken("stages", 0, "p_correct", "x", 0, to=2.0), r"stages\.0\.p_correct: .*x must be strictly ascending"),
        (broken("stages", 0, "p_correct", "y", 0, to=0.0), r"stages\.0: .*p_correct must lie strictly between 0 and 1"),
        (broken("stages", 0, "p_correct", "y", to=[0.5]), r"stages\.0\.p_correct: .*y has 1"),
        (broken("stages", 0, "p_correct", "x", to=[]), r"stages\.0\.p_correct\.x: .*at least 1 item"),
        (broken("stages", 0, "accuracy", to=1.5), r"stages\.0\.accuracy: .*less than or equal to 1, got 1\.5"),
        (broken("stages", 0, "accuracy", to=float("nan")), r"stages\.0\.accuracy: .*finite number"),
        (
            broken("stages", 2, "gains", to={"net0": {"method": "binned"}}),
            r"stages\.2\.gains\.net0\.binned\.x: Field required \(and 2 more\)",
        ),
        (
            broken("stages", 0, "gains", to={}),
            r"stages\.0\.gains: expected the dearer stages net1, net2 .* got \(none\)",
        ),
        (broken("stages", 1, "name", to="net0"), "a name is used twice in net0, net0, net2"),
        (broken("stages", to=[]), "stages: .*at least 1 item"),
        (broken("prices", to=[0.0]), "prices: expected one for each of 3 stages, got 1"),
        (broken("format_version", to=2), "format_version: Input should be 1, got 2"),
    ],
)
def test_a_malformed_calibration_names_the_field(
    calibration: Calibration, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = calibration.model_dump(mode="json")
    change(document)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as raised:
        Calibration.read(path)
    assert raised.value.detail.startswith(f"{path}: ")
    assert not isinstance(raised.value, CalibrationMismatch)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_file_that_is_no_calibration_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"calibration\.json: "):
        Calibration.read(path)


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read .*run `cascade profile`, then `cascade cal"):
        Calibration.read(tmp_path / "none.json")


def test_the_ladder_it_was_made_for_is_accepted(calibration: Calibration, service: ServiceProfile) -> None:
    calibration.check_belongs(NAMES, DIGESTS)
    service.check_belongs(NAMES, DIGESTS)


@pytest.mark.parametrize(
    ("names", "digests", "message"),
    [
        (NAMES, DIGESTS | {"net1": "xx"}, "stage 'net1': the .* was made for digest bb, the ladder now has xx"),
        ([*NAMES, "net3"], DIGESTS | {"net3": "dd"}, "stage 'net3' of the ladder is not in the "),
        (NAMES[:2], DIGESTS, "stage 'net2' of the .* is not in the ladder"),
        (["net1", "net0", "net2"], DIGESTS, "stage 'net1' stands where the .* has 'net0'"),
    ],
)
def test_another_ladder_is_refused_with_the_stage_and_what_to_run(
    calibration: Calibration, service: ServiceProfile, names: list[str], digests: dict[str, str], message: str
) -> None:
    for artefact in (calibration, service):
        with pytest.raises(CalibrationMismatch, match=message + ".*; run `cascade profile`, then `cascade calibrate`"):
            artefact.check_belongs(names, digests)


def test_a_service_that_takes_no_time_is_refused(service: ServiceProfile, tmp_path: Path) -> None:
    document = service.model_dump(mode="json")
    document["stages"][1] |= {"a_s": 0.0, "b_s": 0.0}
    (tmp_path / "service.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stages\.1: .*a_s and b_s cannot both be 0"):
        ServiceProfile.read(tmp_path / "service.json")


def test_reading_artefacts_loads_no_scipy() -> None:
    program = "import sys, cascade.calibration.artefact; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
