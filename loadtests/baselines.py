"""Two servers to compare with, over the same wire, so that the same load test scores them. Knows Ray Serve.

    import_path: loadtests.baselines:build_static     (or build_top)
    args: {spec: deployments/loadtest/cascade.yaml}

*static* is the product with another policy: same routes, router, stages and calibration, fixed thresholds
(`loadtests.static`). *top* is what one writes when accuracy is all: one Serve deployment of the dearest network, with
`@serve.batch` for throughput and Serve's own back-pressure against overload, on Serve's fast path through HAProxy.

No ``from __future__ import annotations`` here: Serve reads the builders' annotations at run time.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.requests import Request
from starlette.responses import Response

from cascade import __version__
from cascade.assembly import read_artefacts
from cascade.calibration.artefact import StageService
from cascade.errors import CascadeError, UnknownModel
from cascade.loading import load_chain
from cascade.models.stage import Arrays, StageResult
from cascade.serving.app import AppArgs, application, reserved
from cascade.serving.logs import logging_config
from cascade.serving.service import signature_of
from cascade.spec import CascadeSpec, Ladder
from cascade.spec_exits import chain_of, costs_alone
from cascade.wire import metadata
from cascade.wire.http import Headers, Provenance, answer_headers, parse_json_length, read_headers
from cascade.wire.oip import Limits, decode_request, encode_response
from cascade.wire.problem import problem
from cascade.wire.routes import Route, RouteKind, parse_route
from loadtests.static import static_policy

WAITING_SHARE = 0.5
"""Work that *top* lets in, as a share of the usual deadline: half of it to wait, and the rest for the way and for chance."""


def build_static(args: AppArgs) -> serve.Application:
    """The ladder with fixed thresholds in the place of the policy.

    Raises:
        ConfigError: as for `cascade.serving.app.build`.
    """
    return application(args, static_policy)


def build_top(args: AppArgs) -> serve.Application:
    """Everything to the last stage.

    Replicas, batch size, CPUs and GPUs are those of the stage in the spec; `queue_limits` says how many requests Serve lets
    wait. Whoever comes then gets Serve's own 503 with ``Retry-After: 1``. A stage that resumes others runs them as well.

    Raises:
        ConfigError: as for `cascade.serving.app.build`.
    """
    ladder = Ladder.read(args.spec)
    stage = ladder.spec.placed[-1]
    ongoing, queued = queue_limits(ladder.spec, read_artefacts(ladder)[1].stages)
    deployment = serve.deployment(
        name=stage.name,
        num_replicas=stage.replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        ray_actor_options=reserved(stage),
        logging_config=logging_config(ladder.spec),
        graceful_shutdown_timeout_s=2.0,
        graceful_shutdown_wait_loop_s=0.1,
    )(TopReplica)
    return deployment.bind(ladder)


BUILDERS: dict[str, Callable[[AppArgs], serve.Application]] = {"static": build_static, "top": build_top}


def queue_limits(spec: CascadeSpec, profiled: Sequence[StageService]) -> tuple[int, int]:
    """``max_ongoing_requests`` and ``max_queued_requests`` of one replica of the last stage.

    Two batches may be in the replica, the one that runs and the one that fills. Together with those that queue they are the
    work of half a deadline, so that what is let in can be answered in time:

        ongoing + queued = WAITING_SHARE deadline B / (a + b B), and at least one may queue

    where the times of the stages that it resumes are added to its own.
    """
    rows = spec.stages[-1].max_batch_size
    chain = [profiled[k] for k in chain_of(spec.stages, len(spec.stages) - 1)]
    rows_per_s = rows / sum(each.a_s + each.b_s * rows for each in chain)
    ongoing = 2 * rows
    return ongoing, max(1, int(WAITING_SHARE * spec.deadline.default_s * rows_per_s) - ongoing)


class TopReplica:
    """One replica of the dearest network behind the product's wire.

    Deadlines and priorities are read by nobody, as in any server without a policy.

    Args:
        ladder: the ladder.
    """

    def __init__(self, ladder: Ladder) -> None:
        spec = ladder.spec
        self._spec = spec
        self._stage = spec.stages[-1]
        last = len(spec.stages) - 1
        self._chain = load_chain(ladder, chain_of(spec.stages, last))
        self._cost = costs_alone([stage.cost for stage in spec.stages], [stage.resumes for stage in spec.stages])[last]
        self._judge = read_artefacts(ladder)[0].stages[-1].judge()
        self._signature = signature_of(ladder)
        self._limits = Limits(max_rows=spec.limits.max_rows, priorities=spec.admission.priorities)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="top")
        self._logits.set_max_batch_size(self._stage.max_batch_size)  # type: ignore[attr-defined]

    @serve.batch
    async def _logits(self, rows: list[Arrays]) -> list[np.ndarray]:
        """Logits of single rows [1, *row], which Serve has put together."""
        inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        # In a thread, so that the next batch fills while this one runs.
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, inputs)
        return list(result.logits)

    def _run(self, inputs: Arrays) -> StageResult:
        """All segments of the network, one after the other."""
        first, *rest = self._chain
        result = first.run(inputs)
        for stage in rest:
            result = stage.run(result.state or {})
        return result

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        facts = read_headers(request.scope["headers"])
        try:
            route = parse_route(request.method, request.url.path)
            if route.model is not None and route.model != self._spec.name:
                raise UnknownModel(f"model {route.model!r} is not served here, only {self._spec.name!r}")
            if route.kind is RouteKind.INFER:
                body, headers = await self._infer(await request.body(), parse_json_length(facts.inference_header_length))
            else:
                body = metadata.to_body(self._document(route))
                headers = answer_headers(len(body), None)
            return _response(200, headers, body)
        except CascadeError as error:
            reply = problem(error, facts.request_id)
            return _response(reply.status, reply.headers, reply.body)

    async def _infer(self, body: bytes, json_length: int | None) -> tuple[bytes, Headers]:
        request = decode_request(body, json_length, self._signature, self._limits)
        rows = [{name: array[row : row + 1] for name, array in request.inputs.items()} for row in range(request.rows)]
        logits = np.stack(await asyncio.gather(*(self._logits(row) for row in rows)))
        judgement = self._judge(logits)
        made = {"label": judgement.probabilities.argmax(axis=1), "probabilities": judgement.probabilities.astype(np.float32)}
        answer, answer_json_length = encode_response(
            self._spec.name,
            self._spec.version,
            [(output.spec, made[output.spec.name], output.binary) for output in request.outputs],
            request_id=request.id,
            parameters={
                "cascade_stage": self._stage.name,
                "cascade_exit_reason": "last_stage",
                "cascade_degraded": False,
                "cascade_confidence": round(float(judgement.p_correct.min()), 6),
                "cascade_cost": self._cost * request.rows,
                "cascade_price": 0.0,
            },
        )
        provenance = Provenance(self._stage.name, "last_stage", False)
        return answer, answer_headers(len(answer), answer_json_length, provenance)

    def _document(self, route: Route) -> object:
        match route.kind:
            case RouteKind.SERVER_READY:
                return metadata.ready_document(True)
            case RouteKind.MODEL_READY:
                return metadata.model_ready_document(self._spec.name, True)
            case RouteKind.MODEL_METADATA:
                return metadata.model_metadata(self._signature, "top", {"stages": self._stage.name})
            case _:
                return metadata.server_metadata("top", __version__)


def _response(status: int, headers: Headers, body: bytes) -> Response:
    response = Response(body, status)
    response.raw_headers = headers
    return response
