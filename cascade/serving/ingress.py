"""The HTTP surface: ASGI messages in, wire decoding, the router, wire encoding, ASGI messages out. Decides nothing.

A raw ASGI application, because request objects of a framework cost more than the cheapest stage of a ladder. It knows
routes and codecs from `cascade.wire`, and the router as something that answers rows.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from math import inf

import numpy as np

from cascade import __version__
from cascade.errors import CascadeError, NotReady, Overloaded, PayloadTooLarge, UnknownModel
from cascade.policy.gain import Floats
from cascade.policy.request import Answer, ExitReason
from cascade.serving.front_door import Address, FrontDoor, Message, Receive, Send
from cascade.serving.router import Router
from cascade.spec import Ladder
from cascade.wire import metadata
from cascade.wire.encoding import compress, inflate
from cascade.wire.http import (
    HeaderFacts,
    Headers,
    Provenance,
    answer_headers,
    parse_json_length,
    priority_of,
    read_headers,
    time_limit_s,
)
from cascade.wire.oip import Limits, Signature, decode_request, encode_response
from cascade.wire.problem import Reply, problem
from cascade.wire.routes import Route, RouteKind, parse_route
from cascade.wire.tensors import Array, Datatype, TensorSpec

logger = logging.getLogger("cascade.ingress")

PLATFORM = "cascade_ladder"
_WORST_FIRST = (
    ExitReason.FAILURE,
    ExitReason.DEADLINE,
    ExitReason.EVICTED,
    ExitReason.PRICE,
    ExitReason.BUDGET,
    ExitReason.LAST_STAGE,
    ExitReason.CONFIDENT,
)
RANK = {reason: rank for rank, reason in enumerate(_WORST_FIRST)}
"""Which reason a message of several rows reports: the one that an operator would most want to know of."""


class ClientGone(Exception):
    """The client closed the connection before its body had come."""


class Ingress:
    """The ASGI application of one router process.

    Args:
        ladder: the ladder.
        make_router: makes the router; called in the event loop that will run it, at ASGI start-up.
        listen: where to take requests beside the server that runs this application; None for nowhere.
    """

    def __init__(self, ladder: Ladder, make_router: Callable[[], Router], listen: Address | None = None) -> None:
        spec = ladder.spec
        self._spec = spec
        self._make_router = make_router
        self._front_door = None if listen is None else FrontDoor(self, listen, spec.deadline.default_s + 1)
        self._router: Router | None = None
        self._signature = signature_of(ladder)
        self._limits = Limits(max_rows=spec.limits.max_rows, priorities=spec.admission.priorities)
        self._stage_names = [stage.name for stage in spec.stages]
        self._success_ns = 0
        self._last_inference_ms = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        facts = read_headers(scope["headers"])
        try:
            raw_path = scope.get("raw_path")
            path = raw_path.decode("latin-1") if raw_path else scope["path"]
            # A mount prefix is part of the path here; the routes start behind it.
            path = path.removeprefix(scope.get("root_path", "").rstrip("/"))
            route = parse_route(scope["method"], path)
            if route.model is not None:
                self._check_model(route)
            if route.kind is RouteKind.INFER:
                requests = self._require_router().requests
                try:
                    status, headers, body = 200, *await self._infer(facts, receive)
                except Exception:
                    requests["refused"] += 1
                    raise
                requests["answered"] += 1
            else:
                status, body = self._document(route)
                headers = answer_headers(len(body), None)
        except ClientGone:
            return
        except Exception as error:
            if isinstance(error, Overloaded) and error.hold_s:
                await asyncio.sleep(error.hold_s)
            status, headers, body = self._refusal(error, facts)
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._router = self._make_router()
                self._router.start()
                if self._front_door is not None:
                    await self._front_door.open()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._front_door is not None:
                    await self._front_door.close()
                if self._router is not None:
                    await self._router.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _refusal(self, error: Exception, facts: HeaderFacts) -> tuple[int, Headers, bytes]:
        if not isinstance(error, CascadeError):
            logger.exception("unexpected error")
        # Turning requests away must cost next to nothing, or those who come back keep the server busy with it.
        reply = (
            turned_away(error.detail, error.retry_after_s)
            if isinstance(error, Overloaded)
            else problem(error, facts.request_id)
        )
        return reply.status, reply.headers, reply.body

    # -- inference -----------------------------------------------------------------------------------------------------

    async def _infer(self, facts: HeaderFacts, receive: Receive) -> tuple[Headers, bytes]:
        started_ns = time.perf_counter_ns()
        router = self._require_router()
        deadline, admission = self._spec.deadline, self._spec.admission
        # At the door only headers are known: what the body may say of deadline and class counts once it has been read.
        limit_s = time_limit_s(facts, None, deadline.default_s, deadline.max_s)
        priority = priority_of(facts, None, admission.priorities, admission.default_priority)
        router.door(1, limit_s, priority, facts.tenant or "")

        max_bytes = self._spec.limits.max_body_bytes
        json_length = parse_json_length(facts.inference_header_length)
        body = inflate(await read_body(receive, facts.content_length, max_bytes), facts.content_encoding, max_bytes)
        request = decode_request(body, json_length, self._signature, self._limits)
        spent_s = (time.perf_counter_ns() - started_ns) * 1e-9  # reading the body came out of the client's time
        budget_s = time_limit_s(facts, request.timeout_s, deadline.default_s, deadline.max_s) - spent_s
        answers = await router.answer(
            request.inputs,
            request.rows,
            budget_s=budget_s,
            priority=priority_of(facts, request.priority, admission.priorities, admission.default_priority),
            max_cost=inf if request.max_cost is None else request.max_cost,
            tenant=request.tenant or facts.tenant or "",
        )

        probabilities, worst = probabilities_of(answers), worst_of(answers)
        answer_body, answer_json_length = encode_response(
            self._spec.name,
            self._spec.version,
            [(output.spec, self._output(output.spec, probabilities), output.binary) for output in request.outputs],
            request_id=request.id,
            parameters=self._parameters(answers, worst),
        )
        answer_body, encoding = compress(answer_body, facts.accept_encoding)
        self._success_ns += time.perf_counter_ns() - started_ns
        self._last_inference_ms = time.time_ns() // 1_000_000
        return answer_headers(
            len(answer_body), answer_json_length, self._provenance(worst), encoding, facts.wait_s
        ), answer_body

    def _output(self, spec: TensorSpec, probabilities: Floats) -> Array:
        return probabilities.argmax(axis=1) if spec.name == "label" else probabilities

    def _parameters(self, answers: list[Answer], worst: Answer) -> dict[str, str | float | bool]:
        parameters: dict[str, str | float | bool] = {
            "cascade_stage": self._stage_names[worst.stage],
            "cascade_exit_reason": worst.reason.value,
            "cascade_degraded": worst.degraded,
            "cascade_confidence": round(min(answer.confidence for answer in answers), 6),
            "cascade_cost": sum(answer.cost for answer in answers),
            "cascade_price": self._price_behind(worst.stage),
        }
        monitor = self._require_router().monitor
        if monitor is not None and monitor.certified_loss is not None:
            parameters["cascade_certified_loss"] = round(monitor.certified_loss, 6)
        if len(answers) > 1:
            parameters["cascade_degraded_rows"] = sum(answer.degraded for answer in answers)
        if recalled := sum(answer.recalled for answer in answers):
            parameters["cascade_recalled_rows"] = recalled
        return parameters

    def _price_behind(self, stage: int) -> float:
        prices = self._require_router().policy.prices
        return prices[stage + 1] if stage + 1 < len(prices) else 0.0

    def _provenance(self, worst: Answer) -> Provenance:
        timings = [("queue", sum(span.queued_s for span in worst.spans))]
        timings += [(self._stage_names[span.stage], span.run_s) for span in worst.spans]
        return Provenance(self._stage_names[worst.stage], worst.reason.value, worst.degraded, tuple(timings))

    # -- documents -----------------------------------------------------------------------------------------------------

    def _document(self, route: Route) -> tuple[int, bytes]:
        ready = self._router is not None
        spec = self._spec
        document: object
        match route.kind:
            case RouteKind.LIVENESS:
                document = {"status": "alive"}
            case RouteKind.SERVER_METADATA:
                document = metadata.server_metadata("cascade", __version__)
            case RouteKind.SERVER_LIVE:
                document = metadata.live_document()
            case RouteKind.SERVER_READY:
                document = metadata.ready_document(ready)
            case RouteKind.MODEL_READY:
                document = metadata.model_ready_document(spec.name, ready)
            case RouteKind.MODEL_LIST:
                document = metadata.model_list([spec.name])
            case RouteKind.REPOSITORY_INDEX:
                document = metadata.repository_index([metadata.RepositoryEntry(spec.name, spec.version, ready)])
            case RouteKind.MODEL_METADATA:
                properties = {"stages": ",".join(self._stage_names), "labels": ",".join(spec.labels)}
                document = metadata.model_metadata(self._signature, PLATFORM, properties)
            case RouteKind.MODEL_CONFIG:
                document = metadata.model_config(self._signature, PLATFORM, spec.limits.max_rows)
            case RouteKind.MODEL_STATISTICS | RouteKind.SERVER_STATISTICS:
                document = metadata.statistics(self._statistics()) | self._live()
            case _:
                raise AssertionError(route.kind)
        is_readiness = route.kind in (RouteKind.SERVER_READY, RouteKind.MODEL_READY)
        return (503 if is_readiness and not ready else 200), metadata.to_body(document)

    def _live(self) -> dict[str, object]:
        monitor = self._require_router().monitor
        return {} if monitor is None else {"live": monitor.read().document()}

    def _statistics(self) -> list[metadata.ModelStatistics]:
        router = self._require_router()
        counts, answered, refused = router.policy.counts, router.requests["answered"], router.requests["refused"]
        version = self._spec.version
        entries = [
            metadata.ModelStatistics(
                name=self._spec.name,
                version=version,
                inference_count=counts.answered,
                execution_count=answered,
                last_inference_ms=self._last_inference_ms,
                success=metadata.Duration(answered, self._success_ns),
                fail=metadata.Duration(refused, 0),
            )
        ]
        for name, stage in zip(self._stage_names, counts.stages, strict=True):
            run = metadata.Duration(stage.batches, int(stage.run_s * 1e9))
            entries.append(
                metadata.ModelStatistics(
                    name=f"{self._spec.name}.{name}",
                    version=version,
                    inference_count=stage.rows,
                    execution_count=stage.batches,
                    last_inference_ms=self._last_inference_ms,
                    success=run,
                    fail=metadata.Duration(stage.failures, 0),
                    queue=metadata.Duration(stage.rows, int(stage.queued_s * 1e9)),
                    compute_infer=run,
                )
            )
        return entries

    # -- checks --------------------------------------------------------------------------------------------------------

    def _require_router(self) -> Router:
        if self._router is None:
            raise NotReady("the first stage has not been loaded yet")
        return self._router

    def _check_model(self, route: Route) -> None:
        if route.model != self._spec.name:
            raise UnknownModel(f"model {route.model!r} is not served here, only {self._spec.name!r}")
        if route.version is not None and route.version != self._spec.version:
            raise UnknownModel(f"model {route.model!r} has no version {route.version!r} here, only {self._spec.version!r}")


def signature_of(ladder: Ladder) -> Signature:
    """What clients may send to a ladder, and what comes back."""
    spec = ladder.spec
    outputs = (
        TensorSpec("label", Datatype.INT64, ()),
        TensorSpec("probabilities", Datatype.FP32, (len(spec.labels),)),
    )
    return Signature(spec.name, spec.version, tuple(field.tensor for field in spec.inputs), outputs)


def worst_of(answers: list[Answer]) -> Answer:
    """The answer that speaks for a message: the most degraded, then the one from the dearest stage."""
    if len(answers) == 1:
        return answers[0]
    return min(answers, key=lambda answer: (RANK[answer.reason], -answer.stage))


def probabilities_of(answers: list[Answer]) -> Floats:
    """Class probabilities of each answer, [rows, classes].

    Rows of one message mostly left in a few batches: a copy for each batch, not one for each row.
    """
    places: dict[int, tuple[Floats, list[int], list[int]]] = {}
    for place, answer in enumerate(answers):
        judged = answer.judgement.probabilities
        _, where, rows = places.setdefault(id(judged), (judged, [], []))
        where.append(place)
        rows.append(answer.row)
    (judged, where, rows), *others = places.values()
    if not others:
        return judged[rows]
    together = np.empty((len(answers), judged.shape[1]))
    for judged, where, rows in places.values():
        together[where] = judged[rows]
    return together


@lru_cache(maxsize=64)
def turned_away(detail: str, retry_after_s: int) -> Reply:
    """The answer to a request that is shed, encoded once for each sentence and number of seconds."""
    return problem(Overloaded(detail, retry_after_s))


async def read_body(receive: Receive, content_length: int | None, max_bytes: int) -> bytes:
    """Read a request's body.

    Args:
        receive: the ASGI channel.
        content_length: what the client announced; a body announced as too long is refused before it is read.
        max_bytes: the limit.

    Raises:
        PayloadTooLarge: over the limit.
        ClientGone: the client closed the connection.
    """
    if content_length is not None and content_length > max_bytes:
        raise PayloadTooLarge(f"the body may have at most {max_bytes} bytes, got content-length {content_length}")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise PayloadTooLarge(f"the body may have at most {max_bytes} bytes, got more than that")
        if not message.get("more_body", False):
            return chunk if not chunks else b"".join([*chunks, chunk])
        chunks.append(chunk)
