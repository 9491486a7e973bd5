"""The messages of the Open Inference Protocol's gRPC form, as protobuf classes. Knows names and numbers, no meaning.

They are the protocol's own (its ``open_inference_grpc.proto``, package ``inference``), so any client of it can be used. The
classes live in a descriptor pool apart from protobuf's default one, because that takes a name once per process, and clients
in the same process, such as tritonclient, bring messages of the same names.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "inference.GRPCInferenceService"
"""Full name of the gRPC service."""

METHODS: Final = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Its methods: each takes ``<method>Request`` and answers ``<method>Response``."""

STREAM_METHOD: Final = "ModelStreamInfer"
"""The method that takes a stream of ``ModelInferRequest`` and answers a stream of ``ModelStreamInferResponse``. It is an
extension of Triton's (``grpc_service.proto``), with its messages, in the protocol's own service."""

_PACKAGE: Final = "inference"
_CHOICE: Final = "parameter_choice"

_MESSAGES: Final[dict[str, str]] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name; string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name; string version; repeated string extensions",
    "ModelMetadataRequest": "string name; string version",
    "ModelMetadataResponse": (
        "string name; repeated string versions; string platform; repeated ModelMetadataResponse.TensorMetadata inputs; "
        "repeated ModelMetadataResponse.TensorMetadata outputs"
    ),
    "ModelMetadataResponse.TensorMetadata": "string name; string datatype; repeated int64 shape",
    "ModelInferRequest": (
        "string model_name; string model_version; string id; map parameters; "
        "repeated ModelInferRequest.InferInputTensor inputs; "
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs; repeated bytes raw_input_contents"
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name; string datatype; repeated int64 shape; map parameters; InferTensorContents contents"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "string name; map parameters",
    "ModelInferResponse": (
        "string model_name; string model_version; string id; map parameters; "
        "repeated ModelInferResponse.InferOutputTensor outputs; repeated bytes raw_output_contents"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name; string datatype; repeated int64 shape; map parameters; InferTensorContents contents"
    ),
    "ModelStreamInferResponse": "string error_message; ModelInferResponse infer_response",
    "InferParameter": (
        "choice bool bool_param; choice int64 int64_param; choice string string_param; choice double double_param; "
        "choice uint64 uint64_param"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents; repeated int32 int_contents; repeated int64 int64_contents; "
        "repeated uint32 uint_contents; repeated uint64 uint64_contents; repeated float fp32_contents; "
        "repeated double fp64_contents; repeated bytes bytes_contents"
    ),
}
"""Fields of each message in the order of their numbers, which begin at 1 and leave none out. ``map`` is a map from strings
to InferParameter; ``choice`` marks the members of the one oneof. A nested message comes after the one that holds it."""


def _field(
    holder: descriptor_pb2.DescriptorProto, full_name: str, number: int, declaration: str
) -> descriptor_pb2.FieldDescriptorProto:
    *qualifiers, kind, name = declaration.split()
    field = descriptor_pb2.FieldDescriptorProto(name=name, number=number)
    field.label = field.LABEL_REPEATED if "repeated" in qualifiers or kind == "map" else field.LABEL_OPTIONAL
    if kind == "map":
        # In a descriptor a map is a repeated nested message of keys and values that is marked as one.
        entry = holder.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.append(_field(entry, "", 1, "string key"))
        entry.field.append(_field(entry, "", 2, "InferParameter value"))
        kind = f"{full_name}.ParametersEntry"
    if kind[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    if "choice" in qualifiers:
        field.oneof_index = 0
    return field


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="cascade/open_inference.proto", package=_PACKAGE, syntax="proto3")
    declared: dict[str, descriptor_pb2.DescriptorProto] = {}
    for full_name, fields in _MESSAGES.items():
        outer, _, name = full_name.rpartition(".")
        message = (declared[outer].nested_type if outer else file.message_type).add(name=name)
        declared[full_name] = message
        if "choice" in fields:
            message.oneof_decl.add(name=_CHOICE)
        for number, declaration in enumerate(filter(None, fields.split("; ")), 1):
            message.field.append(_field(message, full_name, number, declaration))
    return file


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(_file().SerializeToString())


def message_class(name: str) -> Any:
    """The class of a message, by its name within the package."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ServerLiveRequest: Final = message_class("ServerLiveRequest")
ServerLiveResponse: Final = message_class("ServerLiveResponse")
ServerReadyRequest: Final = message_class("ServerReadyRequest")
ServerReadyResponse: Final = message_class("ServerReadyResponse")
ModelReadyRequest: Final = message_class("ModelReadyRequest")
ModelReadyResponse: Final = message_class("ModelReadyResponse")
ServerMetadataRequest: Final = message_class("ServerMetadataRequest")
ServerMetadataResponse: Final = message_class("ServerMetadataResponse")
ModelMetadataRequest: Final = message_class("ModelMetadataRequest")
ModelMetadataResponse: Final = message_class("ModelMetadataResponse")
ModelInferRequest: Final = message_class("ModelInferRequest")
ModelInferResponse: Final = message_class("ModelInferResponse")
ModelStreamInferResponse: Final = message_class("ModelStreamInferResponse")
