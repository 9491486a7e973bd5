"""Inference messages of the Open Inference Protocol v2, JSON and binary tensors: bytes to values and back.

Knows a model's signature and nothing else: no stages, no HTTP, no time. A request either decodes into arrays that fit the
signature or raises BadRequest; an answer needs one JSON encoding and one copy of each binary tensor.

Unknown members are ignored and null stands for an absent one, because clients generated from the protocol's schema send
both. Parameters that would change the answer in ways this server cannot are refused rather than ignored.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from cascade.errors import BadRequest, SpecError
from cascade.wire.parameters import Parameter, Wishes, flag, read_wishes, refuse_unsupported
from cascade.wire.tensor_binary import from_binary, from_raw, to_binary
from cascade.wire.tensor_json import from_json, to_json
from cascade.wire.tensors import (
    Array,
    Buffer,
    TensorSpec,
    all_inputs,
    brief,
    declared,
    names,
    require_finite,
    require_text,
    rows_of_input,
)

_PARAMETER_TYPES: Final = frozenset({str, int, float, bool})


class RequestedOutput(NamedTuple):
    """An output that the client wants, and whether as binary data."""

    spec: TensorSpec
    binary: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        name: the model's name on the wire.
        version: its version on the wire.
        inputs: declared inputs, in the order in which the model takes them.
        outputs: declared outputs, in the order in which an answer lists them.
        input_specs: inputs by name (derived).
        output_specs: outputs by name (derived).
        all_binary: every output, as binary data (derived).
        all_json: every output, in JSON (derived).

    Raises:
        SpecError: no inputs, no outputs, or a name given twice.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_specs: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    output_specs: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)
    all_binary: tuple[RequestedOutput, ...] = field(init=False, repr=False, compare=False)
    all_json: tuple[RequestedOutput, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        derive = object.__setattr__
        for role in ("inputs", "outputs"):
            specs = tuple(getattr(self, role))
            by_name = {spec.name: spec for spec in specs}
            if not specs:
                raise SpecError(f"model {self.name!r}: {role} must declare at least one tensor, got none")
            if len(by_name) != len(specs):
                raise SpecError(f"model {self.name!r}: {role} must have different names, got {[s.name for s in specs]}")
            derive(self, role, specs)
            derive(self, role[:-1] + "_specs", by_name)
        derive(self, "all_binary", tuple(RequestedOutput(spec, True) for spec in self.outputs))
        derive(self, "all_json", tuple(RequestedOutput(spec, False) for spec in self.outputs))


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a request may go.

    Attributes:
        max_rows: most rows in one request.
        priorities: number of classes; a client may ask for 1 (most important) up to this.
        max_timeout_s: longest time limit that is taken for meant, seconds.
        require_finite: whether NaN and infinities in inputs are refused.
    """

    max_rows: int = 1024
    priorities: int = 4
    max_timeout_s: int = 86_400
    require_finite: bool = True


_DEFAULT_LIMITS: Final = Limits()


class InferRequest(NamedTuple):
    """A decoded request, every value checked.

    Attributes:
        id: the client's id, to be given back; None if it sent none.
        parameters: the request's parameters as they came.
        inputs: arrays of shape ``[rows, *row]`` by input name, in the signature's order; they may be views on the body.
        outputs: what to answer with, in the client's order.
        rows: number of rows.
        timeout_s: the parameter ``timeout`` in seconds; None if absent or 0, which mean the default.
        priority: the parameter ``priority``, 1 to ``Limits.priorities``; None if absent or 0.
        max_cost: the parameter ``cascade_max_cost``, most that each of its rows may spend; None if absent.
        tenant: the parameter ``cascade_tenant``, for whom this is; None if absent.
        min_confidence: the parameter ``cascade_min_confidence``, probability of being right with which each of its rows is
            content; None if absent.
        explain: the parameter ``cascade_explain``, whether to say why it is answered as it is.
    """

    id: str | None
    parameters: Mapping[str, Parameter]
    inputs: dict[str, Array]
    outputs: tuple[RequestedOutput, ...]
    rows: int
    timeout_s: float | None
    priority: int | None
    max_cost: float | None
    tenant: str | None
    min_confidence: float | None
    explain: bool = False


def decode_request(
    body: Buffer, json_length: int | None, signature: Signature, limits: Limits = _DEFAULT_LIMITS
) -> InferRequest:
    """Decodes an inference request.

    Args:
        body: the whole message, inflated.
        json_length: length of the JSON part in bytes; None if all of the body is JSON; 0 if all of it is the one row of
            the model's only input, to be answered with every output as binary data.
        signature: what the model takes and gives.
        limits: how far a request may go.

    Returns:
        The request, its arrays views on ``body`` where they came as binary data.

    Raises:
        BadRequest: anything wrong with the message; the detail names the member, what was expected and what came.
    """
    if json_length == 0:
        return _decode_raw(body, signature, limits)
    size = len(body)
    if json_length is None:
        text, end = body, size
    elif 0 < json_length <= size:
        text, end = body[:json_length], json_length
    else:
        raise BadRequest(f"the JSON length must lie within the body of {size} bytes, got {json_length}")
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the JSON part of the request ({end} bytes) cannot be read: {error}") from None
    if type(message) is not dict:
        raise BadRequest(f"the request must be a JSON object, got {brief(message)}")
    request_id = message.get("id")
    if request_id is not None and type(request_id) is not str:
        raise BadRequest(f"id must be a string, got {brief(request_id)}")
    parameters = message.get("parameters")
    parameters = {} if parameters is None else _checked_parameters(parameters, "parameters")
    inputs, rows = _decode_inputs(message.get("inputs"), body, end, signature, limits)
    return InferRequest(
        request_id,
        parameters,
        inputs,
        _decode_outputs(message.get("outputs"), parameters, signature),
        rows,
        *read_wishes(parameters, limits.priorities, limits.max_timeout_s),
    )


def _decode_raw(body: Buffer, signature: Signature, limits: Limits) -> InferRequest:
    if len(signature.inputs) != 1:
        raise BadRequest(
            f"a raw body (JSON length 0) needs a model with one input, {signature.name!r} has {len(signature.inputs)}: "
            f"{names(signature.input_specs)}"
        )
    spec = signature.inputs[0]
    array = from_raw(spec, body)
    if limits.require_finite:
        require_finite(spec, array)
    require_text(spec, array)
    return InferRequest(None, {}, {spec.name: array}, signature.all_binary, 1, *Wishes())


def _decode_inputs(
    tensors: object, body: Buffer, offset: int, signature: Signature, limits: Limits
) -> tuple[dict[str, Array], int]:
    if type(tensors) is not list:
        raise BadRequest(f"inputs must be a list of tensors, {names(signature.input_specs)}, got {brief(tensors)}")
    arrays: dict[str, Array] = {}
    rows = 0
    for tensor in tensors:
        spec, parameters = _declared(tensor, "input", signature.input_specs, arrays)
        shape = tensor.get("shape")
        rows = rows_of_input(spec, tensor.get("datatype"), shape, limits.max_rows, rows)
        data = tensor.get("data")
        binary_size = parameters.get("binary_data_size")
        if binary_size is None:
            if data is None:
                raise BadRequest(f"input {spec.name!r}: give data or the parameter binary_data_size, got neither")
            array = from_json(spec, shape, data)
        else:
            if data is not None:
                raise BadRequest(f"input {spec.name!r}: give data or the parameter binary_data_size, got both")
            if type(binary_size) is not int or not 0 <= binary_size <= len(body) - offset:
                raise BadRequest(
                    f"input {spec.name!r}: binary_data_size must be an integer from 0 to the {len(body) - offset} bytes "
                    f"that follow, got {brief(binary_size)}"
                )
            array = from_binary(spec, shape, body, offset, binary_size)
            offset += binary_size
            if spec.is_float and limits.require_finite:
                require_finite(spec, array)
            require_text(spec, array)
        arrays[spec.name] = array
    arrays = all_inputs(arrays, signature.input_specs)
    if offset != len(body):
        raise BadRequest(f"{len(body) - offset} bytes follow the JSON part and belong to no input")
    return arrays, rows


def _decode_outputs(
    tensors: object, parameters: Mapping[str, Parameter], signature: Signature
) -> tuple[RequestedOutput, ...]:
    binary = flag(parameters, "binary_data_output", "parameters", False)
    if tensors is None or tensors == []:
        return signature.all_binary if binary else signature.all_json
    if type(tensors) is not list:
        raise BadRequest(f"outputs must be a list of tensors, {names(signature.output_specs)}, got {brief(tensors)}")
    requested: dict[str, RequestedOutput] = {}
    for tensor in tensors:
        spec, given = _declared(tensor, "output", signature.output_specs, requested)
        requested[spec.name] = RequestedOutput(spec, flag(given, "binary_data", f"output {spec.name!r}", binary))
    return tuple(requested.values())


def _declared(
    tensor: object, role: str, specs: dict[str, TensorSpec], taken: Mapping[str, object]
) -> tuple[TensorSpec, dict[str, Parameter]]:
    """The declaration that an entry of ``inputs`` or ``outputs`` refers to, and its checked parameters."""
    if type(tensor) is not dict:
        raise BadRequest(f"an {role} must be an object with a name, got {brief(tensor)}")
    name = tensor.get("name")
    if type(name) is not str:
        raise BadRequest(f"an {role} must have a name, one of {names(specs)}, got {brief(name)}")
    spec = declared(name, role, specs, taken)
    parameters = tensor.get("parameters")
    if parameters is None:
        return spec, {}
    where = f"{role} {name!r}"
    parameters = _checked_parameters(parameters, f"{where}: parameters")
    refuse_unsupported(parameters, where)
    return spec, parameters


def _checked_parameters(parameters: object, where: str) -> dict[str, Parameter]:
    if type(parameters) is not dict:
        raise BadRequest(f"{where} must be an object, got {brief(parameters)}")
    for name, value in parameters.items():
        if type(value) not in _PARAMETER_TYPES:
            raise BadRequest(f"{where}: {brief(name)} must be a string, number or boolean, got {brief(value)}")
    return parameters


def encode_response(
    model_name: str,
    model_version: str,
    outputs: Iterable[tuple[TensorSpec, Array, bool]],
    *,
    request_id: str | None = None,
    parameters: Mapping[str, Parameter] | None = None,
) -> tuple[bytes, int | None]:
    """Encodes an answer.

    Args:
        model_name: the model that answered.
        model_version: its version.
        outputs: declaration, array of shape ``[rows, *row]`` and whether to send it as binary data, in order.
        request_id: the client's id; left out of the answer when None.
        parameters: what the answer says about itself; left out when empty.

    Returns:
        The body, and the length of its JSON part or None if all of it is JSON.

    Raises:
        BadRequest: an output that was asked for in JSON holds BYTES that are not UTF-8.
    """
    message: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request_id is not None:
        message["id"] = request_id
    if parameters:
        message["parameters"] = parameters
    tensors: list[dict[str, Any]] = []
    chunks: list[bytes] = [b""]
    for spec, array, binary in outputs:
        tensor: dict[str, Any] = {"name": spec.name, "shape": array.shape, "datatype": spec.datatype}
        if binary:
            chunk = to_binary(spec, array)
            chunks.append(chunk)
            tensor["parameters"] = {"binary_data_size": len(chunk)}
        else:
            tensor["data"] = to_json(spec, array)
        tensors.append(tensor)
    message["outputs"] = tensors
    text = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(chunks) == 1:
        return text, None
    chunks[0] = text
    return b"".join(chunks), len(text)
