"""The Dockerfile without a Docker: its files reach the build, its commands install what is pinned, its user is not root."""

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

from cascade.cli import app
from cascade.wire.routes import RouteKind, parse_route

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deployments" / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = {canonicalize_name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}


def instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order; comments gone, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


ARGS = dict(argument.split("=", 1) for argument in of("ARG"))


def ignored(path: str) -> bool:
    """Whether the build does not see a path: the last pattern that matches it, or a folder above it, decides."""
    hidden = False
    above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        plain = pattern.removeprefix("!").removeprefix("**/")
        matched = any(fnmatch.fnmatch(each, plain) or fnmatch.fnmatch(Path(each).name, plain) for each in above)
        hidden = not pattern.startswith("!") if matched else hidden
    return hidden


def test_every_file_that_is_copied_exists_and_reaches_the_build():
    sources = [source for arguments in of("COPY") for source in arguments.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "cascade", "deployments"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    for weight in ROOT.glob("deployments/*/weights/*"):
        assert not ignored(str(weight.relative_to(ROOT)))


@pytest.mark.parametrize("path", [".git", ".venv/bin/python", "tests/conftest.py", "cascade/__pycache__/x.pyc", "runs"])
def test_what_an_image_has_no_use_for_stays_out(path):
    assert ignored(path)


def test_the_python_is_the_one_that_the_versions_were_pinned_with():
    assert Version(ARGS["PYTHON"]) in SpecifierSet(PROJECT["project"]["requires-python"])
    assert ARGS["PYTHON"] == PROJECT["tool"]["mypy"]["python_version"]


def test_everything_is_installed_at_its_pinned_version():
    installs = [command for command in of("RUN") if "pip install" in command]
    assert len(installs) == 4
    assert all("-c constraints.txt" in command for command in installs)
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]} <= PINNED


def test_the_dependencies_are_those_of_the_project(tmp_path):
    (command,) = (command for command in of("RUN") if "tomllib" in command)
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    shell = command.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    subprocess.run(["sh", "-c", shell], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "needed.txt").read_text().splitlines() == PROJECT["project"]["dependencies"]


def test_both_variants_are_there_and_are_what_the_manifests_ask_for():
    stages = [arguments.partition(" AS ")[2] for arguments in of("FROM")]
    kustomization = yaml.safe_load((ROOT / "deployments" / "kuberay" / "kustomization.yaml").read_text())
    variants = {image["newTag"].rpartition("-")[2] for image in kustomization["images"]}
    assert {f"packages-{variant}" for variant in variants} <= set(stages)
    assert ARGS["VARIANT"] in variants
    (energy,) = PROJECT["project"]["optional-dependencies"]["energy"]
    assert any(f'"{energy}"' in command for command in of("RUN"))


def test_the_container_is_not_root_and_the_manifests_know_its_user():
    (user,) = of("USER")
    assert int(user) > 0
    service = yaml.safe_load((ROOT / "deployments" / "kuberay" / "rayservice.yaml").read_text())
    groups = [service["spec"]["rayClusterConfig"]["headGroupSpec"], *service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    assert {group["template"]["spec"]["securityContext"]["runAsUser"] for group in groups} == {int(user)}
    assert any(f"--uid {user} " in command for command in of("RUN"))


def test_by_itself_it_serves_a_ladder_and_says_whether_it_can_answer():
    (command,) = of("CMD")
    program, subcommand, spec, option, host = json.loads(command)
    assert program == "cascade"
    helped = CliRunner().invoke(app, [subcommand, "--help"], env={"COLUMNS": "300"})
    assert helped.exit_code == 0
    assert option in helped.output
    assert (ROOT / spec).is_file()
    assert host == "0.0.0.0"
    (check,) = of("HEALTHCHECK")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)
    assert url is not None
    assert of("EXPOSE") == [url[1]]
    assert parse_route("GET", url[2]).kind is RouteKind.SERVER_READY
    compile(json.loads(check[check.index("[") :])[-1], "healthcheck", "exec")
