"""Every datatype, raw and typed, from tritonclient over gRPC through a real server to a network and back."""

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.service_pb2 as messages
import tritonclient.http as triton_http
from checksum import DATATYPES, checksum, checksum_rows
from tritonclient.utils import InferenceServerException

from tests.server import ServerProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

PATIENT_US = 20_000_000


@pytest.fixture
def client(every_datatype: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(every_datatype.grpc_address) as client:
        yield client


def tensors(rows: dict[str, np.ndarray], kind=triton) -> list[triton.InferInput]:
    inputs = []
    for name, array in rows.items():
        tensor = kind.InferInput(name, list(array.shape), DATATYPES[name][0])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("rows", [1, 33])
def test_no_element_of_any_datatype_is_lost_on_the_way(
    client: triton.InferenceServerClient, every_datatype: ServerProcess, rows: int
) -> None:
    data = checksum_rows(rows, seed=rows)
    result = client.infer("checksum", tensors(data), timeout=PATIENT_US)
    assert (result.as_numpy("label") == checksum(data)).all()
    assert result.get_response().model_version == "7"
    with triton_http.InferenceServerClient(f"127.0.0.1:{every_datatype.port}", network_timeout=60) as http_client:
        over_http = http_client.infer("checksum", tensors(data, triton_http), timeout=PATIENT_US)
    told = over_http.get_response()["parameters"]
    assert not told["cascade_degraded"], told
    assert result.as_numpy("probabilities").tobytes() == over_http.as_numpy("probabilities").tobytes()


def test_a_datatype_without_a_typed_form_is_asked_for_raw(client: triton.InferenceServerClient) -> None:
    message = messages.ModelInferRequest(model_name="checksum")
    message.inputs.add(name="half", datatype="FP16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    with pytest.raises(Exception, match="FP16 has no typed contents, send it in raw_input_contents"):
        client._client_stub.ModelInfer(message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(client: triton.InferenceServerClient, value: float) -> None:
    bad = checksum_rows(5, seed=3)
    bad["single"][3, 0] = value
    with pytest.raises(InferenceServerException, match="'single', row 3") as refused:
        client.infer("checksum", tensors(bad))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_too_many_rows_and_too_long_messages_are_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="1 to 64 rows") as refused:
        client.infer("checksum", tensors(checksum_rows(65, seed=5)))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="at most 1048576 bytes") as refused:
        client.infer("checksum", tensors(checksum_rows(40_000, seed=5)))
    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
