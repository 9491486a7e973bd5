"""Documents about the server and its models."""

import orjson
from wire_cases import EVERY_DATATYPE, FASHION, TWO_IN_TWO_OUT

from cascade.wire.metadata import (
    LIVENESS,
    BatchStatistics,
    Duration,
    ModelStatistics,
    RepositoryEntry,
    live_document,
    model_config,
    model_list,
    model_metadata,
    model_ready_document,
    ready_document,
    repository_index,
    server_metadata,
    statistics,
    to_body,
)


def test_health_documents_carry_what_each_client_looks_for():
    assert live_document() == {"live": True}
    assert ready_document(True) == {"ready": True, "live": True}
    assert ready_document(False) == {"ready": False, "live": False}
    assert model_ready_document("m", False) == {"name": "m", "ready": False}
    assert LIVENESS == {"status": "alive"}


def test_the_server_names_its_extensions():
    document = server_metadata("cascade", "0.1")
    assert document["name"] == "cascade"
    assert document["version"] == "0.1"
    assert "binary_tensor_data" in document["extensions"]
    assert model_list(["a", "b"]) == {"models": ["a", "b"]}


def test_shapes_in_metadata_begin_with_the_batch_dimension():
    document = orjson.loads(to_body(model_metadata(TWO_IN_TWO_OUT, "cascade_ladder")))
    assert document == {
        "name": "pair",
        "versions": ["3"],
        "platform": "cascade_ladder",
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "scale", "datatype": "FP32", "shape": [-1]},
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP64", "shape": [-1, 2]},
        ],
    }


def test_properties_are_free_text():
    assert model_metadata(FASHION, "p", {"stages": "linear, small"})["properties"] == {"stages": "linear, small"}


def test_dims_in_the_config_leave_the_batch_dimension_out():
    document = orjson.loads(to_body(model_config(FASHION, "cascade_ladder", 64)))
    assert document["max_batch_size"] == 64
    assert document["backend"] == "cascade"
    assert document["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [28, 28]}]
    assert document["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}]


def test_bytes_are_called_strings_in_the_config():
    types = {entry["name"]: entry["data_type"] for entry in model_config(EVERY_DATATYPE, "p", 1)["input"]}
    assert types["bytes"] == "TYPE_STRING"
    assert types["bool"] == "TYPE_BOOL"
    assert types["bf16"] == "TYPE_BF16"


def test_statistics_have_an_entry_for_the_cascade_and_for_each_stage():
    stage = ModelStatistics(
        "fashion.small",
        "1",
        inference_count=12,
        execution_count=3,
        last_inference_ms=1_700_000_000_000,
        success=Duration(12, 900),
        queue=Duration(12, 300),
        compute_infer=Duration(3, 500),
        batches=(BatchStatistics(4, compute_infer=Duration(3, 500)),),
    )
    document = orjson.loads(to_body(statistics([ModelStatistics("fashion", "1"), stage])))
    cascade, small = document["model_stats"]
    assert cascade["inference_count"] == 0
    assert cascade["batch_stats"] == []
    assert small["name"] == "fashion.small"
    assert small["last_inference"] == 1_700_000_000_000
    assert (small["inference_count"], small["execution_count"]) == (12, 3)
    never = {"count": 0, "ns": 0}
    assert small["inference_stats"] == {
        "success": {"count": 12, "ns": 900},
        "fail": never,
        "queue": {"count": 12, "ns": 300},
        "compute_input": never,
        "compute_infer": {"count": 3, "ns": 500},
        "compute_output": never,
        "cache_hit": never,
        "cache_miss": never,
    }
    assert small["batch_stats"] == [
        {"batch_size": 4, "compute_input": never, "compute_infer": {"count": 3, "ns": 500}, "compute_output": never}
    ]


def test_the_index_says_what_can_answer_and_why_not():
    entries = [RepositoryEntry("a", "1", True), RepositoryEntry("b", "1", False, "loading")]
    assert repository_index(entries) == [
        {"name": "a", "version": "1", "state": "READY", "reason": ""},
        {"name": "b", "version": "1", "state": "UNAVAILABLE", "reason": "loading"},
    ]
