"""What a server and its models say about themselves: documents of the Open Inference Protocol and Triton's extensions.

Knows signatures and counters, and the JSON layout that clients read; nothing of where the counters come from. Every
function returns a JSON value; ``to_body`` makes the bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from cascade.wire.oip import Signature
from cascade.wire.tensors import Datatype, TensorSpec

Document: TypeAlias = dict[str, Any]

EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""The protocol extensions that this server speaks over HTTP."""

GRPC_EXTENSIONS: Final = ("parameters", "schedule_policy")
"""Those that it speaks over gRPC."""

LIVENESS: Final[Document] = {"status": "alive"}
"""What ``GET /`` answers, the liveness of the older KServe protocol."""


def to_body(document: object) -> bytes:
    """The bytes of a JSON document."""
    return orjson.dumps(document)


def live_document() -> Document:
    """Liveness: that it is answered at all is the answer."""
    return {"live": True}


def ready_document(ready: bool) -> Document:
    """Readiness under both names that clients look for.

    The protocol's text says ``live`` even here and its clients read ``ready``, so both carry the same value.
    """
    return {"ready": ready, "live": ready}


def model_ready_document(name: str, ready: bool) -> Document:
    """Readiness of one model."""
    return {"name": name, "ready": ready}


def model_list(names: Iterable[str]) -> Document:
    """The models served here, as KServe lists them."""
    return {"models": list(names)}


def server_metadata(name: str, version: str, extensions: Iterable[str] = EXTENSIONS) -> Document:
    """Name, version and extensions of the server."""
    return {"name": name, "version": version, "extensions": list(extensions)}


def model_metadata(signature: Signature, platform: str, properties: Mapping[str, str] | None = None) -> Document:
    """What a model takes and gives; every shape begins with -1, the batch dimension.

    Args:
        signature: the model.
        platform: ``<project>_<format>``, such as ``cascade_ladder``.
        properties: free text about the model, left out when None.

    Returns:
        The document of ``GET v2/models/{model}``.
    """

    def tensor(spec: TensorSpec) -> Document:
        return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}

    document: Document = {
        "name": signature.name,
        "versions": [signature.version],
        "platform": platform,
        "inputs": [tensor(spec) for spec in signature.inputs],
        "outputs": [tensor(spec) for spec in signature.outputs],
    }
    if properties is not None:
        document["properties"] = dict(properties)
    return document


def model_config(signature: Signature, platform: str, max_batch_size: int) -> Document:
    """A model's configuration in the layout of Triton's model_configuration extension; dims leave the batch out.

    Args:
        signature: the model.
        platform: as in ``model_metadata``.
        max_batch_size: most rows that one request may hold.

    Returns:
        The document of ``GET v2/models/{model}/config``.
    """

    def tensor(spec: TensorSpec) -> Document:
        kind = "STRING" if spec.datatype is Datatype.BYTES else spec.datatype.value
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape)}

    return {
        "name": signature.name,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_size,
        "input": [tensor(spec) for spec in signature.inputs],
        "output": [tensor(spec) for spec in signature.outputs],
    }


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened and how long it took in all, nanoseconds."""

    count: int = 0
    ns: int = 0

    def document(self) -> Document:
        """Triton's ``duration_stat``."""
        return {"count": self.count, "ns": self.ns}


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Batches of one size on one stage.

    Attributes:
        batch_size: rows in each.
        compute_input: moving rows to the model.
        compute_infer: running it.
        compute_output: moving its outputs back.
    """

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Counters of a stage, or of the cascade as a whole, since the server started.

    Attributes:
        name: ``<cascade>`` or ``<cascade>.<stage>``.
        version: version on the wire.
        inference_count: rows answered.
        execution_count: batches run.
        last_inference_ms: milliseconds since the epoch of the last request, 0 if there was none.
        success: requests that got an answer, from arrival to answer.
        fail: requests that got an error.
        queue: waiting before a stage.
        compute_input: moving rows to the model.
        compute_infer: running it.
        compute_output: moving its outputs back.
        batches: the same three by batch size.
    """

    name: str
    version: str
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    batches: tuple[BatchStatistics, ...] = ()


def statistics(entries: Iterable[ModelStatistics]) -> Document:
    """Counters in the layout of Triton's statistics extension; nothing is cached here, so its cache counters stay 0.

    Args:
        entries: the cascade and each of its stages.

    Returns:
        The document of ``GET v2/models[/{model}]/stats``.
    """
    return {"model_stats": [_model_statistics(entry) for entry in entries]}


def _model_statistics(entry: ModelStatistics) -> Document:
    never = Duration().document()
    return {
        "name": entry.name,
        "version": entry.version,
        "last_inference": entry.last_inference_ms,
        "inference_count": entry.inference_count,
        "execution_count": entry.execution_count,
        "inference_stats": {
            "success": entry.success.document(),
            "fail": entry.fail.document(),
            "queue": entry.queue.document(),
            "compute_input": entry.compute_input.document(),
            "compute_infer": entry.compute_infer.document(),
            "compute_output": entry.compute_output.document(),
            "cache_hit": never,
            "cache_miss": never,
        },
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                "compute_input": batch.compute_input.document(),
                "compute_infer": batch.compute_infer.document(),
                "compute_output": batch.compute_output.document(),
            }
            for batch in entry.batches
        ],
    }


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One line of the repository index.

    Attributes:
        name: model name.
        version: version on the wire.
        ready: whether it can answer.
        reason: why not, for a person.
    """

    name: str
    version: str
    ready: bool
    reason: str = ""


def repository_index(entries: Iterable[RepositoryEntry]) -> list[Document]:
    """The index of Triton's model_repository extension, the array that ``POST v2/repository/index`` answers."""
    return [
        {
            "name": entry.name,
            "version": entry.version,
            "state": "READY" if entry.ready else "UNAVAILABLE",
            "reason": entry.reason,
        }
        for entry in entries
    ]
