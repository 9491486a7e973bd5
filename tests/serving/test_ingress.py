"""The HTTP surface over fake stages, called in this process: every route, every kind of bad message, every kind of answer.

Bodies are made and read by tritonclient wherever a client of it could send them.
"""

import asyncio
import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from asgi import Client, Disconnected, Response, started
from hypothesis import given, settings
from hypothesis import strategies as st
from ladders import SURE, UNSURE, config, fake_ladder, fake_stages, make_router, told

from cascade.policy.policy import StageConfig
from cascade.serving.fakes import FakeStage
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.spec import Ladder

pytestmark = pytest.mark.looptime(noop_cycles=0)

INFER = "/v2/models/fake/infer"
ROOT = Path(__file__).parents[2]
PATIENT = {"deadline": {"default_s": 400.0, "max_s": 800.0}}
"""Deadlines so long that the real time spent on reading a body does not show beside them."""


class Recording(Router):
    """A router that remembers what it was asked for."""

    asked: list[dict[str, Any]]

    async def answer(self, inputs, rows, **facts):
        self.asked = [*getattr(self, "asked", []), {"inputs": inputs, "rows": rows, **facts}]
        return await super().answer(inputs, rows, **facts)


class Served:
    """An application, its client once it runs, and what stands behind it."""

    def __init__(
        self,
        stages: list[FakeStage] | None = None,
        configs: list[StageConfig] | None = None,
        *,
        kind: type[Router] = Recording,
        ladder: Ladder | None = None,
        **spec: Any,
    ) -> None:
        self.stages = fake_stages(2) if stages is None else stages
        self.ladder = ladder or fake_ladder(len(self.stages), **spec)
        self._configs = configs
        self._kind = kind
        self.app = Ingress(Service(self.ladder, self._make_router))

    def _make_router(self) -> Router:
        self.router = make_router(self.stages, self._configs, kind=self._kind)
        return self.router

    async def __aenter__(self) -> "Served":
        self._running = started(self.app)
        self.client = await self._running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._running.__aexit__(*error)

    async def infer(self, data: list[Any], **members: Any) -> Response:
        """Send rows as JSON."""
        return await self.client.post(INFER, request(data, **members))


def request(data: list[Any], **members: Any) -> bytes:
    """A JSON request with one input `x` of two logits a row."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(np.shape(data)), "data": data}
    return json.dumps({"inputs": [tensor], **members}).encode()


def triton_body(*arrays: tuple[str, str, np.ndarray], binary: bool = True, **facts: Any) -> tuple[bytes, dict[str, str]]:
    """A request as tritonclient sends it: the body, and the header that frames it."""
    inputs = [
        triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)
        for name, datatype, array in arrays
    ]
    body, json_length = triton.InferenceServerClient.generate_request_body(inputs, **facts)
    return body, {} if json_length is None else {"inference_header_content_length": str(json_length)}


def triton_result(response: Response) -> triton.InferResult:
    """An answer as tritonclient reads it."""
    assert response.status == 200, response.body
    length = response.headers.get("inference-header-content-length")
    return triton.InferResult.from_response_body(
        response.body,
        header_length=None if length is None else int(length),
        content_encoding=response.headers.get("content-encoding"),
    )


def x(*rows: tuple[float, ...]) -> tuple[str, str, np.ndarray]:
    return "x", "FP32", np.array(rows, dtype=np.float32)


def assert_problem(response: Response, status: int, code: str, *mentions: str) -> None:
    """An error as every client can read it, with a sentence that holds all of these words."""
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["error"] == f"{document['title']}: {document['detail']}"
    for mention in mentions:
        assert mention in document["error"]
    assert "Traceback" not in document["error"]


# -- health and metadata -------------------------------------------------------------------------------------------------


async def test_a_server_that_is_loading_lives_and_is_not_ready():
    client = Client(Served().app)
    live = await client.get("/v2/health/live")
    assert (live.status, live.json()) == (200, {"live": True})
    ready = await client.get("/v2/health/ready")
    assert (ready.status, ready.json()["ready"]) == (503, False)
    model = await client.get("/v2/models/fake/ready")
    assert (model.status, model.json()) == (503, {"name": "fake", "ready": False})
    assert (await client.get("/v2/models/fake")).status == 200
    assert_problem(await client.post(INFER, request([[SURE, 0]])), 503, "not_ready")
    assert_problem(await client.get("/v2/models/fake/stats"), 503, "not_ready")


async def test_a_server_that_has_started_is_ready():
    async with Served() as served:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready", "/v2/models/fake/versions/7/ready"):
            response = await served.client.get(path)
            assert response.status == 200
            assert True in response.json().values()
            assert response.headers["content-type"] == "application/json"


async def test_metadata_of_the_server_and_its_models():
    async with Served() as served:
        server = (await served.client.get("/v2")).json()
        assert server["name"] == "cascade"
        assert "binary_tensor_data" in server["extensions"]
        assert (await served.client.get("/v2/")).json() == server
        assert (await served.client.get("/")).json() == {"status": "alive"}
        assert (await served.client.get("/v2/models")).json() == {"models": ["fake"]}
        index = (await served.client.post("/v2/repository/index")).json()
        assert index == [{"name": "fake", "version": "7", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("spec", sorted(ROOT.glob("deployments/*/cascade.yaml")), ids=lambda path: path.parent.name)
async def test_every_shipped_ladder_describes_itself(spec):
    ladder = Ladder.read(spec)
    async with Served(fake_stages(len(ladder.spec.stages)), ladder=ladder) as served:
        model = (await served.client.get(f"/v2/models/{ladder.spec.name}")).json()
        assert model["name"] == ladder.spec.name
        assert model["versions"] == [ladder.spec.version]
        assert model["inputs"] == [
            {"name": field.name, "datatype": field.datatype, "shape": [-1, *field.shape]} for field in ladder.spec.inputs
        ]
        assert model["outputs"] == [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(ladder.spec.labels)]},
        ]
        assert model["properties"]["stages"].split(",") == [stage.name for stage in ladder.spec.stages]
        model_config = (await served.client.get(f"/v2/models/{ladder.spec.name}/config")).json()
        assert model_config["name"] == ladder.spec.name
        assert model_config["max_batch_size"] == ladder.spec.limits.max_rows
        assert [entry["dims"] for entry in model_config["input"]] == [list(field.shape) for field in ladder.spec.inputs]


async def test_head_gives_the_headers_of_get_without_a_body():
    async with Served() as served:
        for path in ("/v2/health/ready", "/v2/models/fake", "/v2/models/other"):
            get, head = await served.client.get(path), await served.client.request("HEAD", path)
            assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


async def test_a_mount_prefix_is_not_part_of_the_route():
    async with Served() as served:
        mounted = Client(served.app, root_path="/models")
        assert (await mounted.get("/models/v2/health/ready")).status == 200
        assert_problem(await mounted.get("/models/v2/nothing"), 404, "unknown_route", "/v2/nothing")


async def test_unknown_routes_models_and_versions_are_not_found():
    async with Served() as served:
        assert_problem(await served.client.get("/v3"), 404, "unknown_route", "/v3")
        assert_problem(await served.client.get("/v2/models/other"), 404, "unknown_model", "'other'", "'fake'")
        assert_problem(await served.client.get("/v2/models/fake/versions/8"), 404, "unknown_model", "'8'", "'7'")
        for path in ("/v2/models/other/infer", "/v2/models/fake/versions/8/infer"):
            assert_problem(await served.client.post(path, request([[SURE, 0]])), 404, "unknown_model")
        assert (await served.client.post("/v2/models/fake/versions/7/infer", request([[SURE, 0]]))).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("DELETE", "/v2/models/fake", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(method, path, allow):
    async with Served() as served:
        response = await served.client.request(method, path)
        assert response.headers["allow"] == allow
        if method != "HEAD":
            assert_problem(response, 405, "method_not_allowed", method)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [[[SURE, 0.0], [UNSURE, -SURE]], [SURE, 0.0, UNSURE, -SURE]], ids=["nested", "flat"])
async def test_rows_in_json_are_answered_in_json(data):
    async with Served() as served:
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": data}
        response = await served.client.post(INFER, json.dumps({"inputs": [tensor]}).encode())
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        assert (answer["model_name"], answer["model_version"]) == ("fake", "7")
        label, probabilities = answer["outputs"]
        assert label == {"name": "label", "shape": [2], "datatype": "INT64", "data": [1, 0]}
        assert (probabilities["name"], probabilities["shape"]) == ("probabilities", [2, 2])
        assert np.reshape(probabilities["data"], (2, 2)).sum(axis=1) == pytest.approx([1, 1])


async def test_the_calibrated_probabilities_of_the_answering_stage_are_given():
    async with Served() as served:
        result = triton_result(await served.infer([[np.log(9.0), 0.0]], parameters={"cascade_max_cost": 1.0}))
        assert result.as_numpy("probabilities")[0] == pytest.approx([0.1, 0.9], abs=1e-6)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_binary_and_json_mix_freely(binary_in, binary_out):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "label")]
    body, headers = triton_body(x((SURE, 0), (UNSURE, -SURE)), binary=binary_in, outputs=outputs)
    async with Served() as served:
        response = await served.client.post(INFER, body, **headers)
        result = triton_result(response)
        assert result.as_numpy("label").tolist() == [1, 0]
        assert result.as_numpy("probabilities").shape == (2, 2)
        assert [output["name"] for output in result.get_response()["outputs"]] == ["probabilities", "label"]
        assert ("inference-header-content-length" in response.headers) == binary_out


async def test_each_output_may_have_a_form_of_its_own():
    outputs = [
        triton.InferRequestedOutput("label", binary_data=True),
        triton.InferRequestedOutput("probabilities", binary_data=False),
    ]
    body, headers = triton_body(x((SURE, 0)), outputs=outputs)
    async with Served() as served:
        result = triton_result(await served.client.post(INFER, body, **headers))
        label, probabilities = result.get_response()["outputs"]
        assert "data" not in label
        assert "data" in probabilities
        assert result.as_numpy("label").tolist() == [1]


async def test_a_client_that_names_no_outputs_gets_all_of_them_as_binary_data():
    body, headers = triton_body(x((SURE, 0)))
    async with Served() as served:
        response = await served.client.post(INFER, body, **headers)
        assert response.headers["content-type"] == "application/octet-stream"
        result = triton_result(response)
        assert result.as_numpy("label").tolist() == [1]
        assert result.as_numpy("probabilities").dtype == np.float32


DATATYPES = {
    "FP32": np.array([[1.5, -2], [0, 3]], np.float32),
    "FP16": np.array([[1.5, -2], [0, 3]], np.float16),
    "INT64": np.array([[2**62, -1], [0, 3]], np.int64),
    "UINT8": np.array([[255, 0], [1, 2]], np.uint8),
    "BOOL": np.array([[True, False], [False, False]]),
    "BYTES": np.array([[b"one", b""], [b"\x00\xff", b"four"]], dtype=object),
}


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_inputs_of_every_datatype_reach_the_stage_as_they_were_sent(datatype):
    stage = FakeStage(lambda inputs: np.zeros((len(inputs["x"]), 2)))
    inputs = [{"name": "x", "datatype": datatype, "shape": [2]}]
    body, headers = triton_body(("x", datatype, DATATYPES[datatype]))
    async with Served([stage], inputs=inputs) as served:
        triton_result(await served.client.post(INFER, body, **headers))
        got = stage.calls[0]["x"]
        assert got.dtype == DATATYPES[datatype].dtype
        assert got.tolist() == DATATYPES[datatype].tolist()


@pytest.mark.parametrize("binary", [True, False])
async def test_several_inputs_may_come_in_any_order(binary):
    stage = FakeStage(lambda inputs: np.zeros((len(inputs["text"]), 2)))
    inputs = [
        {"name": "text", "datatype": "BYTES", "shape": [2]},
        {"name": "keep", "datatype": "BOOL"},
        {"name": "scale", "datatype": "FP32", "shape": [1, 3]},
    ]
    text = np.array([["a", "b"], ["c", "ü"]], dtype=object)
    keep, scale = np.array([True, False]), np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    sent = [("scale", "FP32", scale), ("text", "BYTES", text), ("keep", "BOOL", keep)]
    body, headers = triton_body(*sent, binary=binary)
    async with Served([stage], inputs=inputs) as served:
        triton_result(await served.client.post(INFER, body, **headers))
        (call,) = stage.calls
        assert list(call) == ["text", "keep", "scale"]
        assert call["text"].tolist() == [[b"a", b"b"], [b"c", "ü".encode()]]
        assert call["keep"].tolist() == keep.tolist()
        assert call["scale"].tolist() == scale.tolist()


async def test_a_raw_body_is_one_row_of_the_only_input():
    async with Served() as served:
        raw = np.array([SURE, 0], np.float32).tobytes()
        result = triton_result(await served.client.post(INFER, raw, inference_header_content_length="0"))
        assert result.as_numpy("label").tolist() == [1]
        assert served.router.asked[0]["rows"] == 1


async def test_an_id_comes_back_and_none_is_invented():
    async with Served() as served:
        assert (await served.infer([[SURE, 0]], id="42")).json()["id"] == "42"
        assert "id" not in (await served.infer([[SURE, 0]])).json()
        empty = (await served.infer([[SURE, 0]], id="")).json()
        assert empty["id"] == ""


async def test_unknown_members_are_ignored():
    async with Served() as served:
        response = await served.infer([[SURE, 0]], model_name="fake", anything={"nested": [1]}, parameters={"mine": "x"})
        assert response.json()["outputs"][0]["data"] == [1]


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_bodies_may_be_compressed_both_ways(name, pack):
    body, headers = triton_body(x(*[(SURE, 0)] * 300))
    async with Served(**PATIENT) as served:
        response = await served.client.post(INFER, pack(body), **headers, content_encoding=name, accept_encoding=name)
        assert response.headers["content-encoding"] == name
        plain = await served.client.post(INFER, body, **headers)
        assert len(response.body) < len(plain.body)
        assert triton_result(response).as_numpy("label").tolist() == [1] * 300
        length = response.headers["inference-header-content-length"]
        assert abs(int(length) - int(plain.headers["inference-header-content-length"])) < 20


async def test_an_answer_is_compressed_only_for_a_client_that_asks():
    body, headers = triton_body(x(*[(SURE, 0)] * 300))
    async with Served(**PATIENT) as served:
        for accept in ({}, {"accept_encoding": "identity"}, {"accept_encoding": "br"}):
            response = await served.client.post(INFER, body, **headers, **accept)
            assert "content-encoding" not in response.headers
            triton_result(response)


async def test_a_body_may_come_in_pieces():
    body, headers = triton_body(x((SURE, 0)))
    async with Served() as served:
        pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
        result = triton_result(await served.client.post(INFER, [b"", *pieces, b""], **headers))
        assert result.as_numpy("label").tolist() == [1]


async def test_an_answer_says_where_it_came_from():
    async with Served(fake_stages(2, seconds=0.02)) as served:
        response = await served.infer([[UNSURE, SURE]])
        parameters = response.json()["parameters"]
        assert parameters["cascade_stage"] == "s1"
        assert parameters["cascade_exit_reason"] == "last_stage"
        assert parameters["cascade_degraded"] is False
        assert parameters["cascade_confidence"] == pytest.approx(1, abs=1e-3)
        assert parameters["cascade_cost"] == 11.0
        assert "cascade_degraded_rows" not in parameters
        assert response.headers["cascade-stage"] == "s1"
        assert response.headers["cascade-exit-reason"] == "last_stage"
        assert response.headers["cascade-degraded"] == "?0"
        assert response.headers["server-timing"] == "queue;dur=0.00, s0;dur=20.00, s1;dur=20.00"


async def test_a_message_of_several_rows_reports_its_worst_row():
    stages = [FakeStage(told(0)), FakeStage(told(1)), FakeStage(told(2), fail_first=2)]
    async with Served(stages) as served:
        response = await served.infer([[SURE, 0, 0], [UNSURE, SURE, 0], [UNSURE, 1.0, SURE]])
        assert response.status == 200
        parameters = response.json()["parameters"]
        assert parameters["cascade_stage"] == "s1"
        assert parameters["cascade_exit_reason"] == "failure"
        assert parameters["cascade_degraded"] is True
        assert parameters["cascade_degraded_rows"] == 1
        assert parameters["cascade_confidence"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)
        assert parameters["cascade_cost"] == 1 + 11 + 111  # a visit that fails has been paid for as well
        assert response.headers["cascade-degraded"] == "?1"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [({"fail_first": 9}, "failure"), ({"hang": frozenset({0, 1})}, "failure"), ({"seconds": 9.0}, "deadline")],
)
async def test_a_degraded_answer_is_a_success_that_says_so(behaviour, reason):
    stages = [FakeStage(told(0)), FakeStage(told(1), **behaviour)]
    floor_s = 99.0 if reason == "deadline" else 0.1
    async with Served(stages, [config(), config(cost=10.0, timeout_floor_s=floor_s)]) as served:
        response = await served.infer([[UNSURE, SURE]])
        assert response.status == 200
        parameters = response.json()["parameters"]
        assert parameters["cascade_degraded"] is True
        assert parameters["cascade_exit_reason"] == reason
        assert parameters["cascade_stage"] == "s0"
        assert response.headers["cascade-degraded"] == "?1"
        assert response.headers["cascade-exit-reason"] == reason
        assert asyncio.get_running_loop().time() < 1.0


# -- deadlines, classes, budgets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "parameters", "budget_s"),
    [
        ({}, {}, 400),
        ({}, {"timeout": 200_000_000}, 200),
        ({}, {"timeout": 0}, 400),
        ({}, {"timeout": 3_000_000_000}, 800),
        ({"x_request_timeout_seconds": "100"}, {"timeout": 200_000_000}, 100),
        ({"x_request_timeout_seconds": "300"}, {"timeout": 200_000_000}, 200),
        ({"x_request_timeout_seconds": "-1"}, {}, 400),
        ({"x_request_timeout_seconds": "soon"}, {}, 400),
        ({"x_envoy_expected_rq_timeout_ms": "90000"}, {}, 90),
        ({"grpc_timeout": "2M"}, {}, 120),
        ({"x_stainless_read_timeout": "600"}, {}, 600),
        ({"prefer": "wait=70", "grpc_timeout": "2M"}, {}, 70),
    ],
)
async def test_the_earliest_deadline_counts(headers, parameters, budget_s):
    async with Served(**PATIENT) as served:
        response = await served.client.post(INFER, request([[SURE, 0]], parameters=parameters), **headers)
        assert response.status == 200
        assert budget_s - 10 < served.router.asked[0]["budget_s"] <= budget_s
        assert response.headers.get("preference-applied") == ("wait=70" if "prefer" in headers else None)


@pytest.mark.parametrize(
    ("headers", "parameters", "priority"),
    [
        ({}, {}, 2),
        ({}, {"priority": 0}, 2),
        ({}, {"priority": 1}, 1),
        ({}, {"priority": 4}, 4),
        ({"priority": "u=0"}, {}, 1),
        ({"priority": "u=7, i"}, {}, 4),
        ({"priority": "u=7"}, {"priority": 1}, 1),
        ({"priority": "nonsense"}, {}, 2),
    ],
)
async def test_the_class_of_a_request_reaches_the_policy(headers, parameters, priority):
    async with Served() as served:
        response = await served.client.post(INFER, request([[SURE, 0]], parameters=parameters), **headers)
        assert response.status == 200
        assert served.router.asked[0]["priority"] == priority


async def test_a_budget_reaches_the_policy():
    async with Served() as served:
        response = await served.infer([[UNSURE, SURE]], parameters={"cascade_max_cost": 5})
        assert served.router.asked[0]["max_cost"] == 5
        assert response.json()["parameters"]["cascade_exit_reason"] == "budget"
        await served.infer([[SURE, 0]])
        assert served.router.asked[1]["max_cost"] == np.inf


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"priority": 5}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0.5}, "timeout"),
        ({"timeout": 10**15}, "timeout"),
        ({"cascade_max_cost": 0}, "cascade_max_cost"),
        ({"cascade_max_cost": "1"}, "cascade_max_cost"),
        ({"binary_data_output": 1}, "binary_data_output"),
        ({"nested": {}}, "nested"),
        ([], "parameters"),
    ],
)
async def test_parameters_out_of_range_are_refused(parameters, name):
    async with Served() as served:
        assert_problem(await served.infer([[SURE, 0]], parameters=parameters), 400, "bad_request", name)
        assert served.router.policy.counts.arrived == 0


async def test_a_deadline_that_passes_without_any_answer_is_an_error():
    async with Served(fake_stages(1, seconds=9.0), [config(timeout_floor_s=10.0)]) as served:
        response = await served.infer([[SURE]], parameters={"timeout": 150_000})
        assert_problem(response, 504, "deadline_exceeded")


async def test_time_that_passed_before_the_body_had_come_is_gone():
    async with Served() as served:
        response = await served.infer([[SURE, 0]], parameters={"timeout": 1})
        assert_problem(response, 504, "deadline_exceeded")
        assert served.stages[0].calls == []
        assert served.router.policy.counts.shed == 0


async def test_a_first_stage_that_fails_twice_is_an_error():
    async with Served([FakeStage(told(0), fail_first=2)]) as served:
        assert_problem(await served.infer([[SURE]]), 502, "stage_failed")
        assert (await served.infer([[SURE]])).status == 200


async def test_overload_sheds_with_a_time_to_come_back():
    stages = fake_stages(1, seconds=0.5)
    async with Served(stages, [config(slots=1, max_batch_size=1, a_s=0.5)]) as served:
        inside = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        refused = await served.infer([[SURE]])
        assert_problem(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await inside).status == 200
        assert len(stages[0].calls) == 1


async def test_a_client_that_goes_while_its_rows_wait_takes_them_along():
    async with Served(fake_stages(1, seconds=0.1), [config(slots=1, a_s=0.1)]) as served:
        staying = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        going = asyncio.ensure_future(served.infer([[SURE]]))
        await asyncio.sleep(0.01)
        going.cancel()
        assert (await staying).status == 200
        assert served.router.policy.counts.cancelled == 1
        assert len(served.stages[0].calls) == 1


async def test_a_client_that_goes_while_it_sends_is_not_answered():
    async with Served() as served:
        with pytest.raises(Disconnected):
            await served.client.request("POST", INFER, request([[SURE, 0]])[:10], leave=True)
        assert served.router.policy.counts.arrived == 0
        assert (await served.infer([[SURE, 0]])).status == 200


# -- bad messages ------------------------------------------------------------------------------------------------------


def tensor(**changes: Any) -> bytes:
    """A request whose input is wrong in one way; a member that is None is left out."""
    members = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}
    return json.dumps({"inputs": [{k: v for k, v in members.items() if v is not None}]}).encode()


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        (b"", ["JSON"]),
        (b"{", ["JSON"]),
        (b"\xff\xfe", ["JSON"]),
        (b"[]", ["object"]),
        (b"{}", ["inputs", "'x'"]),
        (b'{"inputs": []}', ["'x'", "missing"]),
        (b'{"inputs": "x"}', ["inputs", "'x'"]),
        (request([[1, 2]], id=7), ["id", "7"]),
        (request([[1, 2]], outputs=[{"name": "nope"}]), ["output", "'nope'", "'label'", "'probabilities'"]),
        (request([[1, 2]], outputs=[{"name": "label"}, {"name": "label"}]), ["output", "'label'", "twice"]),
        (tensor(name="y"), ["'y'", "'x'"]),
        (tensor(name=None), ["name"]),
        (tensor(datatype="INT64"), ["'x'", "FP32", "INT64"]),
        (tensor(datatype=None), ["'x'", "FP32", "null"]),
        (tensor(shape=[1, 3], data=[1, 2, 3]), ["'x'", "[rows, 2]", "[1, 3]"]),
        (tensor(shape=[2]), ["'x'", "[rows, 2]", "[2]"]),
        (tensor(shape=[1.0, 2]), ["'x'", "shape"]),
        (tensor(shape=[0, 2], data=[]), ["'x'", "1 to 1024", "got 0"]),
        (tensor(shape=[-1, 2], data=[]), ["'x'", "got -1"]),
        (tensor(shape=[1025, 2], data=[0] * 2050), ["'x'", "1 to 1024", "got 1025"]),
        (tensor(shape=[2, 2]), ["'x'", "4", "got 2"]),
        (tensor(data=[1]), ["'x'", "2 elements", "got 1"]),
        (tensor(data=[[1], [2]]), ["'x'", "1 rows", "got 2"]),
        (tensor(data=["a", "b"]), ["'x'", "numbers", "'a'"]),
        (tensor(data=[None, 1]), ["'x'", "null"]),
        (tensor(data=[True, 1]), ["'x'", "true"]),
        (tensor(data=[1e39, 1]), ["'x'", "row 0", "FP32"]),
        (tensor(data=[float("nan"), 1]), ["JSON"]),
        (tensor(data=None), ["'x'", "data"]),
        (tensor(parameters={"binary_data_size": 8}), ["'x'", "both"]),
        (tensor(data=None, parameters={"binary_data_size": 8}), ["'x'", "0 bytes", "8"]),
        (tensor(data=None, parameters={"shared_memory_region": "r"}), ["'x'", "shared_memory_region"]),
        (b"[" * 100_000, ["JSON"]),
    ],
)
async def test_a_bad_message_is_told_what_was_expected_and_what_came(body, mentions):
    async with Served() as served:
        assert_problem(await served.client.post(INFER, body), 400, "bad_request", *mentions)
        assert served.router.policy.counts.arrived == 0


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        ([(np.nan, 0.0)], ["'x'", "row 0", "finite"]),
        ([(0.0, 0.0), (0.0, np.inf)], ["'x'", "row 1", "finite"]),
    ],
)
async def test_numbers_that_are_not_finite_are_refused(values, mentions):
    body, headers = triton_body(x(*values))
    async with Served() as served:
        assert_problem(await served.client.post(INFER, body, **headers), 400, "bad_request", *mentions)


async def test_binary_data_must_be_as_long_as_the_shape_says():
    body, headers = triton_body(x((1.0, 2.0)))
    async with Served() as served:
        response = await served.client.post(INFER, body.replace(b'"shape":[1,2]', b'"shape":[2,2]'), **headers)
        assert_problem(response, 400, "bad_request", "'x'", "takes 16 bytes", "of 8")
        assert_problem(await served.client.post(INFER, body + b"!", **headers), 400, "bad_request", "1 bytes follow")
        short = await served.client.post(INFER, body[:-1], **headers)
        assert_problem(short, 400, "bad_request", "'x'", "binary_data_size")
        raw = await served.client.post(INFER, b"12345", inference_header_content_length="0")
        assert_problem(raw, 400, "bad_request", "'x'", "8 bytes", "got 5")


async def test_a_boolean_that_is_neither_is_refused():
    body, headers = triton_body(("x", "BOOL", np.array([[True, False]])))
    async with Served(fake_stages(1), inputs=[{"name": "x", "datatype": "BOOL", "shape": [2]}]) as served:
        response = await served.client.post(INFER, body[:-1] + b"\x02", **headers)
        assert_problem(response, 400, "bad_request", "'x'", "BOOL", "2")


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "100000", "99999999999999999999999999"])
async def test_a_header_that_frames_the_body_wrongly_is_refused(value):
    async with Served() as served:
        response = await served.client.post(INFER, request([[SURE, 0]]), inference_header_content_length=value)
        assert_problem(response, 400, "bad_request")


async def test_a_bad_encoding_is_refused():
    body = request([[SURE, 0]])
    async with Served() as served:
        assert_problem(await served.client.post(INFER, body, content_encoding="br"), 415, "unsupported_media_type", "br")
        assert_problem(await served.client.post(INFER, body, content_encoding="gzip"), 400, "bad_request", "gzip")
        cut = gzip.compress(body)[:-9]
        assert_problem(await served.client.post(INFER, cut, content_encoding="gzip"), 400, "bad_request", "cut short")


async def test_a_body_over_the_limit_is_refused_before_all_of_it_is_read():
    async with Served(limits={"max_body_bytes": 1024}) as served:
        announced = await served.client.post(INFER, b"", content_length="1025")
        assert_problem(announced, 413, "payload_too_large", "1024", "1025")

        unread = iter([b" " * 600] * 9)
        streamed = await served.client.post(INFER, unread)
        assert_problem(streamed, 413, "payload_too_large", "1024")
        assert len(list(unread)) == 7
        bomb = await served.client.post(INFER, gzip.compress(b" " * 10_000), content_encoding="gzip")
        assert_problem(bomb, 413, "payload_too_large", "1024")
        exact = request([[SURE, 0]]).ljust(1024)
        assert (await served.client.post(INFER, exact, content_length="1024")).status == 200


async def test_more_rows_than_allowed_are_refused():
    async with Served(limits={"max_rows": 2}) as served:
        assert (await served.infer([[SURE, 0]] * 2)).status == 200
        assert_problem(await served.infer([[SURE, 0]] * 3), 400, "bad_request", "'x'", "1 to 2", "got 3")


async def test_a_bad_message_does_its_batch_mates_no_harm():
    async with Served() as served:
        good, bad, also_good = await asyncio.gather(
            served.infer([[SURE, 0]]), served.infer([[SURE, 0, 0]]), served.infer([[-SURE, 0]])
        )
        assert_problem(bad, 400, "bad_request")
        assert [r.json()["outputs"][0]["data"] for r in (good, also_good)] == [[1], [0]]
        assert [len(call["x"]) for call in served.stages[0].calls] == [2]


async def test_an_error_carries_the_id_of_its_request():
    async with Served() as served:
        response = await served.client.post(INFER, b"{", x_request_id="r 1")
        assert response.json()["instance"] == "urn:request:r%201"
        assert "instance" not in (await served.client.post(INFER, b"{")).json()


async def test_an_unexpected_error_tells_the_client_nothing_and_the_log_everything(caplog):
    class Broken(Router):
        async def answer(self, inputs, rows, **facts):
            raise RuntimeError("the secret of line 7")

    async with Served(kind=Broken) as served:
        response = await served.infer([[SURE, 0]])
        assert_problem(response, 500, "internal")
        assert b"secret" not in response.body
        assert response.body == (await served.infer([[UNSURE, 0]])).body
    assert "the secret of line 7" in caplog.text


# -- statistics --------------------------------------------------------------------------------------------------------


async def test_statistics_count_rows_and_batches():
    async with Served(fake_stages(2, seconds=0.0625)) as served:

        async def entries() -> dict[str, Any]:
            document = (await served.client.get("/v2/models/fake/stats")).json()
            assert (await served.client.get("/v2/models/stats")).json() == document
            return {entry["name"]: entry for entry in document["model_stats"]}

        before = await entries()
        assert list(before) == ["fake", "fake.s0", "fake.s1"]
        assert {(e["inference_count"], e["execution_count"], e["last_inference"]) for e in before.values()} == {(0, 0, 0)}
        await served.infer([[SURE, 0], [SURE, 0], [UNSURE, SURE]])
        await served.infer([[SURE, 0]])
        await served.infer([[SURE]])
        after = await entries()
        assert after["fake"]["inference_count"] == 4
        assert after["fake"]["inference_stats"]["success"]["count"] == 2
        assert after["fake"]["inference_stats"]["fail"]["count"] == 1
        assert after["fake"]["last_inference"] > 1_600_000_000_000
        counted = {name: (entry["inference_count"], entry["execution_count"]) for name, entry in after.items()}
        assert (counted["fake.s0"], counted["fake.s1"]) == ((4, 2), (1, 1))
        assert after["fake.s0"]["inference_stats"]["compute_infer"] == {"count": 2, "ns": 125_000_000}
        assert after["fake.s1"]["inference_stats"]["compute_infer"] == {"count": 1, "ns": 62_500_000}


# -- anything at all ---------------------------------------------------------------------------------------------------

anything = settings(deadline=None, max_examples=300)
segments = st.sampled_from(
    ["v2", "models", "fake", "infer", "versions", "7", "stats", "config", "ready", "health", "live", "", "%66ake", "%", "ü"]
)
paths = st.one_of(
    st.just(INFER),
    st.lists(segments, max_size=7).map(lambda parts: "/" + "/".join(parts)),
    st.text(max_size=20).map(lambda text: "/" + text),
)
header_names = st.sampled_from(
    b"inference-header-content-length content-length content-encoding accept-encoding prefer priority traceparent "
    b"x-request-id x-request-timeout-seconds x-envoy-expected-rq-timeout-ms grpc-timeout x-stainless-read-timeout "
    b"content-type".split()
)
header_values = st.one_of(
    st.binary(max_size=12),
    st.integers(-5, 400).map(lambda number: b"%d" % number),
    st.sampled_from([b"gzip", b"deflate", b"identity", b"1e9", b"nan", b"u=1", b"wait=1", b"9S"]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    """A good request with some of its members replaced, and perhaps cut or followed by something."""
    parameters = {"timeout": 1_000_000, "priority": 1, "binary_data_output": True, "cascade_max_cost": 100}
    entry: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], "parameters": {}}
    message: dict[str, Any] = {"id": "1", "inputs": [entry], "outputs": [{"name": "label"}], "parameters": parameters}
    for part in (message, entry, parameters):
        for member in draw(st.lists(st.sampled_from(sorted(part)), max_size=1)):
            part[member] = draw(json_values)
    body = json.dumps(message).encode()
    return body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body + draw(st.binary(max_size=8))


@anything
@given(
    method=st.sampled_from(["GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS"]),
    path=paths,
    headers=st.lists(st.tuples(header_names, header_values), max_size=4),
    body=st.one_of(st.binary(max_size=60), nearly_requests()),
)
async def test_no_request_whatever_brings_the_server_to_an_internal_error(method, path, headers, body):
    async with Served() as served:
        response = await served.client.request(method, path, body, headers)
        assert response.status in {200, 400, 404, 405, 413, 415, 503, 504}
        if response.status != 200 and method != "HEAD":
            assert response.headers["content-type"] == "application/problem+json"
            assert isinstance(response.json()["error"], str)
        assert served.router.policy.counts.live == 0
        assert (await served.infer([[SURE, 0]])).status == 200


@anything
@given(body=st.one_of(st.binary(max_size=200), nearly_requests()), length=st.none() | st.integers(0, 220))
async def test_any_bytes_to_the_inference_route_are_answered_or_refused_as_bad(body, length):
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    async with Served(**PATIENT) as served:
        response = await served.client.post(INFER, body, **headers)
        if response.status != 200:
            assert response.status in {400, 503, 504}
            assert isinstance(response.json()["error"], str)


def test_the_log_of_the_ingress_is_quiet_about_bad_messages(caplog):
    caplog.set_level(logging.INFO)
    asyncio.run(Client(Served().app).post("/nothing", b"\xff"))
    assert caplog.records == []


async def test_what_requests_need_outlives_the_doors():
    order = []

    class Opened:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        async def open(self) -> None:
            order.append(f"open {self.name}")

        async def close(self) -> None:
            await asyncio.sleep(self.seconds)
            order.append(f"close {self.name}")

    served = Served()
    served.app.beside.append(Opened("stay", 0.0))
    served.app.listeners += [Opened("slow door", 2.0), Opened("door", 1.0)]
    async with served:
        pass
    assert order == ["open stay", "open slow door", "open door", "close door", "close slow door", "close stay"]
