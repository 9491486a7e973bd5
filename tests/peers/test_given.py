"""What each kind of system answers, read the same way."""

import numpy as np
import orjson
import pytest

from benchmarks.measure import Given, accuracy, given
from cascade.wire.oip import encode_response
from cascade.wire.tensors import Datatype, TensorSpec

STAGES = ["linear", "tiny"]
LABEL = TensorSpec("label", Datatype.INT64, ())


def message(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    lines = [b"HTTP/1.1 %d Whatever" % status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def protocol(labels: list[int], stage: str) -> bytes:
    outputs = [(LABEL, np.array(labels, np.int64), True)]
    body, length = encode_response("fashion", "1", outputs, parameters={"cascade_stage": stage})
    return message(body, b"inference-header-content-length: %d" % length)


@pytest.mark.parametrize(
    "raw",
    [
        protocol([7], "tiny"),
        message(b'{"label": 7, "stage": 1}'),
        message(b'[{"label": 7, "stage": 1}]'),
    ],
    ids=["protocol", "object", "list"],
)
def test_the_same_answer_is_the_same_in_every_form(raw: bytes) -> None:
    assert given(raw, STAGES) == Given((7,), "tiny")


def test_an_answer_to_many_rows_holds_all_their_labels() -> None:
    assert given(protocol([3, 1, 2], "linear"), STAGES) == Given((3, 1, 2), "linear")


def test_a_refusal_is_no_answer() -> None:
    assert given(message(orjson.dumps({"label": 7, "stage": 1}), status=503), STAGES) is None


def test_a_row_without_an_answer_is_not_right() -> None:
    found = [Given((1,), "linear"), None, Given((2,), "tiny")]
    assert accuracy(found, np.array([1, 1, 1])) == pytest.approx(1 / 3)
