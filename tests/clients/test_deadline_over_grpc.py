"""The deadline that a client sets on the call itself reaches the router, through HAProxy and Serve.

The server's own default is so short that no dearer stage can answer within it; only a deadline from the call gives one time.
"""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton
import yaml
from checksum import DATATYPES, checksum, checksum_rows, write_checksum_ladder
from tritonclient.utils import InferenceServerException

from tests.server import ServerProcess, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

DEFAULT_S = 1e-4


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that gives a request no time unless the client does."""
    root = tmp_path_factory.mktemp("impatient")
    path = write_checksum_ladder(root)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**document, "deadline": {"default_s": DEFAULT_S, "max_s": 120.0}}))
    with served(path, root / "serve.log") as server:
        yield server


def exit_reason(client: triton.InferenceServerClient, seed: int, client_timeout: float | None) -> str:
    """Why a row stopped; the status of the refusal where there was no time for any answer."""
    data = checksum_rows(1, seed=seed)
    inputs = []
    for name, array in data.items():
        inputs.append(triton.InferInput(name, list(array.shape), DATATYPES[name][0]))
        inputs[-1].set_data_from_numpy(array)
    try:
        result = client.infer("checksum", inputs, client_timeout=client_timeout)
    except InferenceServerException as error:
        return str(error.status())
    parameters = result.get_response().parameters
    if parameters["cascade_exit_reason"].string_param == "last_stage":
        assert (result.as_numpy("label") == checksum(data)).all()
    return str(parameters["cascade_exit_reason"].string_param)


def test_the_time_that_a_call_has_is_time_for_dearer_stages(impatient: ServerProcess) -> None:
    with triton.InferenceServerClient(impatient.grpc_address) as client:
        without = {exit_reason(client, seed, None) for seed in range(20)}
        assert without <= {"confident", "deadline", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE"}
        assert {exit_reason(client, seed, 100.0) for seed in range(20)} == {"confident", "last_stage"}
