"""What the tests above the pure floors share: throw-away ladders. Being here puts this folder on the import path."""

import asyncio
import shutil
from pathlib import Path

import pytest
from ladders import write_ladder
from typer.testing import CliRunner

from cascade.cli import app
from cascade.spec import Ladder


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here, and importing ray.serve 2.60 makes one of pydantic's.
    config.addinivalue_line("filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
    # looptime asks for the event loop of tests that have none; without this, asyncio makes one then, and nobody closes it.
    asyncio.set_event_loop(None)


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory) -> Path:
    """The spec of a ladder that was profiled and calibrated once; copy it to change it."""
    spec = write_ladder(tmp_path_factory.mktemp("calibrated"))
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(spec)])
        assert result.exit_code == 0, result.output
    return spec


@pytest.fixture
def calibrated_copy(calibrated, tmp_path) -> Path:
    """The spec of a calibrated ladder that the test may change."""
    shutil.copytree(calibrated.parent, tmp_path / "copy")
    return tmp_path / "copy" / calibrated.name


@pytest.fixture
def calibrated_ladder(calibrated) -> Ladder:
    """The calibrated ladder, read."""
    return Ladder.read(calibrated)
