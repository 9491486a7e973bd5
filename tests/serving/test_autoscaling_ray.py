"""Scaling in a real Serve: a stage gets a second replica while a router says that it is short, and loses it afterwards.

The router is a stand-in that says what it is told to; all else is what a server is made of: the stage's deployment with
its network, the policies in Serve's controller, and Serve's way of carrying statistics there. Run as a program, this file
is that server and its story; the test starts it as a process of its own, so that no Ray lives in pytest's.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import yaml
from ladders import write_ladder
from ray import serve
from ray.serve.handle import DeploymentHandle

from cascade.policy.scaling import Reading
from cascade.serving.app import stage_deployment
from cascade.serving.autoscaling import autoscaling_stats, router_replicas
from cascade.spec import Ladder

LIMIT_S = 90
STAGE = "fair"
CALM = Reading(surcharge=0.0, demand=1.0, rate=100.0)
SHORT = Reading(surcharge=0.2, demand=1000.0, rate=100.0)


class SayingRouter:
    """Stands where a router replica stands: it has a stage, and says of it what it was told to say."""

    def __init__(self, stage: DeploymentHandle) -> None:
        self.stage = stage
        self.reading = CALM

    def say(self, reading: Reading) -> None:
        self.reading = reading

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return autoscaling_stats({STAGE: self.reading})


async def until(what: str, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"{what}: not within {LIMIT_S} s; {serve.status()}")
        await asyncio.sleep(0.2)
    print(what, flush=True)


def running(deployment: str) -> int:
    return serve.status().applications["scaling"].deployments[deployment].replica_states.get("RUNNING", 0)


async def story(router: DeploymentHandle) -> None:
    """Make the stage short, then calm, and print what comes to pass."""
    await until("begins with one", lambda: running(STAGE) == 1)
    await router.say.remote(SHORT)
    await until("a second one runs", lambda: running(STAGE) == 2)
    await router.say.remote(CALM)
    await until("one is left", lambda: running(STAGE) == 1)
    await until("the router stays", lambda: running("router") == 1)
    await serve.shutdown_async()  # in the loop that the handle belongs to


def main(spec: str) -> None:
    """Serve the second stage of a ladder."""
    ladder = Ladder.read(spec)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    options = {"ray_actor_options": {"num_cpus": 0.1}, **router_replicas(ladder.spec)}
    router = serve.deployment(name="router", **options)(SayingRouter)
    handle = serve.run(router.bind(stage_deployment(ladder, 1)), name="scaling", route_prefix=None)
    asyncio.run(story(handle))
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_short_stage_gets_a_replica_and_gives_it_back(tmp_path: Path) -> None:
    spec = write_ladder(tmp_path)
    document = yaml.safe_load(spec.read_text())
    document["stages"][1] |= {"min_replicas": 1, "max_replicas": 2}
    document["autoscaling"] = {"up_after_s": 2.0, "down_after_s": 3.0}
    spec.write_text(yaml.safe_dump(document))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # As on the fast path, where user code shares the replica's loop; but nobody speaks HTTP here.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),  # where the replicas find the networks of the ladder
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.run(
            [sys.executable, __file__, str(spec)], env=environment, stdout=subprocess.PIPE, stderr=output, check=False
        )
    told = [line for line in process.stdout.decode().splitlines() if not line.startswith("(")]
    assert process.returncode == 0, log.read_text(errors="replace")[-4000:]
    assert told[:4] == ["begins with one", "a second one runs", "one is left", "the router stays"]


if __name__ == "__main__":
    main(sys.argv[1])
