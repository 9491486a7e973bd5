"""The cascade that a Ray Serve user would write by hand: a router deployment, one stage deployment a rung, `@serve.batch`.

Serve's defaults: its Python proxy, no environment variables; one handle call for each request and rung. With ``--lean``, and
the environment that `roster` gives it, every setting by which Serve promises throughput; still one call for each request and
rung. Networks, weights and the exit rule are those of the ladder, so that it answers every row as cascade does; only the
serving differs.
"""

import signal
import threading
from pathlib import Path
from typing import Annotated

import numpy as np
import ray
import typer
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from cascade.assembly import read_artefacts
from cascade.loading import load_network
from cascade.policy.gain import Earlier
from cascade.policy.price import continuation_value
from cascade.serving.local import OBJECT_STORE_BYTES, cpus_needed
from cascade.spec import Ladder

ROUTER_ONGOING = 256
"""Serve lets 5 requests into a replica by default; with that no batch could form."""


class Stage:
    """One rung: one network, batched by Serve."""

    def __init__(self, ladder: Ladder, index: int, wait_s: float) -> None:
        stage = ladder.spec.stages[index]
        self._network = load_network(ladder, stage)
        self.__call__.set_max_batch_size(stage.max_batch_size)
        self.__call__.set_batch_wait_timeout_s(wait_s)

    @serve.batch
    async def __call__(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Logits of each image."""
        return list(self._network.run({"image": np.stack(images)}).logits)


class UnbatchedStage:
    """One rung: one network, a row at a time."""

    def __init__(self, ladder: Ladder, index: int, _wait_s: float) -> None:
        self._network = load_network(ladder, ladder.spec.stages[index])

    async def __call__(self, image: np.ndarray) -> np.ndarray:
        """Logits of one image."""
        return self._network.run({"image": image[np.newaxis]}).logits[0]


class Router:
    """Asks the rungs in turn until one is sure enough."""

    def __init__(self, ladder: Ladder, lean: bool, *stages: DeploymentHandle) -> None:
        # Plain pickle costs a fraction of cloudpickle, and arrays need nothing more.
        form = {"request_serialization": "pickle", "response_serialization": "pickle"} if lean else {}
        self._stages = [stage.options(**form) for stage in stages]
        self._judges = [stage.judge() for stage in read_artefacts(ladder)[0].stages]
        self._prices = ladder.spec.base_prices

    async def __call__(self, request: Request) -> dict[str, int]:
        """Answer one image, 784 bytes."""
        image = np.frombuffer(await request.body(), np.uint8).reshape(28, 28)
        earlier = None
        for index, stage in enumerate(self._stages):
            logits = await stage.remote(image)
            judgement = self._judges[index](logits[np.newaxis], earlier)
            if not self._worth_going_on(index, judgement.gains):
                break
            earlier = Earlier(judgement.probabilities, judgement.p_correct)
        return {"label": int(judgement.probabilities.argmax()), "stage": index}

    def _worth_going_on(self, index: int, gains: np.ndarray) -> bool:
        """The same thresholds as cascade's, fixed by the prices."""
        behind = range(index + 1, len(self._stages))
        if not behind:
            return False
        return bool(continuation_value(gains, index, behind, self._prices)[0] > self._prices[index + 1])


def build(ladder: Ladder, stage_ongoing: int, wait_s: float, batched: bool, lean: bool) -> serve.Application:
    """Bind the deployments; they reserve as much of the machine as the ladder's own."""
    logging = {"logging_config": LoggingConfig(enable_access_log=False)} if lean else {}
    stages = [
        serve.deployment(
            name=stage.name,
            max_ongoing_requests=stage_ongoing,
            ray_actor_options={"num_cpus": stage.num_cpus},
            **logging,
        )(Stage if batched else UnbatchedStage).bind(ladder, index, wait_s)
        for index, stage in enumerate(ladder.spec.stages)
    ]
    router = serve.deployment(
        name="router",
        max_ongoing_requests=ROUTER_ONGOING,
        ray_actor_options={"num_cpus": ladder.spec.router.num_cpus},
        **logging,
    )(Router)
    return router.bind(ladder, lean, *stages)


def main(
    spec: Path,
    port: Annotated[int, typer.Option()] = 8200,
    stage_ongoing: Annotated[int, typer.Option(help="max_ongoing_requests of the stages.")] = 128,
    wait_s: Annotated[float, typer.Option(help="batch_wait_timeout_s of the stages.")] = 0.0,
    batched: Annotated[bool, typer.Option(help="Whether stages batch with @serve.batch.")] = True,
    lean: Annotated[bool, typer.Option("--lean", help="No access log, plain pickle between the deployments.")] = False,
) -> None:
    """Serve a ladder by hand until SIGINT."""
    ladder = Ladder.read(spec)
    application = build(ladder, stage_ongoing, wait_s, batched, lean)
    # As `cascade serve` starts it: no dashboard, no logs to the driver; neither is to make the difference.
    ray.init(
        address="local",
        num_cpus=cpus_needed(ladder.spec) + 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        configure_logging=False,
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application, name="by_hand", route_prefix="/")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
