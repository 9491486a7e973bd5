"""The composition root: from a spec and its artefacts to a Serve application. The import path of every deployment file.

    import_path: cascade.serving.app:build
    args: {spec: deployments/fashion/cascade.yaml}

No ``from __future__ import annotations`` here: Serve reads the builder's annotation at run time, and a string would make it
pass a plain dict without a word.
"""

import logging
import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cascade.assembly import build_policy, read_artefacts
from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.profiling import load_network
from cascade.serving.environment import slow_path_warning
from cascade.serving.ingress import Ingress
from cascade.serving.router import InlineStage, Router, StageClient, ThreadStage
from cascade.serving.stage import ReplicaStage, StageReplica
from cascade.spec import Ladder

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

INLINE_LIMIT_S = 0.002
"""A router-placed stage whose full batch takes longer than this gets a thread of its own, so that the loop stays free."""
ROUTER_ONGOING = 16384
"""Requests that Serve lets into one router; admission is the policy's business, so Serve's own limit must not bite."""

QUIET = LoggingConfig(enable_access_log=False)
"""A log line for each request and each call costs about a tenth of the CPU that they cost; counters tell the same."""


class AppArgs(BaseModel):
    """Arguments of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    spec: str
    """Path of the cascade spec, absolute or relative to the folder in which Ray was started; the same on every node."""


def build(args: AppArgs) -> serve.Application:
    """Build the Serve application of a ladder.

    Args:
        args: where the spec is.

    Raises:
        SpecError: the spec, a weights file or a model factory is wrong.
        ConfigError: an artefact is missing or malformed.
        CalibrationMismatch: the calibration was made from other weights or another spec.
    """
    ladder = Ladder.read(args.spec)
    artefacts = read_artefacts(ladder)
    spec = ladder.spec
    handles = [
        None if stage.placement == "router" else stage_deployment(ladder, index) for index, stage in enumerate(spec.stages)
    ]
    router = serve.deployment(
        name="router",
        num_replicas=spec.router.replicas,
        max_ongoing_requests=ROUTER_ONGOING,
        ray_actor_options={"num_cpus": spec.router.num_cpus},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=spec.deadline.default_s + 1,
        graceful_shutdown_wait_loop_s=0.1,
    )(serve.ingress()(RouterReplica))  # late-bound: the ASGI app is made in the replica, after its constructor
    return router.bind(ladder, artefacts, handles)


def stage_deployment(ladder: Ladder, index: int) -> serve.Application:
    """Bind the Serve deployment of one stage."""
    stage = ladder.spec.stages[index]
    deployment = serve.deployment(
        name=stage.name,
        num_replicas=stage.replicas,
        # The routers count their own calls; one more lets a call in while Serve still counts one that was given up.
        max_ongoing_requests=stage.calls_per_replica * ladder.spec.router.replicas + 1,
        ray_actor_options={"num_cpus": stage.num_cpus, "num_gpus": stage.num_gpus},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=2.0,
        graceful_shutdown_wait_loop_s=0.1,
    )(StageReplica)
    return deployment.bind(ladder, index)


class RouterReplica:
    """One router process: it holds the policy, the cheapest stage if that is placed here, and the HTTP routes.

    Args:
        ladder: the ladder.
        artefacts: its calibration and service profile, already checked.
        handles: handle of each stage, None for one that runs here.
    """

    def __init__(
        self,
        ladder: Ladder,
        artefacts: tuple[Calibration, ServiceProfile],
        handles: list[DeploymentHandle[StageReplica] | None],
    ) -> None:
        stages: list[StageClient | InlineStage] = []
        for index, handle in enumerate(handles):
            stages.append(place_here(ladder, index) if handle is None else ReplicaStage(handle))
        self._ladder = ladder
        self._artefacts = artefacts
        self._stages = stages
        warning = slow_path_warning(os.environ)
        if warning is not None:
            logger.warning(warning)

    def __serve_build_asgi_app__(self) -> Ingress:
        """Make the HTTP routes; called by Serve once, in the event loop that will run them."""
        return Ingress(self._ladder, lambda: build_router(self._ladder, self._artefacts, self._stages))


def place_here(ladder: Ladder, index: int) -> StageClient | InlineStage:
    """Load a stage into this process: inside the event loop if its full batch is short, else in a thread."""
    stage = load_network(ladder, ladder.spec.stages[index])
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        stage.warm_up(ladder.example_row(), (ladder.spec.stages[index].max_batch_size,))
        durations.append(time.perf_counter() - started)
    return InlineStage(stage) if min(durations) < INLINE_LIMIT_S else ThreadStage(stage)


def build_router(
    ladder: Ladder,
    artefacts: tuple[Calibration, ServiceProfile],
    stages: list[StageClient | InlineStage],
) -> Router:
    """Put a router together; must be called in the event loop that will run it."""
    calibration, profile = artefacts
    spec = ladder.spec
    return Router(
        build_policy(spec, profile, seed=time.time_ns()),
        [stage.judge() for stage in calibration.stages],
        stages,
        classes=len(spec.labels),
        margin_s=spec.deadline.margin_s,
        clock=time.perf_counter,
    )


def spec_argument(path: str | Path) -> AppArgs:
    """Arguments for a spec on this machine."""
    return AppArgs(spec=str(Path(path).resolve()))
