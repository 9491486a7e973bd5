"""A release: the wheel holds what is no Python too, and its command works in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from cascade import __version__

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a source tree"),
    pytest.mark.timeout(300),
]
pytest.importorskip("build", reason="the extra dev has it")
pytest.importorskip("hatchling", reason="the extra dev has it")

DATA = (
    "cascade/py.typed",
    "cascade/serving/status.html",
    *(f"cascade/cli/skeleton/{file.name}" for file in sorted((ROOT / "cascade" / "cli" / "skeleton").iterdir())),
)
"""What a release needs beside modules."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was made of it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel in it; the dependencies are those of this one, to take no minutes."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run([*pip, str(built[1])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Behind the environment's own packages, and without this one's path files, by which an editable cascade comes in.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert set(DATA) <= set(names)
    assert {name.split("/")[0] for name in names} == {"cascade", f"cascade_serve-{__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "cascade").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_the_sdist_holds_what_its_tests_read(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*DATA, "tests/test_release.py", "cascade.schema.json", "constraints.txt", "cluster.yaml", "Makefile"} <= names


def test_a_ladder_is_begun_and_checked_with_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import cascade; print(cascade.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed.parent)), where.stdout + where.stderr
    shown = run(installed / "cascade", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "deploy" in shown.stdout
    begun = run(installed / "cascade", "init", "colours", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    folder = tmp_path / "colours"
    trained = run(installed / "python", "train.py", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    checked = run(installed / "cascade", "check", "cascade.yaml", cwd=folder, PYTHONPATH=str(folder))
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "not ready to serve" in checked.stdout
    assert "cascade profile" in " ".join(checked.stdout.split())
