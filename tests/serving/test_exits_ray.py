"""A ladder of exits over a real Ray Serve: served together, and each exit in processes of its own, it answers the same."""

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cascade.cli import app
from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request
from tests.exit_ladders import NAMES, write_exit_ladder, write_spec
from tests.server import ServerProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

ROWS = 240


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    path = write_exit_ladder(tmp_path_factory.mktemp("exits"), num_cpus=0.1)
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 0, result.output
    return path


def answers(spec: Path, log: Path) -> tuple[list[tuple[str, int]], dict[str, float]]:
    """Stage and label of every test row, and rows of every stage, from a server of its own."""
    server = ServerProcess(spec, log)
    try:
        server.wait_until_ready()
        ladder = Ladder.read(spec)
        field = ladder.spec.inputs[0].tensor
        with np.load(ladder.path(ladder.spec.data.test)) as data:
            x = data["x"][:ROWS]
        found = []
        for row in range(ROWS):
            # Every row has time enough, so that load decides nothing.
            body, headers = encode_request([(field, x[row : row + 1])], parameters={"timeout": 20_000_000})
            request = urllib.request.Request(f"{server.url}/v2/models/exits/infer", data=body, headers=headers)
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = decode_answer(response.read(), response.headers["inference-header-content-length"])
            found.append((answer.parameters["cascade_stage"], int(answer.outputs["label"][0])))
        with urllib.request.urlopen(f"{server.url}/v2/models/exits/stats", timeout=60) as response:
            stats = json.load(response)
        rows = {entry["name"].removeprefix("exits."): entry["inference_count"] for entry in stats["model_stats"]}
        return found, rows
    finally:
        server.stop()


def test_exits_answer_the_same_wherever_they_are_placed(spec: Path, tmp_path: Path) -> None:
    together, rows = answers(spec, tmp_path / "together.log")
    assert {stage for stage, _ in together} == set(NAMES)
    assert [rows[name] for name in NAMES] == [
        sum(NAMES.index(stage) >= place for stage, _ in together) for place in range(3)
    ]
    places = [
        {"placement": "replica", "num_cpus": 0.1},
        {"placement": "together", "first": "router"},
        {"placement": "together", "replicas": 2, "num_cpus": 0.1},
    ]
    for number, how in enumerate(places):
        write_spec(spec, **how)
        found, _ = answers(spec, tmp_path / f"{number}.log")
        assert found == together
