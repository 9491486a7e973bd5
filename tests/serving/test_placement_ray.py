"""The ladder for clusters on a real Ray of several nodes: every replica runs on the kind of node that it is pinned to.

The nodes are raylets on this machine with the resources that ``cluster.yaml`` gives to its node types; GPUs are counted and
not there, so the networks run on the CPU, and place is all that is looked at. Run as a program, this file starts the nodes,
deploys, and prints what it saw; the test starts it as a process of its own, so that no Ray lives in pytest's.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from cascade.serving.address import Address
from cascade.serving.app import build, spec_argument
from cascade.serving.environment import free_port
from tests.server import ROOT

LIMIT_S = 180
CPUS = 4
"""Of each node, for Ray's count."""
ONE_OF_EACH = ["routers", "gpu-small", "gpu-medium", "gpu-large"]


def until(what: str, condition: Callable[[], object]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"{what}: not within {LIMIT_S} s; {serve.status()}")
        time.sleep(0.5)
    print(what, flush=True)


def replicas() -> dict[str, list[str]]:
    """Node ids of the running replicas of each deployment."""
    deployments = _get_global_client().get_serve_details()["applications"]["placement"]["deployments"]
    return {
        name: [replica["node_id"] for replica in details["replicas"] if replica["state"] == "RUNNING"]
        for name, details in deployments.items()
    }


def main(spec: str) -> None:
    """Start a node of each type, serve the ladder there, and say where everything runs."""
    node_types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    quiet = {"include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    kinds = {}
    for kind in ONE_OF_EACH:
        gpus = 1 if kind.startswith("gpu") else 0
        node = cluster.add_node(num_cpus=CPUS, num_gpus=gpus, resources=node_types[kind]["resources"], **quiet)
        kinds[node.node_id] = kind
    ray.init(cluster.address, log_to_driver=False)
    kinds[ray.get_runtime_context().get_node_id()] = "head"
    serve.start(proxy_location="Disabled")
    listen = Address("127.0.0.1", free_port())
    serve.run(build(spec_argument(spec, listen)), name="placement", route_prefix="/")
    until("all run", lambda: all(replicas().values()))
    where = {name: sorted(kinds[node] for node in nodes) for name, nodes in replicas().items()}
    print(json.dumps(where), flush=True)
    with urllib.request.urlopen(f"http://{listen}/v2/health/ready", timeout=30) as response:
        print(f"ready {response.status}", flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(460)
def test_every_replica_runs_on_the_kind_of_node_it_is_pinned_to(tmp_path: Path) -> None:
    shipped = ROOT / "deployments" / "cluster"
    document = yaml.safe_load((shipped / "cascade.yaml").read_text().replace("../fashion", str(shipped.parent / "fashion")))
    document["router"]["replicas"] = 1  # one node of each type is enough to see where things go
    spec = tmp_path / "cascade.yaml"
    spec.write_text(yaml.safe_dump(document))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",  # routers listen themselves here
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.run(
            [sys.executable, __file__, str(spec)], env=environment, stdout=subprocess.PIPE, stderr=output, check=False
        )
    told = [line for line in process.stdout.decode().splitlines() if line.startswith(("all run", "{", "ready"))]
    assert process.returncode == 0, process.stdout.decode() + log.read_text(errors="replace")[-4000:]
    assert told[0] == "all run"
    assert json.loads(told[1]) == {
        "router": ["routers"],
        "tiny": ["gpu-small"],
        "small": ["gpu-small"],
        "medium": ["gpu-medium"],
        "large": ["gpu-large"],
    }
    assert told[2] == "ready 200"


if __name__ == "__main__":
    main(sys.argv[1])
