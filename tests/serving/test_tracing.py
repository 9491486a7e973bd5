"""Spans of a walk: under the caller's own, one for each wait and run, linked to the batch; none where nobody wants them."""

import asyncio
import json

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from aiohttp import web
from explained import INFER, body, serving
from ladders import SURE, UNSURE, fake_ladder, fake_stages, make_router
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.explaining import Explanations
from cascade.serving.fakes import FakeStage
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.http_listener import HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.service import Service
from cascade.serving.tracing import Tracing
from cascade.serving.watching import Watcher
from cascade.spec_sections import TracesSpec

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PATIENT = {"deadline": {"default_s": 400.0, "max_s": 800.0}}
virtual = pytest.mark.looptime(noop_cycles=0)


def watching(ratio: float = 0.0) -> tuple[Watcher, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, "fake", ["s0", "s1"], ratio)
    return Watcher(Explanations(["s0", "s1"], ["p1"], share=0.0), tracing), exporter


def named(exporter: InMemorySpanExporter, name: str) -> list:
    return [span for span in exporter.get_finished_spans() if span.name == name]


@virtual
async def test_a_walk_is_a_child_of_its_callers_span_and_has_a_child_for_every_wait_and_run():
    watcher, exporter = watching()
    stages = fake_stages(2, seconds=0.125)
    async with serving(stages, watcher=watcher, **PATIENT) as (client, _, _):
        assert (await client.post(INFER, body([[UNSURE, SURE]]), traceparent=SAMPLED, x_request_id="abc")).status == 200
    (walk,) = named(exporter, "cascade.walk")
    assert (f"{walk.context.trace_id:032x}", f"{walk.parent.span_id:016x}") == (TRACE, PARENT)
    assert walk.kind is SpanKind.SERVER
    facts = dict(walk.attributes)
    assert (facts["cascade.stage"], facts["cascade.exit_reason"], facts["cascade.degraded"]) == ("s1", "last_stage", False)
    assert (facts["cascade.request_id"], facts["cascade.rows"], facts["cascade.cost"]) == ("abc", 1, 11.0)
    queues, runs = named(exporter, "cascade.queue"), named(exporter, "cascade.stage")
    assert [span.attributes["cascade.stage"] for span in queues] == ["s0", "s1"]
    assert [span.attributes["cascade.stage"] for span in runs] == ["s0", "s1"]
    assert {span.parent.span_id for span in (*queues, *runs)} == {walk.context.span_id}
    assert [round((span.end_time - span.start_time) / 1e9, 6) for span in runs] == [0.125, 0.125]
    assert queues[1].start_time >= runs[0].end_time - 1000
    assert runs[0].attributes["cascade.gain"] > runs[0].attributes["cascade.price"]
    assert runs[1].attributes["cascade.exit_reason"] == "last_stage"
    assert [span.attributes["cascade.batch.rows"] for span in runs] == [1, 1]


@virtual
async def test_a_batch_is_linked_to_the_walks_that_it_served_and_they_to_it():
    watcher, exporter = watching(ratio=1.0)
    async with serving(fake_stages(2, seconds=0.125), watcher=watcher, **PATIENT) as (client, _, _):
        await asyncio.gather(*(client.post(INFER, body([[SURE, 0]])) for _ in range(3)))
    (batch,) = named(exporter, "cascade.batch")
    walks, runs = named(exporter, "cascade.walk"), named(exporter, "cascade.stage")
    assert {link.context.span_id for link in batch.links} == {walk.context.span_id for walk in walks}
    assert len({walk.context.trace_id for walk in walks} | {batch.context.trace_id}) == 4
    assert {link.context.span_id for run in runs for link in run.links} == {batch.context.span_id}
    assert (len(runs), batch.attributes["cascade.batch.rows"]) == (3, 3)


@virtual
async def test_rows_that_run_together_are_shown_once():
    watcher, exporter = watching(ratio=1.0)
    async with serving(watcher=watcher, **PATIENT) as (client, _, _):
        await client.post(INFER, body([[SURE, 0], [SURE, 0], [UNSURE, SURE]]))
    assert [span.attributes["cascade.rows"] for span in named(exporter, "cascade.stage")] == [3, 1]


@virtual
async def test_a_caller_that_is_not_traced_or_nobody_drawn_leaves_no_span():
    for ratio, headers in ((1.0, {"traceparent": UNSAMPLED}), (0.0, {}), (0.0, {"traceparent": "00-nonsense"})):
        watcher, exporter = watching(ratio)
        async with serving(watcher=watcher, **PATIENT) as (client, _, _):
            assert (await client.post(INFER, body([[SURE, 0]]), **headers)).status == 200
        assert exporter.get_finished_spans() == ()


@virtual
async def test_a_walk_without_an_answer_is_an_error():
    watcher, exporter = watching()
    stages = [FakeStage(lambda _: np.zeros((1, 2)), fail_first=2), *fake_stages(1)]
    async with serving(stages, watcher=watcher, **PATIENT) as (client, _, _):
        assert (await client.post(INFER, body([[SURE, 0]]), traceparent=SAMPLED)).status == 502
    (walk,) = named(exporter, "cascade.walk")
    assert walk.status.status_code is StatusCode.ERROR
    assert walk.attributes["error.type"] == "stage_failed"


@pytest.fixture
async def listening():
    """A router behind its own listeners, HTTP and gRPC, and what it traced."""
    watcher, exporter = watching()
    service = Service(fake_ladder(2), lambda: make_router(fake_stages(2)), watcher)
    http, grpc = Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())
    ingress = Ingress(service)
    servers = [HttpListener(ingress, http, 1.0), GrpcListener(GrpcServicer(service), grpc, 1.0, 1 << 20)]
    service.start()
    for server in servers:
        await server.open()
    yield http, grpc, exporter
    for server in servers:
        await server.close()
    await service.close()


async def test_a_traceparent_comes_through_a_real_listener(listening):
    http, _, exporter = listening
    async with aiohttp.ClientSession() as session:
        headers = {"traceparent": SAMPLED, "cascade-explain": "?1"}
        async with session.post(f"http://{http}{INFER}", data=body([[UNSURE, SURE]]), headers=headers) as response:
            request_id = response.headers["x-request-id"]
            assert json.loads((await response.json())["parameters"]["cascade_explain"])["id"] == request_id
    (walk,) = named(exporter, "cascade.walk")
    assert (f"{walk.context.trace_id:032x}", walk.attributes["cascade.request_id"]) == (TRACE, request_id)


async def test_a_traceparent_comes_through_grpc_metadata(listening):
    _, grpc, exporter = listening
    tensor = triton.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[SURE, 0]], np.float32))
    async with triton.InferenceServerClient(str(grpc)) as client:
        await client.infer("fake", [tensor], headers={"traceparent": SAMPLED})
    (walk,) = named(exporter, "cascade.walk")
    assert f"{walk.context.trace_id:032x}" == TRACE


def test_a_spec_without_traces_has_no_tracing():
    assert Tracing.of("fake", ["s0"], TracesSpec()) is None


def test_spans_go_to_a_file_as_one_line_each(tmp_path):
    path = tmp_path / "spans.jsonl"
    tracing = Tracing.of("fake", ["s0"], TracesSpec(exporter="file", path=str(path), ratio=1.0))
    assert tracing is not None
    for _ in range(2):
        traced = tracing.begin(None, 1)
        assert traced is not None
        traced.span.end()
    tracing.close()
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["cascade.walk"] * 2
    assert spans[0]["resource"]["attributes"]["cascade.model"] == "fake"


@pytest.fixture
async def collector():
    """A collector's HTTP side as OTLP says, and the spans that were posted to it, by name."""
    came: dict[str, list] = {}

    async def take(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        for group in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            said = {each.key: each.value.string_value for each in group.resource.attributes}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                came.setdefault(span.name, []).append((span, said))
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    application = web.Application()
    application.router.add_post("/v1/traces", take)
    runner = web.AppRunner(application)
    await runner.setup()
    address = Address("127.0.0.1", free_port())
    await web.TCPSite(runner, address.host, address.port).start()
    yield f"http://{address}/v1/traces", came
    await runner.cleanup()


async def test_spans_are_posted_to_a_collector_over_otlp(collector):
    endpoint, came = collector
    tracing = Tracing.of("fake", ["s0", "s1"], TracesSpec(exporter="otlp", endpoint=endpoint))
    watcher = Watcher(Explanations(["s0", "s1"], ["p1"], share=0.0), tracing)
    async with serving(fake_stages(2), watcher=watcher, **PATIENT) as (client, _, _):
        assert (await client.post(INFER, body([[UNSURE, SURE]]), traceparent=SAMPLED)).status == 200
    await asyncio.to_thread(watcher.close)  # sends what waits, and the collector runs in this loop
    ((walk, said),) = came["cascade.walk"]
    assert (walk.trace_id.hex(), walk.parent_span_id.hex()) == (TRACE, PARENT)
    assert said["service.name"] == "cascade"
    assert [span.parent_span_id for span, _ in came["cascade.stage"]] == [walk.span_id] * 2
    assert [len(span.links) for span, _ in came["cascade.stage"]] == [1, 1]


async def test_a_collector_that_is_away_fails_no_request():
    tracing = Tracing.of(
        "fake", ["s0", "s1"], TracesSpec(exporter="otlp", endpoint=f"http://127.0.0.1:{free_port()}/v1/traces")
    )
    watcher = Watcher(Explanations(["s0", "s1"], ["p1"], share=0.0), tracing)
    async with serving(fake_stages(2), watcher=watcher, **PATIENT) as (client, _, _):
        assert (await client.post(INFER, body([[UNSURE, SURE]]), traceparent=SAMPLED)).status == 200


def test_a_file_that_cannot_be_written_is_an_error_of_the_spec(tmp_path):
    spec = TracesSpec(exporter="file", path=str(tmp_path / "no" / "spans"))
    with pytest.raises(ConfigError, match=r"telemetry.traces.path .* cannot be written"):
        Tracing.of("fake", ["s0"], spec)
