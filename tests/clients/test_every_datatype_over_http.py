"""Every datatype, in JSON and as binary data, from tritonclient through a real server to a network and back."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from checksum import DATATYPES, checksum, checksum_rows
from tritonclient.utils import InferenceServerException

from tests.server import ServerProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def client(every_datatype: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{every_datatype.port}", network_timeout=60)
    yield client
    client.close()


def tensors(rows: dict[str, np.ndarray], *, binary: bool) -> list[triton.InferInput]:
    inputs = []
    for name, array in rows.items():
        tensor = triton.InferInput(name, list(array.shape), DATATYPES[name][0])
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("rows", [1, 33])
def test_no_element_of_any_datatype_is_lost_on_the_way(
    client: triton.InferenceServerClient, binary: bool, rows: int
) -> None:
    data = checksum_rows(rows, seed=rows)
    outputs = [triton.InferRequestedOutput("label", binary_data=binary)]
    result = client.infer("checksum", tensors(data, binary=binary), outputs=outputs, timeout=20_000_000)
    assert (result.as_numpy("label") == checksum(data)).all()
    assert result.get_response()["model_version"] == "7"


def test_rows_of_one_request_leave_at_different_stages(client: triton.InferenceServerClient) -> None:
    seen = set()
    for seed in range(20):
        data = checksum_rows(1, seed=seed)
        parameters = client.infer("checksum", tensors(data, binary=True), timeout=20_000_000).get_response()["parameters"]
        seen.add((parameters["cascade_stage"], parameters["cascade_exit_reason"]))
    assert seen == {("rough", "confident"), ("exact", "last_stage")}


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_values_that_are_not_finite_are_refused_and_batch_mates_are_unharmed(
    every_datatype: ServerProcess, value: float
) -> None:
    bad = checksum_rows(5, seed=3)
    bad["single"][3, 0] = value
    good = [checksum_rows(5, seed=seed) for seed in range(4, 20)]
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{every_datatype.port}") as client:
        asked = [client.infer("checksum", tensors(data, binary=True), timeout=20_000_000) for data in (bad, *good)]
        refused, *answered = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(refused, InferenceServerException)
    assert refused.status() == "400"
    assert "'single', row 3" in str(refused)
    for data, result in zip(good, answered, strict=True):
        assert (result.as_numpy("label") == checksum(data)).all()


def test_too_many_rows_and_too_long_bodies_are_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="1 to 64 rows") as error:
        client.infer("checksum", tensors(checksum_rows(65, seed=5), binary=True))
    assert error.value.status() == "400"
    with pytest.raises(InferenceServerException) as error:
        client.infer("checksum", tensors(checksum_rows(40_000, seed=5), binary=True))
    assert error.value.status() == "413"
