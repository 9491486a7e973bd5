"""The composition root: from a spec and its artefacts to a Serve application. The import path of every deployment file.

    import_path: cascade.serving.app:build
    args: {spec: deployments/fashion/cascade.yaml}

No ``from __future__ import annotations`` here: Serve reads the builder's annotation at run time, and a string would make it
pass a plain dict without a word.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from cascade.assembly import Artefacts, anytime_rule, build_policy, class_configs, router_slots
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.errors import ConfigError
from cascade.policy.audit import Auditor
from cascade.policy.policy import Policy
from cascade.serving import replicas
from cascade.serving.address import NOWHERE, Address, Listen
from cascade.serving.audits import Audits, has_room
from cascade.serving.autoscaling import autoscaling_stats, router_replicas, stage_replicas
from cascade.serving.environment import slow_path_warning
from cascade.serving.first_calls import FirstCalls
from cascade.serving.gate import Gate
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.http_listener import DRAIN_S, HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.journal import Journal, say_serving
from cascade.serving.logs import log_to_serve, logging_config
from cascade.serving.peers import ask_all, replica_name
from cascade.serving.placing import place_here
from cascade.serving.port_claim import PortClaim
from cascade.serving.renewal import read_config, read_version
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.serving.slow_loop import Control, StagePlaces
from cascade.serving.stage import ReplicaStage, StageReplica
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.serving.staying import DRAIN_LOOP_S, LONGEST_S, AskAll, Staying, ask_over
from cascade.serving.telemetry import Monitor, Telemetry
from cascade.serving.together import TogetherHandle, TogetherReplica, TogetherStage
from cascade.spec import CascadeSpec, Ladder, StageSpec
from cascade.spec_exits import groups, owners_of
from cascade.versions import build_digest, group_digest
from cascade.wire.status import RouterReading

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

ROUTER_ONGOING = 16384
"""Requests that Serve lets into one router; admission is the policy's business, so Serve's own limit must not bite."""

GC_THRESHOLDS = (10_000, 20, 100)
"""Of Python's garbage collector in a router. Serve freezes what is there at the start, and of what comes after that Python's
own settings make a full collection every few ten thousand allocations, however many requests are alive: under overload a
fifth of the event loop's time."""

ONE_MORE = 1
"""Percent of the replicas that there may be more of during an update, which Serve rounds up: one, of a hundred or fewer."""

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
    build: str | None = None
    """Digest of the networks, the weights and what else only new replicas take up, as ``cascade check`` prints it: files of
    another one are refused, and a change of it makes Serve replace the replicas one after the other."""
    surge: bool = True
    """Whether a replacement is started before the replica that it replaces is stopped, for which the cluster must have a
    replica's resources free; else old routers are without a stage as soon as its old replicas are gone, and refuse requests
    if it is the first one and not placed in the router. GPU stages never do."""


def build(args: AppArgs) -> serve.Application:
    """Build the Serve application of a ladder.

    Args:
        args: where the spec is.

    Raises:
        SpecError: the spec, a weights file or a model factory is wrong.
        ConfigError: an artefact or the file of keys is missing or malformed.
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
    Gate.of(ladder)  # a file of keys that cannot be used is told here, and not by each router
    found = build_digest(ladder, artefacts.digests)
    if args.build not in (None, found):
        raise ConfigError(f"build {args.build} was asked for, the files of {args.spec} are build {found}: deploy them again")
    if artefacts.market is None:
        logger.warning(f"no outcome table {ladder.table_path}: prices stay at their base, the queues alone answer to load")
    spec = ladder.spec
    handles = [
        None if spec.stages[group.start].placement == "router" else stage_deployment(ladder, group.start, surge=args.surge)
        for group in groups(spec.stages)
    ]
    router = serve.deployment(
        name="router",
        **router_replicas(spec),
        max_ongoing_requests=ROUTER_ONGOING,
        ray_actor_options={"num_cpus": spec.router.num_cpus, "resources": dict(spec.router.resources)},
        logging_config=logging_config(spec),
        graceful_shutdown_timeout_s=spec.deadline.default_s + DRAIN_S + 1,
        graceful_shutdown_wait_loop_s=0.1,
        max_surge_percent=ONE_MORE if args.surge else 0,
    )(serve.ingress()(RouterReplica))  # late-bound: the ASGI app is made in the replica, after its constructor
    return router.bind(ladder, artefacts, handles, make_policy, listen)


def stage_deployment(ladder: Ladder, index: int, *, surge: bool = False) -> serve.Application:
    """Bind the Serve deployment of one stage, and of those that run together with it.

    Args:
        ladder: the ladder.
        index: which of its stages.
        surge: see `AppArgs.surge`.
    """
    spec = ladder.spec
    (group,) = (group for group in groups(spec.stages) if group.start == index)
    stage, routers = spec.stages[index], spec.router.replicas
    surges = surge and stage.num_gpus == 0
    calls = sum(routers * router_slots(spec.placed[each], routers, 1) for each in group)
    deployment = serve.deployment(
        name=stage.name,
        **stage_replicas(spec, stage),
        # The routers count their own calls. Serve spreads them by the shorter of two queues, which is never exact, and a
        # call that it refuses comes back only after a pause: so twice what a replica should hold, and one given up.
        max_ongoing_requests=2 * calls + 1 + 2 * routers,  # of which two a router ask it to stay
        ray_actor_options=reserved(stage),
        logging_config=logging_config(spec),
        request_router_config=ADDRESSED,
        graceful_shutdown_timeout_s=LONGEST_S * routers if surges else 2.0,
        graceful_shutdown_wait_loop_s=DRAIN_LOOP_S if surges else 0.1,
        max_surge_percent=ONE_MORE if surges else 0,
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
        log_to_serve()
        stages: list[StageClient | InlineStage] = []
        for group in groups(ladder.spec.stages):
            replicas.expect(ladder.spec.stages[group.start].name, group_digest(ladder, group))
        self._asking: dict[str, AskAll] = {}
        for group, handle in zip(groups(ladder.spec.stages), handles, strict=True):
            name = ladder.spec.stages[group.start].name
            if handle is not None and not ladder.spec.stages[group.start].num_gpus:
                self._asking[name] = ask_over(handle)
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
        self._telemetry: Telemetry | None = None
        self._names = [stage.name for stage in ladder.spec.stages]
        self._scaled = {stage.name: index for index, stage in enumerate(ladder.spec.stages) if stage.scales}
        say_serving(ladder.spec, artefacts.version)
        warning = slow_path_warning(os.environ, listens=listen.http is not None)
        if warning is not None:
            logger.warning(warning)

    def __serve_build_asgi_app__(self) -> Ingress:
        """Make the HTTP routes; called by Serve once, in the event loop that will run them."""
        ingress, patience_s = Ingress(self._service), self._ladder.spec.deadline.default_s + 1
        limits = self._ladder.spec.limits
        self._service.name = replica_name()
        if self._ladder.spec.router.replicas > 1:
            ingress.status.ask_all = ask_all
        name = self._ladder.spec.name
        resumes, thinks = zip(*((stage.resumes, stage.execution.thinks) for stage in self._ladder.spec.stages), strict=True)
        example = self._ladder.example_row()
        ingress.listeners.append(FirstCalls(self._stages, self._names, example, resumes=resumes, thinks=thinks))
        ingress.beside.append(Staying(self._asking))
        ingress.listeners += [PortClaim(address, name) for address in self._listen if address is not None]
        if self._listen.http is not None:
            ingress.listeners.append(HttpListener(ingress, self._listen.http, patience_s, limits))
        if self._listen.grpc is not None:
            ingress.listeners.append(GrpcListener(self, self._listen.grpc, patience_s, limits.max_body_bytes))
        return ingress

    async def reading(self) -> RouterReading | None:
        """What this router says of itself; called by another one whom a person asked. None until it has started."""
        return self._service.reading() if self._service.ready else None

    async def reconfigure(self, user_config: object) -> None:
        """Decide by another version from the next message on; called by Serve at the start, and when it is given one.

        Never raises: Serve would replace a router that works by one that fails alike. What went wrong is logged and shown.
        """
        try:
            wanted = read_config(user_config).version
            if wanted != self._artefacts.version:
                found = await asyncio.to_thread(read_version, self._ladder, self._artefacts, wanted)
                self._ladder, self._artefacts = found
                if self._router is not None:
                    self._service.renew()
                    say_serving(self._ladder.spec, wanted)
            self._service.problem = ""
        except ConfigError as error:
            logger.error(f"version {self._artefacts.version} stays: {error.detail}")
            self._service.problem = error.detail

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What this router knows of its stages, for the stages' autoscaling; called by Serve now and then."""
        return {} if self._router is None else autoscaling_stats(self._router.slow_loop.readings(self._scaled))

    def _make_router(self) -> Router:
        if self._telemetry is None:
            self._telemetry = Telemetry(self._names)
        self._router = build_router(
            self._ladder, self._artefacts, self._stages, telemetry=self._telemetry, make_policy=self._make_policy
        )
        return self._router


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
        names=[stage.name for stage in spec.stages],
    )
    auditor = Auditor(len(stages), clock(), share=spec.audit_share, seed=time.time_ns())
    router.audits = Audits(auditor, judges, stages, partial(has_room, policy), clock, resumes=policy.resumes)
    router.version = artefacts.version
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
        durations=lambda: router.durations,
        top_cost=spec.costs_alone[-1],
        journal=Journal(dict(zip(names, router.slow_loop.replicas, strict=True))),
    )
    return router


def spec_argument(path: str | Path, http: Address | None = None, grpc: Address | None = None) -> AppArgs:
    """Arguments for a spec on this machine, where nothing is replaced while it runs, and where its routers are to listen."""
    listen, listen_grpc = (None if address is None else str(address) for address in (http, grpc))
    return AppArgs(spec=str(Path(path).resolve()), listen=listen, listen_grpc=listen_grpc, surge=False)
