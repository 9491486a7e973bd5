"""The gRPC surface over fake stages, called in this process beside the HTTP surface on the same router.

Messages are made and read by tritonclient wherever a client of it could send them.
"""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.service_pb2 as theirs
from asgi import Client, started
from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import SURE, UNSURE, config, fake_ladder, fake_stages, make_router, told
from tritonclient.grpc._utils import _get_inference_request

from cascade.serving.fakes import FakeStage
from cascade.serving.grpc_ingress import GrpcServicer
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.wire.client import decode_answer, encode_request

pytestmark = pytest.mark.looptime(noop_cycles=0)

INFER = "/v2/models/fake/infer"
PATIENT = {"deadline": {"default_s": 400.0, "max_s": 800.0}}
"""Deadlines so long that the real time spent on reading a message does not show beside them."""


class FakeContext:
    """A call's context: what the client sent, and what it will see."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        self.trailing = dict(trailing_metadata)


class Recording(Router):
    """A router that remembers what it was asked for."""

    asked: list[dict[str, Any]]

    async def answer(self, inputs, rows, **facts):
        self.asked = [*getattr(self, "asked", []), {"inputs": inputs, "rows": rows, **facts}]
        return await super().answer(inputs, rows, **facts)


class Refused(Exception):
    """A call that has no answer.

    Args:
        context: what the client sees of it.
    """

    def __init__(self, context: FakeContext) -> None:
        super().__init__(f"{context.code}: {context.details}")
        self.code = context.code.name
        self.trailing = context.trailing


class Served:
    """Both surfaces of one router once it runs."""

    def __init__(self, stages: list[FakeStage] | None = None, *, kind: type[Router] = Recording, **spec: Any) -> None:
        self.stages = fake_stages(2) if stages is None else stages
        self._kind = kind
        self._configs = spec.pop("configs", None)
        self.service = Service(fake_ladder(len(self.stages), **spec), self._make_router)
        self.servicer = GrpcServicer(self.service)
        self._app = Ingress(self.service)
        self.http: Client

    def _make_router(self) -> Router:
        self.router = make_router(self.stages, self._configs, kind=self._kind)
        return self.router

    async def __aenter__(self) -> "Served":
        self._running = started(self._app)
        self.http = await self._running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._running.__aexit__(*error)

    async def call(self, method: str, payload: bytes = b"", **metadata: str) -> bytes:
        """Call a method as Serve does; raises Refused for a status that is not OK."""
        context = FakeContext(**metadata)
        answer = await getattr(self.servicer, method)(payload, grpc_context=context)
        if context.code is not None:
            raise Refused(context)
        return answer.SerializeToString()

    async def infer(self, data: list[Any], metadata: dict[str, str] | None = None, **facts: Any) -> triton.InferResult:
        """Send rows as tritonclient does."""
        payload = await self.call("ModelInfer", request(data, **facts), **metadata or {})
        return triton.InferResult(theirs.ModelInferResponse.FromString(payload))


def request(data: list[Any], *, model: str = "fake", **facts: Any) -> bytes:
    """A request of tritonclient with one input `x` of two logits a row."""
    tensor = triton.InferInput("x", list(np.shape(data)), "FP32")
    tensor.set_data_from_numpy(np.array(data, dtype=np.float32))
    defaults = {"model_version": "", "request_id": "", "outputs": None, "priority": 0, "timeout": None, "parameters": None}
    sequence = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    payload: bytes = _get_inference_request(model, [tensor], **{**defaults, **sequence, **facts}).SerializeToString()
    return payload


def parameters_of(result: triton.InferResult) -> dict[str, Any]:
    given_parameters = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in given_parameters.items()}


# -- health and metadata -------------------------------------------------------------------------------------------------


async def ready_of(served: Served) -> tuple[bool, bool, bool]:
    live = theirs.ServerLiveResponse.FromString(await served.call("ServerLive"))
    ready = theirs.ServerReadyResponse.FromString(await served.call("ServerReady"))
    asked = theirs.ModelReadyRequest(name="fake", version="7").SerializeToString()
    return live.live, ready.ready, theirs.ModelReadyResponse.FromString(await served.call("ModelReady", asked)).ready


async def test_a_server_that_is_loading_lives_and_is_not_ready():
    served = Served()
    assert await ready_of(served) == (True, False, False)
    with pytest.raises(Refused) as refused:
        await served.infer([[SURE, 0]])
    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.trailing == {"cascade-code": "not_ready"}
    async with served:
        assert await ready_of(served) == (True, True, True)


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("fake", "8"), ("", "")])
async def test_a_model_that_is_not_served_here_is_not_ready_and_not_found(name, version):
    async with Served() as served:
        asked = theirs.ModelReadyRequest(name=name, version=version).SerializeToString()
        assert not theirs.ModelReadyResponse.FromString(await served.call("ModelReady", asked)).ready
        with pytest.raises(Refused, match=r"fake|7") as refused:
            await served.call("ModelMetadata", asked)
        assert refused.value.code == "NOT_FOUND"
        with pytest.raises(Refused) as refused:
            await served.infer([[SURE, 0]], model=name, model_version=version)
        assert (refused.value.code, refused.value.trailing["cascade-code"]) == ("NOT_FOUND", "unknown_model")


async def test_the_server_and_the_model_describe_themselves_as_over_http():
    async with Served() as served:
        server = theirs.ServerMetadataResponse.FromString(await served.call("ServerMetadata"))
        over_http = (await served.http.get("/v2")).json()
        assert (server.name, server.version) == (over_http["name"], over_http["version"])
        assert set(server.extensions) == {"parameters", "schedule_policy"} <= set(over_http["extensions"])
        asked = theirs.ModelMetadataRequest(name="fake").SerializeToString()
        model = theirs.ModelMetadataResponse.FromString(await served.call("ModelMetadata", asked))
        over_http = (await served.http.get("/v2/models/fake")).json()
        assert (model.name, list(model.versions), model.platform) == ("fake", ["7"], over_http["platform"])
        for ours, tensors in ((over_http["inputs"], model.inputs), (over_http["outputs"], model.outputs)):
            assert ours == [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"])
async def test_bytes_that_are_no_request_are_a_clients_mistake(method):
    with pytest.raises(Refused) as refused:
        await Served().call(method, b"\xff")
    assert refused.value.code == "INVALID_ARGUMENT"


# -- answers -----------------------------------------------------------------------------------------------------------

logits = st.sampled_from([SURE, -SURE, UNSURE, -UNSURE, 1.5, -3.25])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(logits, min_size=2, max_size=2), min_size=1, max_size=9))
async def test_answers_are_those_of_http_bit_for_bit(rows):
    async with Served() as served:
        data = np.array(rows, dtype=np.float32)
        result = await served.infer(rows)
        spec = served.service.signature.inputs[0]
        body, headers = encode_request([(spec, data)])
        response = await served.http.request("POST", INFER, body, headers)
        answer = decode_answer(response.body, response.headers["inference-header-content-length"])
        for name in ("label", "probabilities"):
            over_grpc = result.as_numpy(name)
            assert over_grpc.dtype == answer.outputs[name].dtype
            assert over_grpc.shape == answer.outputs[name].shape
            assert over_grpc.tobytes() == answer.outputs[name].tobytes()
        assert parameters_of(result) == answer.parameters


async def test_an_answer_names_its_model_its_request_and_only_what_was_asked_for():
    async with Served() as served:
        result = await served.infer([[SURE, 0]], request_id="a-1", outputs=[triton.InferRequestedOutput("label")])
        response = result.get_response()
        assert (response.model_name, response.model_version, response.id) == ("fake", "7", "a-1")
        assert [output.name for output in response.outputs] == ["label"]
        assert (await served.infer([[SURE, 0]])).get_response().id == ""


async def test_typed_contents_are_answered_in_kind():
    async with Served() as served:
        message = theirs.ModelInferRequest(model_name="fake")
        message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([UNSURE, -SURE])
        answer = theirs.ModelInferResponse.FromString(await served.call("ModelInfer", message.SerializeToString()))
        assert list(answer.raw_output_contents) == []
        assert list(answer.outputs[0].contents.int64_contents) == [0]
        raw = await served.infer([[UNSURE, -SURE]])
        assert list(answer.outputs[1].contents.fp32_contents) == raw.as_numpy("probabilities").ravel().tolist()


async def test_parameters_and_metadata_mean_what_they_mean_over_http():
    async with Served(**PATIENT) as served:
        await served.infer([[SURE, 0]])
        await served.infer(
            [[SURE, 0]],
            {"cascade_tenant": "acme", "priority": "u=0", "x_request_timeout_seconds": "120"},
        )
        await served.infer(
            [[SURE, 0]],
            {"cascade_tenant": "acme", "priority": "u=0", "x_request_timeout_seconds": "120"},
            priority=3,
            timeout=60_000_000,
            parameters={"cascade_tenant": "other", "cascade_max_cost": 5.0},
        )
        plain, by_metadata, by_parameters = served.router.asked
        assert (plain["priority"], plain["tenant"], plain["max_cost"]) == (2, "", np.inf)
        assert plain["budget_s"] == pytest.approx(400, abs=10)
        assert (by_metadata["priority"], by_metadata["tenant"]) == (1, "acme")
        assert by_metadata["budget_s"] == pytest.approx(120, abs=10)
        assert (by_parameters["priority"], by_parameters["tenant"], by_parameters["max_cost"]) == (3, "other", 5.0)
        assert by_parameters["budget_s"] == pytest.approx(60, abs=10)


async def test_both_surfaces_count_into_the_same_statistics():
    async with Served() as served:
        await served.infer([[SURE, 0], [SURE, 0]])
        with pytest.raises(Refused):
            await served.infer([[SURE]])
        spec = served.service.signature.inputs[0]
        body, headers = encode_request([(spec, np.array([[SURE, 0]], np.float32))])
        await served.http.request("POST", INFER, body, headers)
        [whole, *_] = (await served.http.get("/v2/models/fake/stats")).json()["model_stats"]
        assert (whole["inference_count"], whole["execution_count"]) == (3, 2)
        assert whole["inference_stats"]["fail"]["count"] == 1


# -- errors ------------------------------------------------------------------------------------------------------------


async def refusal(served: Served, *arguments: Any, **facts: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        await served.infer(*arguments, **facts)
    return refused.value


async def test_a_message_that_does_not_fit_is_an_invalid_argument():
    async with Served(limits={"max_rows": 2, "max_body_bytes": 1024}) as served:
        for wrong in (request([[1.0]]), request([[1.0, 2.0]] * 3), request([[1.0, 2.0]], priority=9), b"\xff\xff"):
            with pytest.raises(Refused) as refused:
                await served.call("ModelInfer", wrong)
            assert (refused.value.code, refused.value.trailing) == ("INVALID_ARGUMENT", {"cascade-code": "bad_request"})
        with pytest.raises(Refused, match="at most 1024 bytes, got 1025") as refused:
            await served.call("ModelInfer", bytes(1025))
        assert refused.value.code == "RESOURCE_EXHAUSTED"


async def test_a_first_stage_that_fails_twice_is_unavailable():
    async with Served([FakeStage(told(0), fail_first=2), FakeStage(told(1))]) as served:
        refused = await refusal(served, [[SURE, 0]])
        assert (refused.code, refused.trailing["cascade-code"]) == ("UNAVAILABLE", "stage_failed")


async def test_a_deadline_that_passes_before_any_answer_is_exceeded():
    async with Served(fake_stages(1, seconds=9.0), configs=[config(timeout_floor_s=10.0)]) as served:
        refused = await refusal(served, [[SURE]], timeout=150_000)
        assert (refused.code, refused.trailing["cascade-code"]) == ("DEADLINE_EXCEEDED", "deadline_exceeded")


async def test_a_deadline_that_passes_after_an_answer_is_an_answer():
    configs = [config(), config(cost=10.0, timeout_floor_s=99.0)]
    async with Served([FakeStage(told(0)), FakeStage(told(1), seconds=9.0)], configs=configs) as served:
        result = await served.infer([[UNSURE, SURE]], {"grpc_timeout": "900m"})
        assert parameters_of(result)["cascade_exit_reason"] == "deadline"
        assert parameters_of(result)["cascade_degraded"]


async def test_the_door_is_shut_before_the_message_is_read():
    stages = fake_stages(1, seconds=0.5)
    async with Served(stages, configs=[config(slots=1, max_batch_size=1, a_s=0.5)]) as served:
        inside = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        # Had anybody read these bytes, they would have been refused as no message.
        with pytest.raises(Refused) as refused:
            await served.call("ModelInfer", b"\xff\xff")
        trailing = refused.value.trailing
        assert (refused.value.code, trailing["cascade-code"]) == ("UNAVAILABLE", "overloaded")
        assert int(trailing["retry-after"]) >= 1
        assert trailing["grpc-retry-pushback-ms"] == trailing["retry-after"] + "000"
        await inside
        assert len(stages[0].calls) == 1


async def test_a_client_that_goes_while_its_rows_wait_takes_them_along():
    async with Served(fake_stages(1, seconds=0.1), configs=[config(slots=1, a_s=0.1)]) as served:
        staying = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        going = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        going.cancel()
        await staying
        assert served.router.policy.counts.cancelled == 1
        assert len(served.stages[0].calls) == 1


async def test_an_unexpected_error_tells_the_client_nothing_and_the_log_everything(caplog):
    class Broken(Router):
        async def answer(self, inputs, rows, **facts):
            raise RuntimeError("the secret of line 7")

    async with Served(kind=Broken) as served:
        refused = await refusal(served, [[SURE, 0]])
    assert refused.code == "INTERNAL"
    assert "secret" not in str(refused)
    assert "the secret of line 7" in caplog.text


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 200), st.booleans())
async def test_no_bytes_whatever_bring_the_server_to_an_internal_error(tail, cut, whole):
    async with Served(**PATIENT) as served:
        payload = tail if whole else request([[SURE, 0]], priority=1, request_id="x")[:cut] + tail
        try:
            await served.call("ModelInfer", payload)
        except Refused as refused:
            code = refused.code
        else:
            code = "OK"
        assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
        assert served.router.policy.counts.live == 0
