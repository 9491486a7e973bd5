"""The composition root: from a spec and its artefacts to a Serve application. The import path of every deployment file.

    import_path: cascade.serving.app:build
    args: {spec: deployments/fashion/cascade.yaml}

No ``from __future__ import annotations`` here: Serve reads the builder's annotation at run time, and a string would make it
pass a plain dict without a word.
"""

import gc
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from cascade.assembly import Artefacts, anytime_rule, build_policy, class_configs, router_slots
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.loading import load_chain
from cascade.policy.audit import Auditor
from cascade.policy.policy import Policy
from cascade.serving import replicas
from cascade.serving.address import NOWHERE, Address, Listen
from cascade.serving.audits import Audits, has_room
from cascade.serving.autoscaling import autoscaling_stats, router_replicas, stage_replicas
from cascade.serving.environment import slow_path_warning
from cascade.serving.first_calls import FirstCalls
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.http_listener import HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.port_claim import PortClaim
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.serving.slow_loop import Control, StagePlaces
from cascade.serving.stage import ReplicaStage, StageReplica
from cascade.serving.stage_client import InlineStage, StageClient, ThreadStage
from cascade.serving.telemetry import Monitor, Telemetry
from cascade.serving.together import TogetherHandle, TogetherReplica, TogetherStage
from cascade.spec import CascadeSpec, Ladder, StageSpec
from cascade.spec_exits import owners_of
from cascade.wire.tensors import Datatype

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

INLINE_LIMIT_S = 0.002
"""A router-placed stage whose full batch takes longer than this gets a thread of its own, so that the loop stays free."""
ROUTER_ONGOING = 16384
"""Requests that Serve lets into one router; admission is the policy's business, so Serve's own limit must not bite."""

GC_THRESHOLDS = (10_000, 20, 100)
"""Of Python's garbage collector in a router. Serve freezes what is there at the start, and of what comes after that Python's
own settings make a full collection every few ten thousand allocations, however many requests are alive: under overload a
fifth of the event loop's time."""

QUIET = LoggingConfig(enable_access_log=False)
"""A log line for each request and each call costs about a tenth of the CPU that they cost; counters tell the same."""


ADDRESSED = RequestRouterConfig(request_router_class="cascade.serving.counting.AddressedRouter")  # type: ignore[arg-type]
"""How handles choose a replica: the one that the call names, else of those that are not left out the one with the fewest."""


MakePolicy = Callable[[CascadeSpec, ServiceProfile, int, Certificate | None], Policy]
"""How `cascade.assembly.build_policy` is called."""


class AppArgs(BaseModel):
    """Arguments of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    spec: str
    """Path of the cascade spec, absolute or relative to the folder in which Ray was started; the same on every node."""
    listen: str | None = None
    """``host:port`` on which every router takes HTTP requests itself, at half the CPU of Serve's own way in; that stays open
    where Serve has it. Routers on one node share the port. None for Serve's way alone."""
    listen_grpc: str | None = None
    """The same for gRPC."""


def build(args: AppArgs) -> serve.Application:
    """Build the Serve application of a ladder.

    Args:
        args: where the spec is.

    Raises:
        SpecError: the spec, a weights file or a model factory is wrong.
        ConfigError: an artefact is missing or malformed.
        CalibrationMismatch: the calibration was made from other weights or another spec.
    """
    return application(args)


def application(args: AppArgs, make_policy: MakePolicy = build_policy) -> serve.Application:
    """Bind the deployments of a ladder.

    Args:
        args: where the spec is, and where to listen.
        make_policy: makes each router's policy, from the spec, the profile, a seed and the certificate; another than the
            usual one to compare it with.

    Raises:
        ConfigError: see `build`.
    """
    ladder = Ladder.read(args.spec)
    listen = Listen(*(None if text is None else Address.parse(text) for text in (args.listen, args.listen_grpc)))
    artefacts = Artefacts.read(ladder)
    if artefacts.market is None:
        logger.warning(f"no outcome table {ladder.table_path}: prices stay at their base, the queues alone answer to load")
    spec = ladder.spec
    handles = [
        None if spec.stages[group.start].placement == "router" else stage_deployment(ladder, group.start)
        for group in groups(spec)
    ]
    router = serve.deployment(
        name="router",
        **router_replicas(spec),
        max_ongoing_requests=ROUTER_ONGOING,
        ray_actor_options={"num_cpus": spec.router.num_cpus, "resources": dict(spec.router.resources)},
        logging_config=QUIET,
        graceful_shutdown_timeout_s=spec.deadline.default_s + 1,
        graceful_shutdown_wait_loop_s=0.1,
    )(serve.ingress()(RouterReplica))  # late-bound: the ASGI app is made in the replica, after its constructor
    return router.bind(ladder, artefacts, handles, make_policy, listen)


def groups(spec: CascadeSpec) -> list[range]:
    """The stages by the processes in which they run: those that run together are one group."""
    starts = [index for index, stage in enumerate(spec.stages) if stage.placement != "together"]
    return [range(start, end) for start, end in pairwise([*starts, len(spec.stages)])]


def stage_deployment(ladder: Ladder, index: int) -> serve.Application:
    """Bind the Serve deployment of one stage, and of those that run together with it."""
    spec = ladder.spec
    (group,) = (group for group in groups(spec) if group.start == index)
    stage, routers = spec.stages[index], spec.router.replicas
    calls = sum(routers * router_slots(spec.placed[each], routers, 1) for each in group)
    deployment = serve.deployment(
        name=stage.name,
        **stage_replicas(spec, stage),
        # The routers count their own calls. Serve spreads them by the shorter of two queues, which is never exact, and a
        # call that it refuses comes back only after a pause: so twice what a replica should hold, and one given up.
        max_ongoing_requests=2 * calls + 1,
        ray_actor_options=reserved(stage),
        logging_config=QUIET,
        request_router_config=ADDRESSED,
        graceful_shutdown_timeout_s=2.0,
        graceful_shutdown_wait_loop_s=0.1,
    )
    if len(group) == 1:
        return deployment(StageReplica).bind(ladder, index)
    return deployment(TogetherReplica).bind(ladder, group)


def reserved(stage: StageSpec) -> dict[str, Any]:
    """What Ray reserves for a replica of a stage, and so where it may run."""
    return {"num_cpus": stage.num_cpus, "num_gpus": stage.num_gpus, "resources": dict(stage.resources)}


class RouterReplica(GrpcServicer):
    """One router process: the policy, the cheapest stage if that is placed here, the HTTP routes and the gRPC methods.

    Serve runs the ASGI application and the methods in one event loop, so both speak to the same router.

    Args:
        ladder: the ladder.
        artefacts: what it needs beside the spec, already checked.
        handles: handle of each group of stages, see `groups`, None for one that runs here.
        make_policy: see `application`.
        listen: where to take requests beside Serve's own way in.
    """

    def __init__(
        self,
        ladder: Ladder,
        artefacts: Artefacts,
        handles: list[DeploymentHandle[Any] | None],
        make_policy: MakePolicy = build_policy,
        listen: Listen = NOWHERE,
    ) -> None:
        stages: list[StageClient | InlineStage] = []
        for group, handle in zip(groups(ladder.spec), handles, strict=True):
            name = ladder.spec.stages[group.start].name
            if handle is None:
                stages += place_here(ladder, group.start, artefacts.profile)
            elif len(group) == 1:
                stages.append(ReplicaStage(handle, name))
            else:
                shared = TogetherHandle(handle, name)
                stages += [TogetherStage(shared, index) for index in group]
        super().__init__(Service(ladder, self._make_router))
        self._ladder = ladder
        self._artefacts = artefacts
        self._stages = stages
        gc.set_threshold(*GC_THRESHOLDS)
        self._make_policy = make_policy
        self._listen = listen
        self._router: Router | None = None
        self._names = [stage.name for stage in ladder.spec.stages]
        self._scaled = {stage.name: index for index, stage in enumerate(ladder.spec.stages) if stage.scales}
        warning = slow_path_warning(os.environ, listens=listen.http is not None)
        if warning is not None:
            logger.warning(warning)

    def __serve_build_asgi_app__(self) -> Ingress:
        """Make the HTTP routes; called by Serve once, in the event loop that will run them."""
        ingress, patience_s = Ingress(self._service), self._ladder.spec.deadline.default_s + 1
        name = self._ladder.spec.name
        resumes, thinks = zip(*((stage.resumes, stage.execution.thinks) for stage in self._ladder.spec.stages), strict=True)
        example = self._ladder.example_row()
        ingress.listeners.append(FirstCalls(self._stages, self._names, example, resumes=resumes, thinks=thinks))
        ingress.listeners += [PortClaim(address, name) for address in self._listen if address is not None]
        if self._listen.http is not None:
            ingress.listeners.append(HttpListener(ingress, self._listen.http, patience_s))
        if self._listen.grpc is not None:
            max_bytes = self._ladder.spec.limits.max_body_bytes
            ingress.listeners.append(GrpcListener(self, self._listen.grpc, patience_s, max_bytes))
        return ingress

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What this router knows of its stages, for the stages' autoscaling; called by Serve now and then."""
        return {} if self._router is None else autoscaling_stats(self._router.slow_loop.readings(self._scaled))

    def _make_router(self) -> Router:
        self._router = build_router(
            self._ladder, self._artefacts, self._stages, telemetry=Telemetry(self._names), make_policy=self._make_policy
        )
        return self._router


def place_here(ladder: Ladder, index: int, profile: ServiceProfile) -> list[StageClient | InlineStage]:
    """Load a stage into this process, and those that run together with it: each inside the event loop if its full batch is
    short, else in a thread.

    What one leaves for the next is arrays of this process, which nobody has to keep.
    """
    (group,) = (group for group in groups(ladder.spec) if group.start == index)
    placed: list[StageClient | InlineStage] = []
    example = ladder.example_row()
    texts = any(field.datatype is Datatype.BYTES for field in ladder.spec.inputs)
    for each, stage in zip(group, load_chain(ladder, group), strict=True):
        rows, measured = ladder.spec.stages[each].max_batch_size, profile.stages[each]
        durations = []
        for _ in range(5):
            started = time.perf_counter()
            stage.warm_up(example, (rows,))
            durations.append(time.perf_counter() - started)
        example = dict(stage.run(example).state or {})
        # Rows of zeros take as long as any, empty BYTES do not: for them what profile saw of real rows counts.
        full_s = max(min(durations), measured.a_s + measured.b_s * rows if texts else 0.0)
        placed.append(InlineStage(stage) if full_s < INLINE_LIMIT_S else ThreadStage(stage))
    return placed


def build_router(
    ladder: Ladder,
    artefacts: Artefacts,
    stages: list[StageClient | InlineStage],
    *,
    telemetry: Telemetry | None = None,
    make_policy: MakePolicy = build_policy,
) -> Router:
    """Put a router together; must be called in the event loop that will run it.

    Args:
        ladder: the ladder.
        artefacts: what it needs beside the spec.
        stages: how to reach each stage.
        telemetry: where to publish its figures; None for nowhere.
        make_policy: see `application`.
    """
    spec, clock = ladder.spec, time.perf_counter
    routers = spec.router.replicas
    places = [
        StagePlaces(1, slots=lambda _: 1)
        if stage.placement == "router"
        else StagePlaces(
            stage.replicas,
            partial(router_slots, stage, routers),
            1 / routers,
            partial(replicas.running, spec.stages[owner].name),
            owner,
        )
        for stage, owner in zip(spec.placed, owners_of(spec.stages), strict=True)
    ]
    classes = class_configs(spec, artefacts.certificate)
    judges = [stage.judge() for stage in artefacts.calibration.stages]
    policy = make_policy(spec, artefacts.profile, time.time_ns(), artefacts.certificate)
    router = Router(
        policy,
        judges,
        stages,
        classes=len(spec.labels),
        margin_s=spec.deadline.margin_s,
        clock=clock,
        control=Control(classes, places, artefacts.market, artefacts.certificate),
        rule=anytime_rule(spec, artefacts),
    )
    auditor = Auditor(len(stages), clock(), share=spec.audit_share, seed=time.time_ns())
    router.audits = Audits(auditor, judges, stages, partial(has_room, policy), clock, resumes=policy.resumes)
    names = [stage.name for stage in spec.stages]
    router.monitor = Monitor(
        names,
        policy,
        router.slow_loop,
        lambda: router.lag_s,
        clock,
        audits=router.audits,
        telemetry=telemetry,
        requests=lambda: router.requests,
    )
    return router


def spec_argument(path: str | Path, http: Address | None = None, grpc: Address | None = None) -> AppArgs:
    """Arguments for a spec on this machine, and where its routers are to listen."""
    listen, listen_grpc = (None if address is None else str(address) for address in (http, grpc))
    return AppArgs(spec=str(Path(path).resolve()), listen=listen, listen_grpc=listen_grpc)
