"""`cascade init`: the folder that it writes is a ladder that works, by the very commands that it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from cascade.cli import app
from cascade.cli.init import COMMANDS, FILES
from cascade.spec import Ladder

SERVERS = ("cascade demo", "cascade serve")
"""Commands that start Ray; `cascade check` says that what they need is there."""


def init(*arguments: str):
    return CliRunner().invoke(app, ["init", *arguments])


def test_every_command_that_it_prints_works(tmp_path):
    folder = tmp_path / "my ladder"
    result = init(str(folder))
    assert result.exit_code == 0, result.output
    commands = [command for command, _ in COMMANDS]
    for command in commands:
        assert command in result.output
        assert command in (folder / "README.md").read_text()
    runnable = [command for command in commands if not command.startswith(SERVERS)]
    assert len(runnable) == len(commands) - len(SERVERS)
    script = "\n".join(["set -e", *runnable])
    root = str(Path(__file__).resolve().parent.parent)
    # The commands say `python` and `cascade`, as an operator has them; here both are of this interpreter.
    functions = f'python() {{ "{sys.executable}" "$@"; }}\ncascade() {{ "{sys.executable}" -P -m cascade.cli "$@"; }}\n'
    script = functions + script.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{root}")
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calibration belongs to it" in done.stdout


def test_its_files_say_what_they_are(tmp_path):
    assert init(str(tmp_path / "colours")).exit_code == 0
    folder = tmp_path / "colours"
    spec = folder / "cascade.yaml"
    assert spec.read_text().startswith("# yaml-language-server: $schema=cascade.schema.json\n")
    assert (folder / "cascade.schema.json").is_file()
    assert Ladder.read(spec).spec.name == "colours"
    schema = ServeDeploySchema.model_validate(yaml.safe_load((folder / "serve.yaml").read_text()))
    assert [application.name for application in schema.applications] == ["colours"]
    assert not any("{{" in (folder / file).read_text() for file in FILES)


@pytest.mark.parametrize(("folder", "name"), [("my ladder", "my-ladder"), ("-x-", "x"), ("...", "ladder")])
def test_a_name_is_made_of_the_folders(tmp_path, folder, name):
    (tmp_path / "in").mkdir()
    assert init(str(tmp_path / "in" / folder)).exit_code == 0
    assert Ladder.read(tmp_path / "in" / folder / "cascade.yaml").spec.name == name


def test_a_name_that_no_ladder_can_have_is_refused(tmp_path):
    result = init(str(tmp_path), "--name", "my ladder")
    assert result.exit_code == 2
    assert "'my ladder'" in result.output


def test_files_that_are_there_are_not_written_over_unless_asked(tmp_path):
    (tmp_path / "models.py").write_text("mine")
    result = init(str(tmp_path))
    assert result.exit_code == 2
    assert "models.py" in result.output
    assert (tmp_path / "models.py").read_text() == "mine"
    assert not (tmp_path / "cascade.yaml").exists()
    assert init(str(tmp_path), "--force").exit_code == 0
    assert (tmp_path / "models.py").read_text() != "mine"
