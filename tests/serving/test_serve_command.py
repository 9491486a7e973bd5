"""``cascade serve`` as a user runs it: requests while parts of it die, and that Ctrl-C leaves nothing behind."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request
from tests.server import ROOT, ServerProcess, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FASHION = ROOT / "deployments" / "fashion" / "cascade.yaml"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(FASHION, tmp_path_factory.mktemp("serve") / "serve.log")
    server.wait_until_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(ROOT / "deployments" / "fashion" / "data" / "test.npz") as data:
        return data["image"]


def ask(server: ServerProcess, images: np.ndarray) -> tuple[int, dict[str, object]]:
    """One request: its status, and the parameters of its answer."""
    spec = Ladder.read(FASHION).spec.inputs[0].tensor
    body, headers = encode_request([(spec, images)], parameters={"timeout": 5_000_000})
    request = urllib.request.Request(f"{server.url}/v2/models/fashion/infer", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = decode_answer(response.read(), response.headers["inference-header-content-length"])
            return response.status, dict(answer.parameters)
    except urllib.error.HTTPError as error:
        return error.code, {}


def test_a_killed_stage_replica_costs_no_request_its_answer(server: ServerProcess, images: np.ndarray) -> None:
    outcomes: list[tuple[int, dict[str, object]]] = []
    under_way, killed = threading.Event(), threading.Event()

    def client(first: int) -> None:
        # Eight rows a request, so that nearly every request needs the stage that dies; at least 30 after the kill.
        after = 0
        for number in range(first, 4000, 8):
            outcomes.append(ask(server, images[number : number + 8]))
            if len(outcomes) >= 20:
                under_way.set()
            after += killed.is_set()
            if after >= 30:
                return

    clients = [threading.Thread(target=client, args=(first,)) for first in range(0, 800, 200)]
    for thread in clients:
        thread.start()
    under_way.wait()
    victims = server.replicas("small")
    assert len(victims) == 1
    victims[0].kill()
    killed.set()
    for thread in clients:
        thread.join()
    statuses = Counter(status for status, _ in outcomes)
    assert set(statuses) == {200}, statuses
    psutil.wait_procs(victims, timeout=30)
    # Serve brings the replica back, and rows reach it again.
    stages = set()
    for number in range(0, 4000, 1):
        stages.add(ask(server, images[number : number + 1])[1]["cascade_stage"])
        if {"small", "medium"} <= stages:
            break
    assert "small" in stages


def test_clients_that_leave_harm_nobody(server: ServerProcess, images: np.ndarray) -> None:
    spec = Ladder.read(FASHION).spec.inputs[0].tensor
    body, headers = encode_request([(spec, images[:64])])
    head = f"POST /v2/models/fashion/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    message = (head + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode() + body
    for cut in (len(head), len(message) // 2, len(message)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(message[:cut])
    status, parameters = ask(server, images[:64])
    assert status == 200
    assert parameters["cascade_stage"]


def test_a_second_server_on_the_same_port_is_refused_with_a_sentence(server: ServerProcess, tmp_path: Path) -> None:
    second = ServerProcess(FASHION, tmp_path / "second.log", port=server.port)
    assert second.process.wait(60) == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in second.output()
    assert "Traceback" not in second.output()


def test_serve_and_its_proxy_may_listen_instead_of_the_routers(images: np.ndarray, tmp_path: Path) -> None:
    with served(FASHION, tmp_path / "log", ["--through-serve"]) as other:
        assert any("haproxy" in process.name() for process in other.family())
        status, parameters = ask(other, images[:64])
    assert status == 200
    assert parameters["cascade_stage"]


def test_ctrl_c_stops_everything_that_was_started(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/v2/models", timeout=10) as response:
        assert json.load(response) == {"models": ["fashion"]}
    family = server.family()
    assert len(family) > 5
    assert server.stop() == 0, server.output()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert "Traceback" not in server.output()
