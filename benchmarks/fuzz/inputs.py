"""What is sent: valid requests, requests that are wrong in one way or many, and bytes that are no request at all.

Each input follows from a seed and its number alone, so that one that finds something can be sent again.
"""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import orjson

from cascade.models.stage import Arrays, StageResult
from cascade.wire.client import encode_request
from cascade.wire.oip_messages import ModelInferRequest
from cascade.wire.tensors import Array, Datatype, TensorSpec

MODEL = "fuzz"
INPUTS = (
    TensorSpec("number", Datatype.FP32, (2,)),
    TensorSpec("byte", Datatype.UINT8, (3, 2)),
    TensorSpec("long", Datatype.INT64, ()),
    TensorSpec("flag", Datatype.BOOL, (1,)),
    TensorSpec("half", Datatype.FP16, (2,)),
    TensorSpec("word", Datatype.BYTES, (1,), text=True),
)
INFER = f"/v2/models/{MODEL}/infer"
PATHS = (
    "/",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/stats",
    "/v2/repository/index",
    f"/v2/models/{MODEL}",
    f"/v2/models/{MODEL}/ready",
    f"/v2/models/{MODEL}/config",
    f"/v2/models/{MODEL}/stats",
    f"/v2/models/{MODEL}/infer_stream",
    f"/v2/models/{MODEL}/versions/1/infer",
    INFER,
)
FIELDS = (
    *("content-length", "inference-header-content-length", "content-encoding", "content-type", "transfer-encoding"),
    *("accept", "accept-encoding", "prefer", "priority", "x-request-id", "traceparent", "cascade-tenant", "expect"),
    *("x-request-timeout-seconds", "x-envoy-expected-rq-timeout-ms", "grpc-timeout", "authorization", "x-api-key"),
    *("connection", "host", "upgrade"),
)
VALUES = (
    "0",
    "-1",
    "1",
    "1e309",
    "nan",
    "inf",
    "18446744073709551616",
    "9" * 400,
    "gzip",
    "deflate",
    "br",
    "chunked",
    "100-continue",
    "close",
    "keep-alive",
    "u=0, i",
    "u=9;x",
    "wait=5",
    "text/event-stream",
    "*/*;q=0",
    "application/json",
    "1u",
    "99999999H",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    "Bearer csk_" + "a" * 43,
    "websocket",
    "\u00e9\u00ff",
    "a" * 3000,
    "",
    ",",
    ";;;=",
)


@dataclass(frozen=True)
class Sent:
    """One input.

    Attributes:
        kind: how it was made.
        content: all bytes of it; over gRPC the message.
        rpc: name of the gRPC method; empty over HTTP.
        metadata: of the call.
    """

    kind: str
    content: bytes
    rpc: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


def make(seed: int, number: int) -> Sent:
    """The input of this number."""
    random = Random(f"{seed} {number}")
    kind = random.choices([kind for kind, _, _ in KINDS], [weight for _, weight, _ in KINDS])[0]
    return next(maker for name, _, maker in KINDS if name == kind)(random)


# -- values --------------------------------------------------------------------------------------------------------------


def rows_of(random: Random) -> list[tuple[TensorSpec, Array]]:
    """A message's inputs as they should be, with numbers of all kinds."""
    rows = random.choice([1, 1, 1, 2, 5])
    state = np.random.default_rng(random.getrandbits(32))
    found: list[tuple[TensorSpec, Array]] = []
    for spec in INPUTS:
        shape = (rows, *spec.shape)
        if spec.datatype is Datatype.BYTES:
            words = [random.choice(["", "word", "\u00fcber", "x" * 50, "\0"]).encode() for _ in range(rows)]
            found.append((spec, np.array(words, object).reshape(shape)))
        elif np.issubdtype(spec.dtype, np.floating):
            array = state.normal(size=shape).astype(spec.dtype)
            if random.random() < 0.2:
                array.ravel()[random.randrange(array.size)] = random.choice([np.nan, np.inf, -np.inf, 0, 13])
            found.append((spec, array))
        else:
            found.append((spec, state.integers(0, 2, shape).astype(spec.dtype)))
    return found


def parameters_of(random: Random) -> dict[str, Any]:
    """Parameters that mean something, often with values that do not."""
    names = ["timeout", "priority", "cascade_max_cost", "cascade_min_confidence", "cascade_tenant", "x"]
    return {random.choice(names): value_of(random, 1) for _ in range(random.choice([0, 0, 1, 2]))}


def value_of(random: Random, depth: int = 3) -> Any:
    """Any JSON value."""
    match random.randrange(10 if depth else 8):
        case 0:
            return None
        case 1:
            return random.random() < 0.5
        case 2:
            return random.choice([0, -1, 1, 2**31, 2**53, -(2**63), 2**63 - 1])
        case 3:
            return random.choice([0.0, -0.5, 1e308, 1e-320, 0.1])
        case 4 | 5:
            return random.choice(["", "FP32", "number", "BYTES", "a" * 100, "\u00e9", "\U0001f600", "1", "true"])
        case 6 | 7:
            return random.choice([[], {}, [[]], [None]])
        case 8:
            return [value_of(random, depth - 1) for _ in range(random.randrange(4))]
        case _:
            return {random.choice(["name", "shape", "data", "datatype", "x"]): value_of(random, depth - 1) for _ in range(3)}


def json_of(random: Random) -> dict[str, Any]:
    """A valid message in JSON."""
    inputs = []
    for spec, array in rows_of(random):
        finite = array if spec.datatype is Datatype.BYTES else np.nan_to_num(array.astype(np.float64), posinf=9, neginf=9)
        if spec.datatype in (Datatype.BYTES, Datatype.BOOL):
            data = [item.decode() if isinstance(item, bytes) else bool(item) for item in array.ravel().tolist()]
        else:
            data = finite.astype(spec.dtype).ravel().tolist()
        inputs.append({"name": spec.name, "shape": list(array.shape), "datatype": spec.datatype.value, "data": data})
    return {"id": "a", "inputs": inputs, "parameters": parameters_of(random)}


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places_in(item, (*path, key))
    return found


def changed(random: Random, message: Any) -> Any:
    """A JSON value with one place taken out, or another value there."""
    path = random.choice(places_in(message)[1:])
    inside = message
    for step in path[:-1]:
        inside = inside[step]
    if random.random() < 0.3:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value_of(random)
    return message


def broken(random: Random, content: bytes) -> bytes:
    """Bytes with some of them changed, taken out, doubled or put in."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5])):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del data[at : at + random.choice([1, 4, 50])]
            case 2:
                data[at:at] = random.randbytes(random.choice([1, 4, 50]))
            case 3:
                data[at:at] = data[at : at + random.choice([1, 8, 100])]
            case 4:
                del data[at:]
            case _:
                if at < len(data):
                    data[at] ^= 1 << random.randrange(8)
    return bytes(data)


# -- HTTP -----------------------------------------------------------------------------------------------------------------


def request(path: str, body: bytes, headers: dict[str, str], method: str = "POST", *, length: bool = True) -> bytes:
    """The bytes of a request, after which the connection is closed."""
    fields = {"host": "fuzz", "connection": "close", **({"content-length": str(len(body))} if length else {}), **headers}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode("latin-1", "replace") + b"\r\n" + body


def _binary(random: Random) -> tuple[bytes, dict[str, str]]:
    return encode_request(rows_of(random), parameters=parameters_of(random))


def _valid(random: Random) -> Sent:
    stream = random.random() < 0.2
    path = f"/v2/models/{MODEL}/infer_stream" if stream else INFER
    if stream or random.random() < 0.5:
        return Sent("valid", request(path, orjson.dumps(json_of(random)), {}))
    return Sent("valid", request(path, *_binary(random)))


def _json(random: Random) -> Sent:
    message = json_of(random)
    for _ in range(random.choice([1, 1, 2, 4])):
        message = changed(random, message)
        if not message:
            break
    return Sent("json", request(INFER, orjson.dumps(message), {}))


def _bytes(random: Random) -> Sent:
    body, headers = _binary(random) if random.random() < 0.5 else (orjson.dumps(json_of(random)), {})
    return Sent("body bytes", request(INFER, broken(random, body), headers))


def _headers(random: Random) -> Sent:
    body, headers = _binary(random)
    for _ in range(random.choice([1, 2, 4])):
        headers[random.choice(FIELDS)] = random.choice(VALUES)
    return Sent("headers", request(INFER, body, headers))


def _encoded(random: Random) -> Sent:
    body, headers = _binary(random)
    encode: Callable[[bytes], bytes] = random.choice([gzip.compress, zlib.compress])
    if random.random() < 0.3:
        body = bytes(random.choice([1, 100, 4 << 20]))  # the last is over the limit once it is inflated
    body = encode(body)
    if random.random() < 0.5:
        body = broken(random, body)
    headers["content-encoding"] = random.choice(["gzip", "deflate", "x-gzip", "gzip, gzip"])
    return Sent("encoded", request(INFER, body, headers))


def _chunked(random: Random) -> Sent:
    body, headers = _binary(random)
    parts = [body[at : at + 100] for at in range(0, len(body), 100)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    if random.random() < 0.6:
        framed = broken(random, framed)
    return Sent("chunked", request(INFER, framed, {**headers, "transfer-encoding": "chunked"}, length=False))


def _routes(random: Random) -> Sent:
    path = random.choice(PATHS)
    if random.random() < 0.5:
        path = broken(random, path.encode()).decode("latin-1").replace("\r", "").replace("\n", "").replace(" ", "%20")
    method = random.choice(["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "PRI", "get", "X" * 40])
    return Sent("routes", request(path, b"" if random.random() < 0.7 else b"{}", {}, method))


def _raw(random: Random) -> Sent:
    if random.random() < 0.3:
        return Sent("raw bytes", random.randbytes(random.choice([1, 20, 500])))
    body, headers = _binary(random)
    return Sent("raw bytes", broken(random, request(INFER, body, headers)))


def _pipelined(random: Random) -> Sent:
    contents = [make_http(random).content.replace(b"connection: close\r\n", b"") for _ in range(random.choice([2, 3]))]
    return Sent("pipelined", b"".join(contents) + request("/v2", b"", {}, "GET"))


def make_http(random: Random) -> Sent:
    """One request that is not itself several."""
    return random.choice([_valid, _json, _bytes, _headers, _routes])(random)


# -- gRPC -----------------------------------------------------------------------------------------------------------------


def _message(random: Random) -> bytes:
    message = ModelInferRequest(model_name=MODEL, id="a")
    for spec, array in rows_of(random):
        message.inputs.add(name=spec.name, datatype=spec.datatype.value, shape=array.shape)
        if spec.datatype is Datatype.BYTES:
            content = b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel().tolist())
        else:
            content = array.tobytes()
        message.raw_input_contents.append(content)
    content: bytes = message.SerializeToString()
    return content


def _grpc(random: Random) -> Sent:
    content = _message(random)
    if random.random() < 0.8:
        content = broken(random, content)
    names = ["priority", "cascade-tenant", "x-request-timeout-seconds", "x-request-id", "authorization", "x-api-key"]
    values = [value for value in VALUES if value.isascii() and value.isprintable()]
    metadata = tuple((random.choice(names), random.choice(values)) for _ in range(random.choice([0, 0, 1, 3])))
    rpc = random.choices(
        ["ModelInfer", "ModelStreamInfer", "ModelMetadata", "ModelReady", "ServerMetadata"], [8, 3, 1, 1, 1]
    )[0]
    return Sent("gRPC", content, rpc, metadata)


KINDS: tuple[tuple[str, int, Callable[[Random], Sent]], ...] = (
    ("valid", 10, _valid),
    ("json", 25, _json),
    ("body bytes", 20, _bytes),
    ("headers", 15, _headers),
    ("encoded", 5, _encoded),
    ("chunked", 5, _chunked),
    ("routes", 10, _routes),
    ("raw bytes", 10, _raw),
    ("pipelined", 5, _pipelined),
    ("gRPC", 20, _grpc),
)
"""Name, weight and maker of every kind."""


class Instant:
    """A stage that answers any rows at once: the bytes on the way are what is tried. It keeps nothing."""

    async def run(self, inputs: Arrays) -> StageResult:
        """Logits that follow from one of the inputs; rows whose number is 13 cannot be judged."""
        number = np.asarray(inputs["number"], np.float32)
        logits = np.stack([number[:, 0], -number[:, 0]], axis=1)
        logits[number[:, 0] == 13.0] = np.nan
        return StageResult(logits, 0.0)
