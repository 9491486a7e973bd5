"""Inference messages of the Open Inference Protocol v2 in protobuf: bytes to the values of `cascade.wire.oip` and back.

Knows a model's signature and nothing else: no stages, no gRPC calls, no time. A request either decodes into arrays that fit
the signature or raises BadRequest. The checks and their sentences are those of the JSON form.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from cascade.errors import BadRequest, Overloaded
from cascade.wire.oip import InferRequest, Limits, RequestedOutput, Signature
from cascade.wire.oip_messages import ModelInferResponse, ModelStreamInferResponse
from cascade.wire.parameters import Parameter, read_wishes, refuse_unsupported
from cascade.wire.problem import shown
from cascade.wire.tensor_binary import from_binary, to_binary
from cascade.wire.tensor_typed import from_typed, has_typed_form, to_typed
from cascade.wire.tensors import (
    Array,
    TensorSpec,
    all_inputs,
    brief,
    declared,
    require_finite,
    require_text,
    rows_of_input,
)

_DEFAULT_LIMITS: Final = Limits()

ASKS_FOR_FINAL: Final = "triton_enable_empty_final_response"
"""Request parameter of clients that look for `TRITON_FINAL` to know the last answer to a request of a stream."""
TRITON_FINAL: Final = "triton_final_response"

_CHOICES: Final = ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param"))
"""Which member of an InferParameter holds a value of each type; to Python a bool is an int, so it comes first."""


def read_message(kind: Any, payload: bytes) -> Any:
    """Parses a protobuf message.

    Args:
        kind: its class, out of `cascade.wire.oip_messages`.
        payload: its bytes.

    Raises:
        BadRequest: the bytes are no such message.
    """
    try:
        return kind.FromString(payload)
    except DecodeError:
        raise BadRequest(f"the {len(payload)} bytes are no {kind.DESCRIPTOR.name}") from None


def decode_request(message: Any, signature: Signature, limits: Limits = _DEFAULT_LIMITS) -> InferRequest:
    """Decodes an inference request.

    Args:
        message: a ``ModelInferRequest``; which model it names is not looked at.
        signature: what the model takes and gives.
        limits: how far a request may go.

    Returns:
        The request. Raw inputs become views on the bytes that protobuf hands out. ``binary`` is the same for all outputs:
        an answer has the form that the request had, raw or typed, but raw where an output has no typed form.

    Raises:
        BadRequest: anything wrong with the message; the detail names the member, what was expected and what came.
    """
    parameters = _parameters(message.parameters, "parameters")
    inputs, rows = _decode_inputs(message, signature, limits)
    specs = _requested(message.outputs, signature)
    raw = bool(message.raw_input_contents) or not all(map(has_typed_form, specs))
    return InferRequest(
        message.id or None,
        parameters,
        inputs,
        tuple(RequestedOutput(spec, raw) for spec in specs),
        rows,
        *read_wishes(parameters, limits.priorities, limits.max_timeout_s),
    )


def _decode_inputs(message: Any, signature: Signature, limits: Limits) -> tuple[dict[str, Array], int]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequest(
            f"raw_input_contents must hold one element for each of {len(message.inputs)} inputs, got {len(raw)}"
        )
    arrays: dict[str, Array] = {}
    rows = 0
    for number, tensor in enumerate(message.inputs):
        spec = declared(tensor.name, "input", signature.input_specs, arrays)
        where = f"input {spec.name!r}"
        refuse_unsupported(_parameters(tensor.parameters, f"{where}: parameters"), where)
        shape = list(tensor.shape)
        rows = rows_of_input(spec, tensor.datatype, shape, limits.max_rows, rows)
        if tensor.HasField("contents"):
            if raw:
                raise BadRequest(f"{where}: give contents or raw_input_contents, got both")
            array = from_typed(spec, shape, tensor.contents)
        elif raw:
            data = raw[number]
            array = from_binary(spec, shape, data, 0, len(data))
        else:
            raise BadRequest(f"{where}: give contents or raw_input_contents, got neither")
        if limits.require_finite:
            require_finite(spec, array)
        require_text(spec, array)
        arrays[spec.name] = array
    return all_inputs(arrays, signature.input_specs), rows


def _requested(tensors: Any, signature: Signature) -> tuple[TensorSpec, ...]:
    if not tensors:
        return signature.outputs
    requested: dict[str, TensorSpec] = {}
    for tensor in tensors:
        spec = declared(tensor.name, "output", signature.output_specs, requested)
        where = f"output {spec.name!r}"
        refuse_unsupported(_parameters(tensor.parameters, f"{where}: parameters"), where)
        requested[spec.name] = spec
    return tuple(requested.values())


def _parameters(given: Any, where: str) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest(f"{where}: {brief(name)} must be a string, number or boolean, got none")
        parameters[name] = getattr(value, choice)
    return parameters


def encode_response(
    model_name: str,
    model_version: str,
    outputs: Iterable[tuple[TensorSpec, Array, bool]],
    *,
    request_id: str | None = None,
    parameters: Mapping[str, Parameter] | None = None,
) -> Any:
    """Encodes an answer.

    Args:
        model_name: the model that answered.
        model_version: its version.
        outputs: declaration, array of shape ``[rows, *row]`` and whether to send it raw, in order; all of them the same,
            as `decode_request` has it.
        request_id: the client's id; left out of the answer when None.
        parameters: what the answer says about itself; left out when empty.

    Returns:
        A ``ModelInferResponse``.
    """
    message = ModelInferResponse(model_name=model_name, model_version=model_version, id=request_id or "")
    _set_parameters(message, parameters or {})
    for spec, array, raw in outputs:
        tensor = message.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            message.raw_output_contents.append(to_binary(spec, array))
        else:
            to_typed(spec, array, tensor.contents)
    return message


def shown_event(
    model_name: str,
    model_version: str,
    outputs: Iterable[tuple[TensorSpec, Array, bool]],
    request: InferRequest,
    parameters: Mapping[str, Parameter],
    *,
    final: bool,
) -> Any:
    """Encodes one answer of a stream.

    Args:
        model_name: see `encode_response`.
        model_version: see `encode_response`.
        outputs: see `encode_response`.
        request: what it answers.
        parameters: what the answer says about itself.
        final: whether it is the last to this request; said in Triton's words, too, if the request asks for that.

    Returns:
        A ``ModelStreamInferResponse``.
    """
    if request.parameters.get(ASKS_FOR_FINAL) is True:
        parameters = {**parameters, TRITON_FINAL: final}
    answer = encode_response(model_name, model_version, outputs, request_id=request.id, parameters=parameters)
    return ModelStreamInferResponse(infer_response=answer)


def failed_event(error: Exception, model_name: str, request_id: str | None) -> Any:
    """Makes the answer that tells a client of an error of one request of a stream, which goes on.

    Clients of Triton's are handed the sentence alone, so it names the request as Triton's own do.

    Args:
        error: what was raised.
        model_name: the model that was asked.
        request_id: the client's id for the request, None if it has none or it cannot be read.

    Returns:
        A ``ModelStreamInferResponse``; beside the sentence, the error's stable code and, for a request that was turned away,
        when to come back, in seconds.
    """
    error, detail = shown(error)
    where = f"[request id: {request_id}] " if request_id else ""
    answer = ModelInferResponse(model_name=model_name, id=request_id or "")
    parameters: dict[str, Parameter] = {"cascade_code": error.code, "cascade_final": True}
    if isinstance(error, Overloaded):
        parameters["cascade_retry_after"] = error.retry_after_s
    _set_parameters(answer, parameters)
    return ModelStreamInferResponse(error_message=f"{where}{error.title}: {detail}", infer_response=answer)


def _set_parameters(message: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        choice = next(choice for kind, choice in _CHOICES if isinstance(value, kind))
        setattr(message.parameters[name], choice, value)
