"""The house itself: floors, sizes, docstrings, and files that must agree with the code."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure
from ray.serve.schema import ServeDeploySchema

from cascade.serving.app import AppArgs
from cascade.serving.environment import FAST_PATH, GRPC
from cascade.spec import Ladder, json_schema

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "cascade").rglob("*.py"))
MAX_LINES = 400


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked_files() -> list[Path]:
    """What git holds, or nothing outside a checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_imports_go_downward_only():
    configure()
    assert lint_imports(str(ROOT / "pyproject.toml"), cache_dir=None, no_logo=True)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path):
    source = path.read_text()
    assert len(source.splitlines()) < MAX_LINES
    assert ast.get_docstring(ast.parse(source))


def test_the_checked_in_schema_is_that_of_the_code():
    assert json.loads((ROOT / "cascade.schema.json").read_text()) == json_schema()


def test_the_environment_file_is_the_fast_path_of_the_code():
    lines = (ROOT / "deployments" / "serve.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines if line and not line.startswith("#")) == FAST_PATH | GRPC


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("deployments/*/serve.yaml")), ROOT / "deployments" / "both.yaml"], ids=name_of
)
def test_every_deployment_file_deploys_a_ladder_that_exists(path):
    document = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(document)
    # Serve ignores keys that it does not know, so nothing may be lost between the file and what Serve read.
    assert set(document) <= set(schema.model_dump(exclude_unset=True))
    for written, application in zip(document["applications"], schema.applications, strict=True):
        assert set(written) <= set(application.model_dump(exclude_unset=True))
        assert application.import_path == "cascade.serving.app:build"
        Ladder.read(ROOT / AppArgs.model_validate(application.args).spec)


def test_no_tracked_file_names_a_path_of_a_developers_machine():
    files = tracked_files()
    if not files:
        pytest.skip("not a git checkout")
    # Put together here, so that this file does not hold what it looks for.
    home = re.compile(rb"(?<![\w.}])/(?:%s)/" % b"|".join([b"work", b"root", rb"home/\w+", rb"Users/\w+"]))
    found = []
    for path in files:
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content and (match := home.search(content)):
            found.append(f"{name_of(path)}: {match[0].decode()}")
    assert found == []
