import json
import math

import numpy as np
import pytest

from cascade.errors import ConfigError
from cascade.wire.oip import Limits, Signature, decode_request, encode_response
from cascade.wire.tensors import Datatype, TensorSpec
from loadtests.client_side import NO_ANSWER, Sheet, read_answer
from loadtests.scenarios import Asker
from tests.loadtests.load_cases import ROWS, SPEC, write_ladder

STAGES = ("small", "large")
LABEL = TensorSpec("label", Datatype.INT64, ())
PARAMETERS = {"cascade_stage": "large", "cascade_exit_reason": "last_stage", "cascade_degraded": True, "cascade_cost": 11.0}


def answer(parameters=PARAMETERS, *, binary=True, labels=(2,)):
    outputs = [(LABEL, np.array(labels, dtype=np.int64), binary)] if labels else []
    body, length = encode_response("fake", "1", outputs, parameters=parameters)
    return {} if length is None else {"inference-header-content-length": str(length)}, body


@pytest.fixture
def sheet(tmp_path) -> Sheet:
    return Sheet.read(write_ladder(tmp_path / "ladder"))


def test_the_sheet_is_what_the_spec_and_the_rows_say(sheet):
    assert (sheet.model, sheet.stages, sheet.deadline_s, sheet.priority) == ("fake", STAGES, 0.8, 3)
    assert sheet.path == "/v2/models/fake/infer"
    assert sheet.labels.tolist() == [row % 3 for row in range(ROWS)]


@pytest.mark.parametrize(
    ("asker", "expected"),
    [
        (Asker(), {}),
        (Asker(priority=2), {"priority": 2}),
        (Asker(tenant="polite"), {"cascade_tenant": "polite"}),
        (Asker(deadline_s=0.25), {"timeout": 250_000}),
    ],
)
def test_a_question_asks_for_the_label_of_one_row_and_says_who_asks(sheet, asker, expected):
    body, headers = sheet.encode(7, asker)
    length = int(headers["inference-header-content-length"])
    signature = Signature("fake", "1", (TensorSpec("x", Datatype.FP32, (1,)),), (LABEL,))
    request = decode_request(body, length, signature, Limits(max_rows=1, priorities=4))
    assert request.inputs["x"].tolist() == [[7.0]]
    assert [output.spec.name for output in request.outputs] == ["label"]
    parameters = json.loads(body[:length])["parameters"]
    assert {name: value for name, value in parameters.items() if name != "binary_data_output"} == expected


def test_text_rows_are_sent_as_bytes(tmp_path):
    spec = write_ladder(tmp_path / "ladder")
    spec.write_text(SPEC.replace("FP32, shape: [1]", "BYTES, shape: []"))
    np.savez(spec.parent / "data" / "test.npz", x=np.array(["so", "schön"]), labels=np.array([0, 1]))
    body, headers = Sheet.read(spec).encode(1, Asker())
    assert body[int(headers["inference-header-content-length"]) :] == b"\x06\0\0\0" + "schön".encode()


@pytest.mark.parametrize("binary", [True, False])
def test_an_answer_is_read(binary):
    headers, body = answer({**PARAMETERS, "cascade_price": 0.25}, binary=binary)
    reading = read_answer(200, headers, body, STAGES)
    assert reading == (200, 1, "last_stage", True, 0.25, 11.0, 2, "")


def test_a_server_without_prices_tells_none():
    reading = read_answer(200, *answer({name: PARAMETERS[name] for name in list(PARAMETERS)[:3]}), STAGES)
    assert (reading.status, reading.label) == (200, 2)
    assert math.isnan(reading.price)
    assert math.isnan(reading.cost)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        answer(labels=()),
        answer(labels=(1, 2)),
        answer({**PARAMETERS, "cascade_stage": "huge"}),
        answer({"cascade_stage": "large"}),
        ({}, b""),
        ({}, b"<html>"),
        ({}, b"[]"),
        ({}, b'{"outputs": 3}'),
        ({}, b'{"outputs": [{"name": "label"}]}'),
        ({"inference-header-content-length": "x"}, b"{}"),
        (answer()[0], answer()[1][:-1]),
        (None, None),
    ],
)
def test_an_answer_that_cannot_be_read_is_none_and_says_why(headers, body):
    reading = read_answer(200, headers, body, STAGES)
    assert (reading.status, reading.stage, reading.label) == (NO_ANSWER, -1, -1)
    assert reading.fault.startswith("an answer that cannot be read: ")


@pytest.mark.parametrize(("status", "fault"), [(503, "status 503"), (504, "status 504"), (0, "no answer")])
def test_a_refusal_keeps_its_status(status, fault):
    reading = read_answer(status, {}, b"{}", STAGES)
    assert (reading.status, reading.stage, reading.fault) == (status, -1, fault)


def test_other_rows_than_the_specs_may_be_asked_about(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.zeros((2, 1), dtype=np.float32), labels=np.array([2, 1]))
    assert Sheet.read(write_ladder(tmp_path / "ladder"), tmp_path / "few.npz").labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 1))},
        {"labels": np.zeros(2)},
        {"x": np.zeros((2, 3)), "labels": np.zeros(2)},
        {"x": np.zeros((3, 1)), "labels": np.zeros(2)},
        {"x": np.zeros((0, 1)), "labels": np.zeros(0)},
    ],
    ids=["no labels", "no input", "another shape", "other counts", "no rows"],
)
def test_rows_that_do_not_fit_the_spec_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(ConfigError, match=r"rows\.npz"):
        Sheet.read(write_ladder(tmp_path / "ladder"), tmp_path / "rows.npz")
