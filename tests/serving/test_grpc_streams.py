"""Streams of requests over gRPC on the router's own server: real sockets, tritonclient's streams, fake stages."""

import asyncio
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.grpc.service_pb2 as theirs
from ladders import SURE, UNSURE, config, fake_ladder, fake_stages, make_router, told
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import InferenceServerException

from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.fakes import FakeStage
from cascade.serving.grpc_ingress import MOST_UNDER_WAY, GrpcServicer
from cascade.serving.grpc_listener import GrpcListener
from cascade.serving.grpc_stream import answer_each
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.wire.oip_messages import SERVICE, STREAM_METHOD

HOST, MAX_BYTES = "127.0.0.1", 4096
PATIENT = {"deadline": {"default_s": 60.0, "max_s": 120.0}, "limits": {"max_body_bytes": MAX_BYTES}}
BETTER = (UNSURE, -2 * UNSURE, -SURE)
QUICK = (SURE, 0.0, 0.0)


class Gated(FakeStage):
    """A stage that answers when it is told to."""

    def __init__(self, stage: int) -> None:
        super().__init__(told(stage))
        self.gate = asyncio.Event()
        self.came = asyncio.Event()

    async def run(self, inputs):
        self.came.set()
        await self.gate.wait()
        return await super().run(inputs)


class Recording(Router):
    """A router that remembers how long its requests had."""

    budgets_s: list[float]

    def refine(self, *args: Any, budget_s: float, **facts: Any):
        self.budgets_s = [*getattr(self, "budgets_s", []), budget_s]
        return super().refine(*args, budget_s=budget_s, **facts)


@asynccontextmanager
async def opened(stages: list[FakeStage] | None = None) -> AsyncIterator[tuple[str, Service]]:
    """The address of a server, and its service."""
    stages = fake_stages(3) if stages is None else stages
    configs = [config(cost=10.0**k, timeout_floor_s=60.0) for k in range(len(stages))]
    service = Service(fake_ladder(len(stages), **PATIENT), lambda: make_router(stages, configs, kind=Recording))
    port = free_port()
    listener = GrpcListener(GrpcServicer(service), Address(HOST, port), 5.0, MAX_BYTES)
    service.start()
    await listener.open()
    try:
        yield f"{HOST}:{port}", service
    finally:
        await listener.close()
        await service.close()


def tensor(*rows: tuple[float, ...]) -> triton.InferInput:
    array = np.array(rows, np.float32)
    made = triton.InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def asked(*rows: tuple[float, ...], request_id: str = "", model: str = "fake", **parameters: Any) -> dict[str, Any]:
    """Arguments of a request, as tritonclient's stream takes them."""
    return {"model_name": model, "inputs": [tensor(*rows)], "request_id": request_id, "parameters": parameters or None}


async def refined(address: str, *requests: dict[str, Any]) -> list[tuple[triton.InferResult | None, Any]]:
    """All that comes back for these requests on one stream."""

    async def each():
        for request in requests:
            yield request

    async with triton_aio.InferenceServerClient(address) as client:
        return [pair async for pair in client.stream_infer(each())]


def facts(result: triton.InferResult) -> dict[str, Any]:
    """The parameters of an answer."""
    parameters = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


def called_back(address: str, *requests: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The same by tritonclient's other client, whose callbacks come in a thread of its own."""
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: got.put((result, error)))
        for request in requests:
            client.async_stream_infer(**request)
        client.stop_stream()
    return [got.get_nowait() for _ in range(got.qsize())]


async def wait_until(holds) -> None:
    """Let the loop run until something holds."""
    while not holds():
        await asyncio.sleep(0.001)


async def test_every_answer_is_sent_and_the_last_one_is_marked():
    stages = [FakeStage(told(0)), Gated(1), Gated(2)]

    async def each():
        yield asked(BETTER, request_id="7")

    async with opened(stages) as (address, _), triton_aio.InferenceServerClient(address) as client:
        results = []
        async for result, error in client.stream_infer(each()):
            assert error is None
            results.append(result)
            if len(results) < len(stages):
                stages[len(results)].gate.set()
    assert [result.as_numpy("label").tolist() for result in results] == [[1], [0], [0]]
    assert [facts(result)["cascade_final"] for result in results] == [False, False, True]
    assert [facts(result)["cascade_revised"] for result in results] == [False, True, False]
    assert [facts(result)["cascade_stage"] for result in results] == ["s0", "s1", "s2"]
    assert facts(results[-1])["cascade_exit_reason"] == "last_stage"
    assert all(result.get_response().id == "7" for result in results)
    assert not any("triton_final_response" in facts(result) for result in results)


async def test_the_last_is_the_answer_of_the_same_call_without_a_stream():
    rows = [BETTER, QUICK, (UNSURE, SURE, 0.0)]
    async with opened() as (address, _), triton_aio.InferenceServerClient(address) as client:
        *_, (last, _) = await refined(address, asked(*rows))
        whole = await client.infer("fake", [tensor(*rows)])
    for name in ("label", "probabilities"):
        assert np.array_equal(last.as_numpy(name), whole.as_numpy(name))
    assert {name: value for name, value in facts(last).items() if name in facts(whole)} == facts(whole)


async def test_a_client_that_looks_for_tritons_mark_finds_it():
    request = asked(BETTER, request_id="1") | {"enable_empty_final_response": True}
    async with opened() as (address, _):
        pairs = await asyncio.to_thread(called_back, address, request)
    *before, last = [facts(result)["triton_final_response"] for result, _ in pairs]
    assert not any(before)
    assert last


async def test_requests_of_one_stream_do_not_wait_for_each_other_and_their_ids_tell_them_apart():
    stages = [FakeStage(told(0)), Gated(1), FakeStage(told(2))]

    async with opened(stages) as (address, _):

        async def each():
            yield asked(BETTER, request_id="slow")
            await stages[1].came.wait()
            yield asked(QUICK, request_id="quick")

        got: list[tuple[str, bool]] = []
        async with triton_aio.InferenceServerClient(address) as client:
            async for result, error in client.stream_infer(each()):
                assert error is None
                got.append((result.get_response().id, facts(result)["cascade_final"]))
                if got[-1] == ("quick", True):
                    stages[1].gate.set()
    assert got[:2] == [("slow", False), ("quick", True)]
    assert got[-1] == ("slow", True)


async def test_an_error_of_one_request_leaves_the_stream_to_the_others():
    async with opened() as (address, service):
        pairs = await refined(
            address,
            asked(QUICK, request_id="a", model="other"),
            asked((1.0, 2.0), request_id="b"),
            asked(*[QUICK] * 400, request_id="c"),
            asked(QUICK, request_id="d"),
        )
        assert service.router.requests == {"answered": 1, "refused": 3, "cancelled": 0}
    errors = sorted(str(error) for _, error in pairs if error is not None)
    assert len(errors) == 3
    assert any(text.startswith("[request id: a] Unknown model: model 'other' is not served here") for text in errors)
    assert any(text.startswith("[request id: b] Bad request: ") for text in errors)
    assert any("Payload too large: the message may have at most 4096 bytes" in text for text in errors)
    (answered,) = [result for result, _ in pairs if result is not None]
    assert answered.get_response().id == "d"


async def test_an_error_says_its_code_and_which_request_it_was():
    stages = fake_stages(3)
    async with opened(stages) as (address, service), grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(
            f"/{SERVICE}/{STREAM_METHOD}", response_deserializer=theirs.ModelStreamInferResponse.FromString
        )
        body = _get_inference_request(
            "fake", [tensor(QUICK)], "", "42", None, 0, False, False, 0, None, None
        ).SerializeToString()
        (broken,) = [answer async for answer in method(iter([b"\xff\xff"]))]
        service.router.policy.set_slots(0, 0)
        (shed,) = [answer async for answer in method(iter([body]))]
    assert broken.error_message == "Bad request: the 2 bytes are no ModelInferRequest"
    assert not broken.infer_response.id
    assert broken.infer_response.parameters["cascade_code"].string_param == "bad_request"
    assert shed.error_message.startswith("[request id: 42] Overloaded: ")
    assert (shed.infer_response.id, shed.infer_response.model_name) == ("42", "fake")
    parameters = shed.infer_response.parameters
    assert parameters["cascade_code"].string_param == "overloaded"
    assert parameters["cascade_final"].bool_param
    assert parameters["cascade_retry_after"].int64_param >= 1


async def test_a_wish_of_each_request_ends_its_own_answers():
    async with opened() as (address, _):
        pairs = await refined(
            address,
            asked((0.5, 2.0, SURE), request_id="content", cascade_min_confidence=0.8),
            asked(BETTER, request_id="thrifty", cascade_max_cost=11),
        )
    last = {result.get_response().id: facts(result) for result, _ in pairs if facts(result)["cascade_final"]}
    assert (last["content"]["cascade_exit_reason"], last["content"]["cascade_degraded"]) == ("satisfied", False)
    assert (last["thrifty"]["cascade_exit_reason"], last["thrifty"]["cascade_degraded"]) == ("budget", True)


async def test_the_deadline_of_the_stream_is_that_of_its_requests_and_counts_from_its_beginning():
    async def each():
        yield asked(QUICK)
        await asyncio.sleep(0.01)
        yield asked(QUICK)
        yield asked(QUICK) | {"timeout": 1_000_000}

    async with opened() as (address, service), triton_aio.InferenceServerClient(address) as client:
        assert len([pair async for pair in client.stream_infer(each(), stream_timeout=40.0)]) == 3
        first_s, second_s, third_s = service.router.budgets_s
    assert 30.0 < second_s < first_s <= 40.0
    assert third_s <= 1.0


async def test_the_rows_of_a_client_that_leaves_go_no_further():
    stages = [FakeStage(told(0)), Gated(1), FakeStage(told(2))]
    async with opened(stages) as (address, service):

        async def each():
            yield asked(BETTER)
            await asyncio.Event().wait()

        async with triton_aio.InferenceServerClient(address) as client:
            answers = client.stream_infer(each())
            await anext(answers)
            answers.cancel()
            await wait_until(lambda: service.router.policy.counts.cancelled)
        counts = service.router.policy.counts
        assert (counts.cancelled, counts.live, counts.answered) == (1, 0, 0)
        assert len(stages[2].calls) == 0


async def test_the_streams_of_tritons_other_client_work_too():
    requests = [
        asked(BETTER, request_id="1"),
        asked(QUICK, request_id="2", cascade_max_cost=-1),
        asked(QUICK, request_id="3"),
    ]
    async with opened() as (address, _):
        pairs = await asyncio.to_thread(called_back, address, *requests)
    answers = [result for result, error in pairs if error is None]
    assert sorted(each.get_response().id for each in answers if facts(each)["cascade_final"]) == ["1", "3"]
    (error,) = [error for _, error in pairs if error is not None]
    assert isinstance(error, InferenceServerException)
    assert "cascade_max_cost" in error.message()


# -- many requests of one stream, without gRPC ----------------------------------------------------------------------------


async def given_requests(*requests: Any) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def test_a_slow_reader_holds_up_the_answers_and_not_the_requests():
    made: list[str] = []

    async def answer(request):
        for number in range(10):
            made.append(f"{request}{number}")
            yield made[-1]

    answers = answer_each(given_requests("a", "b"), answer, 8)
    taken = [await anext(answers)]
    for _ in range(100):
        await asyncio.sleep(0)
    # One was taken, one waits for all, and each of the two requests holds one.
    assert len(made) <= 1 + 1 + 2
    taken += [each async for each in answers]
    assert sorted(taken) == sorted(made)
    assert [each for each in taken if each[0] == "a"] == [f"a{number}" for number in range(10)]


async def test_no_more_requests_are_under_way_than_may_be():
    under_way, most = 0, 0

    async def answer(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        yield request
        under_way -= 1

    assert sorted([each async for each in answer_each(given_requests(*range(40)), answer, 4)]) == list(range(40))
    assert most == 4
    assert MOST_UNDER_WAY > 1


async def test_whoever_stops_ends_what_is_under_way():
    ended: list[int] = []

    async def answer(request):
        try:
            yield request
            await asyncio.Event().wait()
        finally:
            ended.append(request)

    answers = answer_each(given_requests(1, 2, 3), answer, 8)
    await anext(answers)
    await answers.aclose()
    assert sorted(ended) == [1, 2, 3]


async def test_a_stream_that_breaks_off_ends_what_is_under_way():
    async def broken():
        yield 1
        raise ConnectionError("gone")

    async def answer(request):
        yield request
        await asyncio.Event().wait()

    assert len([each async for each in answer_each(broken(), answer, 8)]) <= 1
