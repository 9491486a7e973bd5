"""Calls with an address in a real Serve: rows that lie with two replicas are resumed where they are, and none is run again.

Run as a program, this file is the caller; the test starts it as a process of its own, so that no Ray lives in pytest's.
"""

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cascade.serving.app import stage_deployment
from cascade.serving.together import TICKET, TogetherHandle, TogetherStage
from cascade.spec import Ladder
from tests.exit_ladders import FEATURES, rotated_scores, write_exit_ladder

ROWS, BATCH = 96, 8


def never(places):
    raise AssertionError(f"rows {places} were lost")


async def story(handle: DeploymentHandle) -> None:
    """Run batches on both replicas, and resume rows of all of them in an order that mixes them."""
    import torch

    x = np.random.default_rng(2).normal(size=(ROWS, FEATURES)).astype(np.float32)
    network, _ = rotated_scores()
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    shared = TogetherHandle(handle, "first")
    stages = [TogetherStage(shared, index) for index in range(3)]
    parts = await asyncio.gather(*(stages[0].run({"x": x[start : start + BATCH]}) for start in range(0, ROWS, BATCH)))
    tickets = np.concatenate([part.state[TICKET] for part in parts])
    assert len(np.unique(tickets[:, 0])) == 2, "one replica got every call"
    print("both replicas hold rows", flush=True)
    order = np.random.default_rng(3).permutation(ROWS)
    for index in (1, 2):
        batches = [order[start : start + BATCH] for start in range(0, ROWS, BATCH)]
        # All at a time, so that calls with different addresses wait beside each other.
        results = await asyncio.gather(*(stages[index].resume({TICKET: tickets[rows]}, never) for rows in batches))
        for rows, result in zip(batches, results, strict=True):
            np.testing.assert_allclose(result.logits, expected[rows, index], atol=1e-5)
            assert result.recomputed == 0
            if index == 1:
                tickets[rows] = result.state[TICKET]
    print("every row was resumed where it lay", flush=True)
    strange = tickets.copy()
    strange[:, 0] = 7  # a replica that is no more
    result = await stages[2].resume({TICKET: strange[:BATCH]}, lambda places: {"x": x[places]})
    np.testing.assert_allclose(result.logits, expected[:BATCH, 2], atol=1e-5)
    assert result.recomputed == BATCH
    print("rows of a replica that is gone were run again", flush=True)
    await serve.shutdown_async()  # in the loop that the handle belongs to


def main(spec: str) -> None:
    """Serve the exits, and call them."""
    ladder = Ladder.read(spec)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    handle = serve.run(stage_deployment(ladder, 0), name="exits", route_prefix=None)
    asyncio.run(story(handle))
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_rows_are_resumed_where_they_lie(tmp_path: Path) -> None:
    spec = write_exit_ladder(tmp_path, rows=20, replicas=2, num_cpus=0.1)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # As on the fast path, where user code shares the replica's loop; but nobody speaks HTTP here.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),  # where the replicas find the network of the ladder
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.run(
            [sys.executable, __file__, str(spec)], env=environment, stdout=subprocess.PIPE, stderr=output, check=False
        )
    told = [line for line in process.stdout.decode().splitlines() if not line.startswith("(")]
    assert process.returncode == 0, log.read_text(errors="replace")[-4000:]
    assert told[:3] == [
        "both replicas hold rows",
        "every row was resumed where it lay",
        "rows of a replica that is gone were run again",
    ]


if __name__ == "__main__":
    main(sys.argv[1])
