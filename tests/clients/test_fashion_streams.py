"""The shipped ladder on a real local Ray, watched by unmodified clients: event streams over HTTP, streams over gRPC."""

import http.client
import json
import queue
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import numpy as np
import pytest
import tritonclient.grpc as triton

from cascade.calibration.artefact import Calibration
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.spec import Ladder
from tests.server import ROOT, ServerProcess, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

FOLDER = ROOT / "deployments" / "fashion"
STAGES = ["linear", "tiny", "small", "medium", "large"]
STREAM = "/v2/models/fashion/infer_stream"
PATIENT_US = 20_000_000
"""Time enough for a machine that is busy with other things."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(FOLDER / "data" / "test.npz") as data:
        return data["image"]


@pytest.fixture(scope="module")
def exits() -> np.ndarray:
    """Stage at which each image stops when nothing is loaded."""
    ladder = Ladder.read(FOLDER / "cascade.yaml")
    table = OutcomeTable.read(ladder.table_path.with_name("test-outcomes.npz"))
    return judge_table(table, Calibration.read(ladder.calibration_path)).exits(ladder.spec.base_prices)


@pytest.fixture(scope="module")
def through_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The shipped ladder behind Serve's own way in, HTTP and gRPC."""
    log = tmp_path_factory.mktemp("through_serve") / "serve.log"
    with served(FOLDER / "cascade.yaml", log, ["--through-serve"]) as server:
        yield server


@pytest.fixture(params=["fashion", "through_serve"])
def server(request: pytest.FixtureRequest) -> ServerProcess:
    """Both ways in."""
    return request.getfixturevalue(request.param)


def body(images: np.ndarray, **members: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": images.tolist()}
    members["parameters"] = {"timeout": PATIENT_US, **members.get("parameters", {})}
    return {"inputs": [tensor], **members}


def events_of(server: ServerProcess, images: np.ndarray, path: str = STREAM, **members: Any) -> list[dict[str, Any]]:
    """All events of one request, as a client of event streams reads them."""
    with (
        httpx.Client(timeout=60) as client,
        httpx_sse.connect_sse(client, "POST", server.url + path, json=body(images, **members)) as source,
    ):
        assert source.response.status_code == 200
        assert source.response.headers["cache-control"] == "no-cache"
        assert source.response.headers["x-request-id"]
        return [json.loads(event.data) for event in source.iter_sse()]


def plainly(server: ServerProcess, images: np.ndarray, **members: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}/v2/models/fashion/infer", json=body(images, **members), timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def output(document: dict[str, Any], name: str) -> np.ndarray:
    (tensor,) = (tensor for tensor in document["outputs"] if tensor["name"] == name)
    return np.array(tensor["data"]).reshape(tensor["shape"])


def told(events: list[dict[str, Any]], name: str) -> list[Any]:
    return [event["parameters"].get(name) for event in events]


def live(server: ServerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/v2/models/fashion/stats", timeout=60) as response:
        return json.load(response)


def until(holds: Callable[[], bool]) -> None:
    """Return once something holds; the test's own limit of time is the end of it."""
    while not holds():
        time.sleep(0.05)


def test_an_image_that_goes_on_is_shown_at_every_stage_that_is_read_in_time(
    server: ServerProcess, images: np.ndarray, exits: np.ndarray
) -> None:
    for number in np.flatnonzero(exits == 4)[:5]:
        events = events_of(server, images[number : number + 1], id=str(number))
        places = [STAGES.index(stage) for stage in told(events, "cascade_stage")]
        assert places[0] == 0
        assert places == sorted(set(places))
        assert told(events, "cascade_final") == [False] * (len(events) - 1) + [True]
        labels = [output(event, "label").tolist() for event in events]
        changed = [now != before for before, now in pairwise(labels)]
        assert told(events, "cascade_revised") == [False, *changed]
        sure = told(events, "cascade_confidence")
        for revised, before, now in zip(told(events, "cascade_revised")[1:], sure, sure[1:], strict=False):
            assert revised or now >= before, "confidence fell, and nobody said so"
        assert {event["id"] for event in events} == {str(number)}


def test_the_last_event_is_the_plain_answer_or_a_surer_one_from_before(
    server: ServerProcess, images: np.ndarray, exits: np.ndarray
) -> None:
    same = kept = 0
    for number in [*np.flatnonzero(exits == 0)[:3], *np.flatnonzero(exits == 2)[:6], *np.flatnonzero(exits == 4)[:6]]:
        image = images[number : number + 1]
        *_, last = events_of(server, image, path="/v2/models/fashion/versions/1/infer_stream")
        whole = plainly(server, image)
        assert last["parameters"]["cascade_stage"] == whole["parameters"]["cascade_stage"] == STAGES[exits[number]]
        assert last["parameters"]["cascade_cost"] == whole["parameters"]["cascade_cost"]
        assert np.array_equal(output(last, "label"), output(whole, "label"))
        if "cascade_kept_rows" in last["parameters"]:
            kept += 1
            assert last["parameters"]["cascade_confidence"] > whole["parameters"]["cascade_confidence"]
        else:
            same += 1
            assert np.allclose(output(last, "probabilities"), output(whole, "probabilities"), atol=1e-5)
    assert same > kept


def test_many_images_are_shown_together(server: ServerProcess, images: np.ndarray, exits: np.ndarray) -> None:
    events = events_of(server, images[:200])
    assert all(len(output(event, "label")) == 200 for event in events)
    waiting = told(events, "cascade_waiting_rows")
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[0] > 0
    assert waiting[-1] == 0
    probabilities = np.stack([output(event, "probabilities") for event in events])
    early = exits[:200] == 0
    assert (probabilities[:, early] == probabilities[:1, early]).all()
    assert probabilities.sum(axis=2) == pytest.approx(1.0, abs=1e-4)


def test_the_client_says_when_it_is_enough(server: ServerProcess, images: np.ndarray, exits: np.ndarray) -> None:
    number = int(np.flatnonzero(exits == 4)[0])
    image = images[number : number + 1]
    content = events_of(server, image, parameters={"cascade_min_confidence": 0.05})
    assert told(content, "cascade_exit_reason") == ["satisfied"]
    assert told(content, "cascade_degraded") == [False]
    assert plainly(server, image, parameters={"cascade_min_confidence": 0.05})["parameters"]["cascade_cost"] == 1960
    thrifty = events_of(server, image, parameters={"cascade_max_cost": 50_000})
    assert told(thrifty, "cascade_exit_reason")[-1] == "budget"
    assert told(thrifty, "cascade_cost")[-1] <= 50_000


def test_what_cannot_be_answered_has_its_status(server: ServerProcess, images: np.ndarray) -> None:
    message = body(images[:1], parameters={"binary_data_output": True})
    response = httpx.post(server.url + STREAM, json=message, timeout=60)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert "JSON only" in response.json()["error"]
    hurried = httpx.post(server.url + STREAM, json=body(images[:1], parameters={"timeout": 1}), timeout=60)
    assert hurried.status_code in (503, 504)


class Raw:
    """A connection that reads when it is told to."""

    def __init__(self, server: ServerProcess, images: np.ndarray) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._connection.request("POST", STREAM, json.dumps(body(images)))
        self.response = self._connection.getresponse()
        assert self.response.status == 200

    def event(self) -> dict[str, Any]:
        line = self.response.readline()
        while not line.startswith(b"data: "):
            assert line, "the stream ended"
            line = self.response.readline()
        return json.loads(line[len(b"data: ") :])

    def close(self) -> None:
        self.response.close()
        self._connection.close()


def test_a_client_that_reads_late_gets_the_end_and_keeps_nobody_waiting(
    server: ServerProcess, images: np.ndarray, exits: np.ndarray
) -> None:
    hard = np.flatnonzero(exits >= 3)[:120]
    late = Raw(server, images[hard])
    first = late.event()
    assert first["parameters"]["cascade_final"] is False
    until(lambda: all(queue == 0 for queue in live(server)["live"]["queue"].values()))
    assert plainly(server, images[:1])["parameters"]["cascade_stage"] in STAGES
    last = first
    while not last["parameters"]["cascade_final"]:
        last = late.event()
    assert len(output(last, "label")) == len(hard)
    late.close()


def test_the_rows_of_a_client_that_leaves_stop_waiting(server: ServerProcess, images: np.ndarray, exits: np.ndarray) -> None:
    hard = np.flatnonzero(exits == 4)[:400]
    answered = live(server)["model_stats"][0]["inference_count"]
    leaving = Raw(server, images[hard])
    assert leaving.event()["parameters"]["cascade_waiting_rows"] == len(hard)
    leaving.close()
    until(lambda: all(queue == 0 for queue in live(server)["live"]["queue"].values()))
    assert live(server)["model_stats"][0]["inference_count"] - answered < len(hard)


# -- gRPC --------------------------------------------------------------------------------------------------------------


def facts(result: triton.InferResult) -> dict[str, Any]:
    parameters = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


def asked(images: np.ndarray, request_id: str, **parameters: Any) -> dict[str, Any]:
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return {
        "model_name": "fashion",
        "inputs": [tensor],
        "request_id": request_id,
        "timeout": PATIENT_US,
        "parameters": parameters or None,
    }


def streamed(server: ServerProcess, *requests: dict[str, Any]) -> list[tuple[Any, Any]]:
    """All that comes back for these requests on one stream of tritonclient's."""
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: got.put((result, error)), stream_timeout=60)
        for request in requests:
            client.async_stream_infer(**request)
        client.stop_stream()
    return [got.get_nowait() for _ in range(got.qsize())]


def test_several_requests_on_one_stream_are_each_shown_to_their_end(
    server: ServerProcess, images: np.ndarray, exits: np.ndarray
) -> None:
    numbers = [*np.flatnonzero(exits == 4)[:3], *np.flatnonzero(exits == 0)[:3]]
    pairs = streamed(
        server,
        *(asked(images[number : number + 1], str(number)) for number in numbers),
        asked(images[:1], "wrong", cascade_max_cost=-1),
        asked(images[:20], "many", cascade_min_confidence=0.05),
    )
    (error,) = [error for _, error in pairs if error is not None]
    assert "[request id: wrong] Bad request" in error.message()
    results = [result for result, _ in pairs if result is not None]
    for number in numbers:
        of_this = [result for result in results if result.get_response().id == str(number)]
        assert [facts(result)["cascade_final"] for result in of_this] == [False] * (len(of_this) - 1) + [True]
        assert facts(of_this[-1])["cascade_stage"] == STAGES[exits[number]]
        whole = plainly(server, images[number : number + 1])
        assert of_this[-1].as_numpy("label").tolist() == output(whole, "label").tolist()
        if "cascade_kept_rows" not in facts(of_this[-1]):
            assert np.allclose(of_this[-1].as_numpy("probabilities"), output(whole, "probabilities"), atol=1e-5)
    (many,) = [result for result in results if result.get_response().id == "many"]
    assert many.as_numpy("label").shape == (20,)


def test_a_stream_that_a_client_drops_stops_its_rows(server: ServerProcess, images: np.ndarray, exits: np.ndarray) -> None:
    hard = np.flatnonzero(exits == 4)[:400]
    answered = live(server)["model_stats"][0]["inference_count"]
    came: queue.Queue[Any] = queue.Queue()
    client = triton.InferenceServerClient(server.grpc_address)
    client.start_stream(lambda result, error: came.put((result, error)))
    client.async_stream_infer(**asked(images[hard], "1"))
    result, error = came.get(timeout=60)
    assert error is None
    assert facts(result)["cascade_final"] is False
    client.stop_stream(cancel_requests=True)
    client.close()
    until(lambda: all(queue == 0 for queue in live(server)["live"]["queue"].values()))
    assert live(server)["model_stats"][0]["inference_count"] - answered < len(hard)


def test_the_tests_have_images_for_every_stage(exits: np.ndarray) -> None:
    assert Path(FOLDER / "calibration" / "test-outcomes.npz").is_file()
    assert (np.bincount(exits, minlength=5)[[0, 2, 4]] >= [3, 6, 400]).all()
