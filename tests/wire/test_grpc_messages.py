"""The messages are the protocol's: compared with those that tritonclient brings, in the same process."""

from typing import Any

import pytest
import tritonclient.grpc.service_pb2 as theirs
import tritonclient.grpc.service_pb2_grpc as their_stubs

import cascade.wire.oip_messages as ours

EXCHANGED = [f"{method}{side}" for method in ours.METHODS for side in ("Request", "Response")]
EXCHANGED += ["ModelStreamInferResponse"]


def description(message: Any) -> dict[str, Any]:
    """A message's fields by name, those of the messages in it included."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type
            and (field.message_type.full_name, field.message_type.GetOptions().map_entry, description(field.message_type)),
        )
        for field in message.fields
    }


@pytest.mark.parametrize("name", EXCHANGED)
def test_every_message_has_the_fields_of_the_protocol(name):
    their_message = theirs.DESCRIPTOR.message_types_by_name[name]
    assert description(getattr(ours, name).DESCRIPTOR) == description(their_message)
    assert getattr(ours, name).DESCRIPTOR.full_name == their_message.full_name == f"inference.{name}"


def test_the_methods_are_those_of_the_service():
    service = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == ours.SERVICE
    for method in ours.METHODS:
        assert service.methods_by_name[method].input_type.name == f"{method}Request"
        assert service.methods_by_name[method].output_type.name == f"{method}Response"
        assert hasattr(their_stubs.GRPCInferenceServiceServicer, method)


def test_the_method_that_streams_is_tritons():
    method = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[ours.STREAM_METHOD]
    assert (method.input_type.name, method.output_type.name) == ("ModelInferRequest", "ModelStreamInferResponse")
    assert method.client_streaming
    assert method.server_streaming


def test_both_kinds_of_classes_live_in_one_process_and_read_each_other():
    assert ours.ModelInferRequest is not theirs.ModelInferRequest
    sent = theirs.ModelInferRequest(model_name="m", raw_input_contents=[b"\x00\xff"])
    sent.parameters["priority"].uint64_param = 2
    read = ours.ModelInferRequest.FromString(sent.SerializeToString())
    assert (read.model_name, list(read.raw_input_contents)) == ("m", [b"\x00\xff"])
    assert read.parameters["priority"].WhichOneof("parameter_choice") == "uint64_param"
    assert theirs.ModelInferRequest.FromString(read.SerializeToString()) == sent
