"""``ray start --head`` and ``serve deploy`` with the shipped file, without the fast path: the plain way must work too."""

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import yaml
from tritonclient.utils import InferenceServerException

from cascade.serving.environment import FAST_PATH, free_port
from tests.server import ROOT, grpc_answers

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

BIN = Path(sys.executable).parent
START_LIMIT_S = 180


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head node of its own: the address of its dashboard, and the environment that its commands need."""
    environment = {name: value for name, value in os.environ.items() if name not in FAST_PATH}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port, dashboard = free_port(), free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    log = tmp_path_factory.mktemp("head") / "ray.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    yield f"http://127.0.0.1:{dashboard}", environment
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def until(what: str, limit_s: float, condition: object) -> None:
    assert callable(condition)
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"{what}: not within {limit_s} s"
        time.sleep(0.5)


def test_the_shipped_serve_file_deploys_and_answers(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    dashboard, environment = head
    port, grpc_port = free_port(), free_port()
    document = yaml.safe_load((ROOT / "deployments" / "fashion" / "serve.yaml").read_text())
    document["http_options"]["port"] = port
    document["grpc_options"]["port"] = grpc_port
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(document))

    def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "serve", *arguments, "--address", dashboard]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    until("deployment", START_LIMIT_S, lambda: serve("deploy", str(config)).returncode == 0)
    until("application", START_LIMIT_S, lambda: "status: RUNNING" in serve("status").stdout)
    status = yaml.safe_load(serve("status").stdout)
    deployments = status["applications"]["cascade"]["deployments"]
    assert {name: state["status"] for name, state in deployments.items()} == dict.fromkeys(
        ["tiny", "small", "medium", "large", "router"], "HEALTHY"
    )

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30) as response:
        assert response.status == 200
    with np.load(ROOT / "deployments" / "fashion" / "data" / "test.npz") as data:
        images, labels = data["image"][:100], data["labels"][:100]
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
