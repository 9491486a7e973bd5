"""Scaling from end to end: a real server under load that its middle stage cannot carry, and then under none.

Nothing is said to anybody here: the prices that the router sets, what it tells Serve's controller, and what that makes of it
are the server's own. `test_autoscaling_ray` has the same with a router that says what it is told to.
"""

import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
import yaml
from ladders import write_ladder
from typer.testing import CliRunner

from cascade.cli import app
from cascade.rows import read_rows
from cascade.spec import Ladder
from cascade.wire.client import encode_request
from tests.server import ServerProcess, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STAGE = "fair"
LIMIT_S = 120
CLIENTS = 12
"""Each has one request under way; the stage takes one row at a time."""


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibrated ladder whose middle stage is slow and may have a second replica."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the replicas find the networks of the ladder
    spec = write_ladder(tmp_path)
    document = yaml.safe_load(spec.read_text())
    middle = document["stages"][1]
    middle["model"]["factory"] = "ladders:Laborious"
    middle |= {"min_replicas": 1, "max_replicas": 2, "max_batch_size": 1}
    document["autoscaling"] = {"up_after_s": 3.0, "down_after_s": 4.0}
    spec.write_text(yaml.safe_dump(document))
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(spec)])
        assert result.exit_code == 0, result.output
    return spec


class Load:
    """Clients that ask again as soon as they are answered, from `__enter__` until `stop`.

    Attributes:
        statuses: answers by status.
        most_paid: highest price behind an answer.
    """

    def __init__(self, spec: Path, server: ServerProcess) -> None:
        ladder = Ladder.read(spec)
        rows, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
        tensor = ladder.spec.inputs[0].tensor
        self._messages = [
            encode_request([(tensor, rows[tensor.name][i : i + 1])], outputs=["label"]) for i in range(len(rows["x"]))
        ]
        self._path = f"/v2/models/{ladder.spec.name}/infer"
        self._port = server.port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]
        self.statuses: Counter[int] = Counter()
        self.most_paid = 0.0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            body, headers = self._messages[random.integers(len(self._messages))]
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            content = response.read()
            self.statuses[response.status] += 1
            head = json.loads(content[: int(response.headers["inference-header-content-length"])])
            self.most_paid = max(self.most_paid, head["parameters"]["cascade_price"])
        connection.close()


def until(what: str, server: ServerProcess, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, f"{what}: not within {LIMIT_S} s\n{live(server)}\n{server.output()}"
        time.sleep(0.2)


def live(server: ServerProcess) -> dict[str, dict[str, float]]:
    """What the router says of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/v2/models/colours/stats")
    document = json.loads(connection.getresponse().read())["live"]
    connection.close()
    assert isinstance(document, dict)
    return document


@pytest.fixture
def server(scaled: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with served(scaled, tmp_path / "serve.log") as server:
        yield server


def test_load_brings_a_replica_and_calm_takes_it_away(scaled: Path, server: ServerProcess) -> None:
    base = Ladder.read(scaled).spec.base_prices[1]
    assert len(server.replicas(STAGE)) == 1
    with Load(scaled, server) as load:
        until("a second replica at work", server, lambda: live(server)["replicas"][STAGE] == 2)
        assert load.most_paid > base  # it degraded before it grew
        load.stop()
        until("one replica is left", server, lambda: live(server)["replicas"][STAGE] == 1)
    assert set(load.statuses) == {200}
    until("the other one has gone", server, lambda: len(server.replicas(STAGE)) == 1)
    assert len(server.replicas("router")) == 1
