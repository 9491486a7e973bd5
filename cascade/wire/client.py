"""The client's half of the protocol: encode an inference request, decode its answer. For the demo, load tests, benchmarks.

Anyone else uses tritonclient or kserve; this exists because a load generator must spend as little as it can per request.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from cascade.wire.tensor_binary import to_binary
from cascade.wire.tensors import DTYPES, Array, Datatype, TensorSpec


class InferAnswer(NamedTuple):
    """A decoded answer.

    Attributes:
        parameters: what the answer says about itself.
        outputs: arrays by name; BYTES are left out.
    """

    parameters: Mapping[str, Any]
    outputs: dict[str, Array]


def encode_request(
    inputs: Sequence[tuple[TensorSpec, Array]],
    *,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, str | float | bool] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Encode a request with binary inputs that asks for binary outputs.

    Args:
        inputs: declaration and array [rows, *row] of each input.
        outputs: names of the outputs wanted; all if empty.
        parameters: further request parameters, such as ``timeout`` in microseconds or ``priority``.

    Returns:
        The body, and the headers that frame it.
    """
    chunks = [to_binary(spec, array) for spec, array in inputs]
    message: dict[str, Any] = {
        "inputs": [
            {
                "name": spec.name,
                "shape": array.shape,
                "datatype": spec.datatype,
                "parameters": {"binary_data_size": len(chunk)},
            }
            for (spec, array), chunk in zip(inputs, chunks, strict=True)
        ],
        "parameters": {"binary_data_output": True, **(parameters or {})},
    }
    if outputs:
        message["outputs"] = [{"name": name} for name in outputs]
    text = orjson.dumps(message)
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return b"".join([text, *chunks]), headers


def decode_answer(body: bytes, json_length: str | None) -> InferAnswer:
    """Decode an answer of this project's server.

    Args:
        body: the body of a 200.
        json_length: the header ``Inference-Header-Content-Length``, None if there is none.
    """
    end = len(body) if json_length is None else int(json_length)
    message = orjson.loads(body[:end])
    outputs: dict[str, Array] = {}
    for tensor in message["outputs"]:
        datatype = Datatype(tensor["datatype"])
        if datatype is Datatype.BYTES:
            continue
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(tensor["data"], dtype=DTYPES[datatype])
        else:
            flat = np.frombuffer(body, dtype=DTYPES[datatype], count=size // DTYPES[datatype].itemsize, offset=end)
            end += size
        outputs[tensor["name"]] = flat.reshape(tensor["shape"])
    return InferAnswer(message.get("parameters", {}), outputs)
