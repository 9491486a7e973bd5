"""One server for the shipped ladder and one for a ladder with every datatype; both real, both started once."""

from collections.abc import Iterator

import pytest
from checksum import write_checksum_ladder

from tests.server import ROOT, ServerProcess, served


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The shipped ladder, served."""
    log = tmp_path_factory.mktemp("fashion") / "serve.log"
    with served(ROOT / "deployments" / "fashion" / "cascade.yaml", log) as server:
        yield server


@pytest.fixture(scope="module")
def every_datatype(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ladder over every datatype, served."""
    root = tmp_path_factory.mktemp("checksum")
    with served(write_checksum_ladder(root), root / "serve.log") as server:
        yield server
