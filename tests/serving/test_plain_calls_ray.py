"""Exits that run together in two replicas, reached as `serve deploy` has it without the fast path: no call waits for ever.

Serve's plain calls often wait for a replica, and a call that must reach a certain one is found by the id of the request in
whose context it was made. Calls for many clients, all made in the context of one of them, had one id: the second of two that
waited was never found, and whoever looked for it never stopped looking.

Run as a program, this file is server and clients; the test starts it as a process of its own, so no Ray lives in pytest's.
"""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import serve
from typer.testing import CliRunner

from cascade.cli import app
from cascade.serving.app import build, spec_argument
from cascade.serving.environment import FAST_PATH, free_port
from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request
from tests.exit_ladders import NAMES, write_exit_ladder

MESSAGES, ROWS, CLIENTS = 200, 4, 16
LIMIT_S = 60


def main(path: str) -> None:
    """Serve the exits with two replicas, through Serve's proxy, and print where answers came from and why."""
    ladder, port = Ladder.read(path), free_port()
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(spec_argument(path)), name="exits", route_prefix="/")
    field = ladder.spec.inputs[0].tensor
    with np.load(ladder.path(ladder.spec.data.test)) as data:
        x = data["x"]
    url = f"http://127.0.0.1:{port}/v2/models/exits/infer"

    def ask(number: int) -> str:
        some = np.random.default_rng(number).choice(len(x), ROWS, replace=False)
        body, headers = encode_request([(field, x[some])], parameters={"timeout": 30_000_000})
        request = urllib.request.Request(url, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            answer = decode_answer(response.read(), response.headers["inference-header-content-length"])
        return f"{answer.parameters['cascade_stage']} {answer.parameters['cascade_exit_reason']}"

    with ThreadPoolExecutor(CLIENTS) as clients:
        print(json.dumps(Counter(clients.map(ask, range(MESSAGES)))), flush=True)
    serve.shutdown()
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_plain_calls_to_two_replicas_of_exits_never_wait_for_ever(tmp_path: Path) -> None:
    spec = write_exit_ladder(tmp_path, replicas=2, num_cpus=0.1)
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(spec)])
        assert result.exit_code == 0, result.output
    environment = {name: value for name, value in os.environ.items() if name not in FAST_PATH} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),  # where the replicas find the network of the ladder
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.run(
            [sys.executable, __file__, str(spec)], env=environment, stdout=subprocess.PIPE, stderr=output, check=False
        )
    assert process.returncode == 0, log.read_text(errors="replace")[-4000:]
    (told,) = [line for line in process.stdout.decode().splitlines() if line.startswith("{")]
    found = Counter(json.loads(told))
    assert found.total() == MESSAGES
    # A message says where its dearest row left, and these leave everywhere.
    assert {where.split()[0] for where in found} <= set(NAMES)
    assert not {where.split()[1] for where in found} & {"failure", "deadline"}


if __name__ == "__main__":
    main(sys.argv[1])
