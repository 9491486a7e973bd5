"""`cascade certify`, as a user types it: what it prints, what it writes, and how it exits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cascade.calibration.artefact import Calibration
from cascade.calibration.certificate import Certificate, digest_of
from cascade.calibration.fitting import fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.certify import register
from tests.calibration.table_cases import networks

DONE, VERDICT_FAILED, USAGE = 0, 1, 2

app = typer.Typer()
app.callback()(lambda: None)
register(app)


def certify(*arguments: object) -> Result:
    """Run the command in a wide terminal."""
    words = ["certify", *(str(argument) for argument in arguments)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """table.npz with the splits fit (1,500 rows), check (3,000) and few (40), and groups; fitted.json on the split fit."""
    folder = tmp_path_factory.mktemp("certify")
    plain = networks(rows=4540, seed=4)
    split = np.repeat(["fit", "check", "few"], [1500, 3000, 40])
    group = np.where(plain.labels < 2, "red", "blue")
    table = OutcomeTable.from_arrays({**plain.arrays(), "split": split, "group": group})
    table.write(folder / "table.npz")
    digests = dict.fromkeys(table.stages, "d")
    calibration = fit(table, digests, ladder="nets", split="fit", prices=[0.0, 0.02, 0.2])
    calibration.write(folder / "fitted.json")
    replace(table, split=None).write(folder / "bare.npz")
    return folder


def by_file(files: Path, *arguments: object) -> Result:
    return certify(files / "table.npz", "--calibration", files / "fitted.json", "--check-split", "check", *arguments)


def test_it_shows_the_path_with_the_choice_and_every_group(files):
    result = by_file(files, "--max-loss", 0.03)
    assert result.exit_code == DONE, result.output
    assert "3,000 rows" in result.stdout
    lines = result.stdout.splitlines()
    path = [line for line in lines if line.count("%") >= 4]
    assert sum("chosen" in line for line in path) == 1
    assert sum("free" in line for line in path) == 1
    assert "free: prices may move freely up to here" in result.stdout
    assert sum("base prices" in line for line in lines) == 1
    assert "certified at a loss of 0.03 with confidence 0.9" in result.stdout
    assert "with a price of its own for each stage, tested on 1,500 rows" in result.stdout
    assert any("blue" in line for line in lines)
    assert any("red" in line for line in lines)
    assert len(path) < 20, "about a dozen points, not sixty"


def test_a_machine_gets_the_certificate_as_json_and_the_file_is_the_same(files, tmp_path):
    out = tmp_path / "new" / "certificate.json"
    result = by_file(files, "--max-loss", 0.03, "--out", out, "--json")
    assert result.exit_code == DONE
    certificate = Certificate.read(out)
    assert json.loads(result.stdout) == certificate.model_dump(mode="json")
    assert (certificate.rows, certificate.max_loss, certificate.delta) == (3000, 0.03, 0.1)
    assert certificate.table.split == "check"
    assert certificate.table.digest == OutcomeTable.read(files / "table.npz").digest()
    assert f"wrote {out}" in by_file(files, "--max-loss", 0.03, "--out", out).stdout


def test_the_certificate_belongs_to_the_calibration_and_has_bounds_of_its_own_for_its_base_prices(files):
    calibration = Calibration.read(files / "fitted.json")
    document = json.loads(by_file(files, "--max-loss", 0.03, "--json").stdout)
    assert document["calibration"] == digest_of(calibration)
    assert list(calibration.prices) in [point["prices"] for point in document["path"]]


def test_without_a_calibration_one_part_of_the_table_is_fitted_and_the_other_counted(files):
    halves = json.loads(certify(files / "bare.npz", "--max-loss", 0.03, "--json").stdout)
    assert halves["rows"] == pytest.approx(2270, abs=5)
    assert halves["chosen"] is not None
    other = json.loads(certify(files / "bare.npz", "--max-loss", 0.03, "--seed", 1, "--json").stdout)
    assert other["table"]["digest"] == halves["table"]["digest"]
    assert other["path"] != halves["path"]
    named = certify(files / "table.npz", "--max-loss", 0.03, "--fit-split", "fit", "--check-split", "check", "--json")
    assert json.loads(named.stdout)["rows"] == 3000


def test_what_cannot_be_certified_fails_and_says_what_could_be(tmp_path):
    networks(rows=4540, seed=3, strengths=(3.0, 3.2, 3.4)).write(tmp_path / "alike.npz")
    result = certify(tmp_path / "alike.npz", "--max-loss", 0.002)
    assert result.exit_code == VERDICT_FAILED
    assert "nothing can be certified at a loss of 0.002" in result.stdout
    smallest = float(result.stdout.split("could certify is ")[1].split("%")[0]) / 100
    assert 0.002 < smallest < 0.02
    assert certify(tmp_path / "alike.npz", "--max-loss", smallest).exit_code == DONE


def test_more_confidence_asks_for_safer_prices(files):
    chosen = [
        json.loads(by_file(files, "--max-loss", 0.03, "--confidence", confidence, "--json").stdout)["chosen"]
        for confidence in (0.5, 0.999)
    ]
    assert chosen[1] < chosen[0]


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--check-split", "fit"], "fitted on split 'fit' of this very table"),
        ([], "fitted on split 'fit' of this very table"),
        (["--check-split", "few"], "40 rows can certify nothing"),
        (["--check-split", "none"], "split 'none' has no rows"),
        (["--fit-split", "fit", "--check-split", "check"], "--fit-split"),
        (["--check-split", "check", "--max-loss", "1.5"], "max_loss"),
        (["--check-split", "check", "--confidence", "0"], "confidence"),
        (["--check-split", "check", "--max-loss", "0.03", "--out", "/dev/null/x.json"], "/dev/null/x.json"),
    ],
)
def test_what_makes_no_sense_is_refused(files, arguments, mentions):
    result = certify(files / "table.npz", "--calibration", files / "fitted.json", *arguments)
    assert result.exit_code == USAGE
    assert mentions in result.stderr


def test_rows_that_were_fitted_on_are_recognised_in_a_file_of_their_own(files, tmp_path):
    part = OutcomeTable.read(files / "table.npz").select("fit")
    part.write(tmp_path / "part.npz")
    fit(part, dict.fromkeys(part.stages, "d"), ladder="nets").write(tmp_path / "part.json")
    alone = certify(tmp_path / "part.npz", "--calibration", tmp_path / "part.json")
    assert alone.exit_code == USAGE
    inside = certify(files / "table.npz", "--check-split", "fit", "--calibration", tmp_path / "part.json")
    assert inside.exit_code == USAGE
    assert "of this very table" in inside.stderr


def test_help_says_what_certified_means():
    result = certify("--help")
    assert result.exit_code == DONE
    assert "Certified means" in result.stdout


def test_a_certificate_for_direct_routing_says_so(files):
    result = certify(files / "table.npz", "--fit-split", "fit", "--check-split", "check", "--routing", "direct", "--json")
    assert result.exit_code in (DONE, VERDICT_FAILED), result.output
    assert Certificate.model_validate_json(result.stdout).routing == "direct"
