"""The shipped ladder on a real local Ray, asked by unmodified gRPC clients, and compared with what HTTP answers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.grpc.service_pb2 as messages
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.server import ROOT, ServerProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

STAGES = ["linear", "tiny", "small", "medium", "large"]
PATIENT_US = 20_000_000
"""Time enough for a machine that is busy with other things; tests of deadlines give their own."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(ROOT / "deployments" / "fashion" / "data" / "test.npz") as data:
        return data["image"]


@pytest.fixture
def client(fashion: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(fashion.grpc_address) as client:
        yield client


@pytest.fixture
def http_client(fashion: ServerProcess) -> Iterator[triton_http.InferenceServerClient]:
    client = triton_http.InferenceServerClient(f"127.0.0.1:{fashion.port}", network_timeout=60)
    yield client
    client.close()


def infer(client: Any, images: np.ndarray, **options: Any) -> Any:
    """Ask a client of either protocol."""
    kind = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton
    tensor = kind.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return client.infer("fashion", [tensor], **{"timeout": PATIENT_US, **options})


def parameters_of(result: triton.InferResult) -> dict[str, Any]:
    given = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in given.items()}


def test_it_is_live_and_ready_and_describes_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fashion")
    assert client.is_model_ready("fashion", "1")
    assert not client.is_model_ready("unknown")
    assert client.get_server_metadata().name == "cascade"
    [image] = client.get_model_metadata("fashion").inputs
    assert (image.name, image.datatype, list(image.shape)) == ("image", "UINT8", [-1, 28, 28])


def test_answers_are_those_of_http_bit_for_bit(
    client: triton.InferenceServerClient, http_client: triton_http.InferenceServerClient, images: np.ndarray
) -> None:
    stages = set()
    for number in range(200):
        row = images[number : number + 1]
        over_grpc, over_http = infer(client, row), infer(http_client, row)
        for output in ("label", "probabilities"):
            assert over_grpc.as_numpy(output).dtype == over_http.as_numpy(output).dtype
            assert over_grpc.as_numpy(output).tobytes() == over_http.as_numpy(output).tobytes()
        # What load decides may change from one request to the next; what the row decides may not.
        said, heard = parameters_of(over_grpc), over_http.get_response()["parameters"]
        assert set(said) == set(heard)
        for name in ("cascade_stage", "cascade_exit_reason", "cascade_confidence", "cascade_cost", "cascade_degraded"):
            assert said[name] == heard[name]
        stages.add(said["cascade_stage"])
    assert {"linear", "tiny", "small"} <= stages


def test_many_rows_in_one_message_are_answered_in_order(client: triton.InferenceServerClient, images: np.ndarray) -> None:
    together = infer(client, images[:1000])
    assert together.as_numpy("probabilities").shape == (1000, 10)
    assert (together.as_numpy("probabilities").argmax(axis=1) == together.as_numpy("label")).all()
    for number in (0, 17, 299):
        alone = infer(client, images[number : number + 1])
        if not parameters_of(together)["cascade_degraded"]:
            assert alone.as_numpy("label")[0] == together.as_numpy("label")[number]


async def test_one_connection_carries_more_calls_at_once_than_https2_default(
    fashion: ServerProcess, images: np.ndarray
) -> None:
    async with triton_aio.InferenceServerClient(fashion.grpc_address) as client:
        asked = [infer(client, images[number : number + 1]) for number in range(300)]
        results = await asyncio.gather(*asked)
    assert [result.as_numpy("label").shape for result in results] == [(1,)] * 300


def test_typed_contents_are_answered_like_raw_ones(fashion: ServerProcess, images: np.ndarray) -> None:
    message = messages.ModelInferRequest(model_name="fashion", id="t")
    message.parameters["timeout"].int64_param = PATIENT_US
    entry = message.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28])
    entry.contents.uint_contents.extend(images[0].ravel().tolist())
    with triton.InferenceServerClient(fashion.grpc_address) as client:
        answer = client._client_stub.ModelInfer(message)
        raw = infer(client, images[:1])
    assert answer.id == "t"
    assert list(answer.outputs[0].contents.int64_contents) == raw.as_numpy("label").tolist()
    assert list(answer.outputs[1].contents.fp32_contents) == raw.as_numpy("probabilities").ravel().tolist()


def test_the_request_id_and_the_wanted_outputs_are_honoured(
    client: triton.InferenceServerClient, images: np.ndarray
) -> None:
    wanted = [triton.InferRequestedOutput("probabilities")]
    response = infer(client, images[:1], request_id="42", outputs=wanted, priority=1).get_response()
    assert response.id == "42"
    assert [output.name for output in response.outputs] == ["probabilities"]


def test_a_budget_stops_the_walk_and_the_answer_says_so(client: triton.InferenceServerClient, images: np.ndarray) -> None:
    result = infer(client, images[:64], parameters={"cascade_max_cost": 2000.0})
    assert parameters_of(result)["cascade_stage"] == "linear"
    assert parameters_of(result)["cascade_exit_reason"] == "budget"


def test_errors_have_the_codes_of_the_protocol(client: triton.InferenceServerClient, images: np.ndarray) -> None:
    row = images[:1]
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("INVALID_ARGUMENT", "priority", {"priority": 99}),
        ("INVALID_ARGUMENT", "'nothing' is unknown", {"outputs": [triton.InferRequestedOutput("nothing")]}),
        ("NOT_FOUND", "has no version '9'", {"model_version": "9"}),
    ]
    for code, mention, options in cases:
        with pytest.raises(InferenceServerException, match=mention) as refused:
            infer(client, row, **options)
        assert refused.value.status() == f"StatusCode.{code}"
    with pytest.raises(InferenceServerException, match=r"shape must be \[rows, 28, 28\]") as refused:
        infer(client, row[0])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    # Ten microseconds are over before the first stage can begin.
    with pytest.raises(InferenceServerException) as refused:
        infer(client, row, timeout=10)
    assert refused.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


def test_bytes_that_are_no_message_come_back_as_such_with_the_stable_code(fashion: ServerProcess) -> None:
    with grpc.insecure_channel(fashion.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff\xff", timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.value.trailing_metadata())["cascade-code"] == "bad_request"


def test_statistics_count_both_protocols_together(
    client: triton.InferenceServerClient, http_client: triton_http.InferenceServerClient, images: np.ndarray
) -> None:
    def counts() -> tuple[int, int]:
        [whole] = http_client.get_inference_statistics("fashion")["model_stats"][:1]
        return whole["inference_count"], whole["execution_count"]

    rows, requests = counts()
    infer(client, images[:3])
    infer(http_client, images[:2])
    assert counts() == (rows + 5, requests + 2)
