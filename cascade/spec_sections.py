"""The sections of a spec: its inputs, and how it is served: execution, deadlines, admission, limits, routers, and so on.

Each holds by itself; what must fit together across sections, and the ladder itself, are in `cascade.spec`.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cascade.wire.tensors import Datatype, TensorSpec

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]

RAY_OWN = ("CPU", "GPU", "memory", "object_store_memory")
"""What Ray counts on every node by itself, and has other options for."""


def _custom(name: str) -> str:
    if name in RAY_OWN:
        raise ValueError(f"{name!r} is no custom resource; a spec has num_cpus and num_gpus")
    return name


ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}$"), AfterValidator(_custom)]
"""Also such as ``accelerator_type:T4``, which Ray itself gives to nodes with that GPU."""
Amount = Annotated[float, Field(ge=1e-4, le=1e6, allow_inf_nan=False)]
"""Ray counts resources in steps of a ten-thousandth."""


class Part(BaseModel):
    """A section: unknown fields are mistakes, and docstrings are the documentation of the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TensorField(Part):
    """One input tensor of the model, as clients send it."""

    name: Name
    """Name in requests."""
    datatype: Datatype
    """Open Inference Protocol datatype, for example UINT8 or FP32."""
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Shape of one row; the batch dimension comes in front of it."""
    text: bool = False
    """Whether its BYTES are UTF-8 text: a message with other bytes is refused, so that no stage fails on it."""

    @property
    def tensor(self) -> TensorSpec:
        """The declaration that the wire works with."""
        return TensorSpec(self.name, self.datatype, self.shape, self.text)

    @model_validator(mode="after")
    def _text_is_bytes(self) -> Self:
        if self.text and self.datatype is not Datatype.BYTES:
            raise ValueError(f"text travels as BYTES, not as {self.datatype}")
        return self


class ExecutionSpec(Part):
    """How a stage's network is run.

    What changes its outputs, be it by rounding, is off until it is asked for and belongs to the stage's digest. What changes
    only its speed, and that on a GPU alone, is on.
    """

    cast_weights: bool = False
    """Hold the weights in ``precision`` too, and compute everything in it: faster than float32 weights that are cast in
    every batch (autocast), and less exact."""
    channels_last: bool = False
    """Lay images out with their channels innermost, as half-precision convolutions on tensor cores want them."""
    compile: bool = False
    """On a GPU, fuse the network's operations with torch.compile. Takes up to minutes at each start of a replica, once for
    each bucket."""
    graphs: bool = True
    """On a GPU, record the network at each bucket as a CUDA graph and start it at once instead of kernel by kernel. A
    network that cannot be recorded is run without, and the log says so."""
    buckets: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=64)] | None = None
    """On a GPU, batch sizes that batches are padded to, rising, the last one the stage's ``max_batch_size``; by default the
    powers of two and that."""
    in_flight: Annotated[int, Field(ge=1, le=8)] = 2
    """On a GPU, batches that a replica may have under way: one computes while the next one's rows are copied."""

    thinks: bool = False
    """The network chooses its depth for each row (`cascade.models.halting`), and load may shorten it: what load adds to the
    stage's price raises the threshold at which a row halts. Not for the first stage, which has no price."""

    @property
    def numerics(self) -> dict[str, bool]:
        """What changes outputs, where it was asked for."""
        switches = {"cast_weights": self.cast_weights, "channels_last": self.channels_last, "compile": self.compile}
        return {name: True for name, on in switches.items() if on}


class DeadlineSpec(Part):
    """Time that a request has, from its arrival at the router."""

    default_s: Seconds = 1.0
    """When the client names none; queue bounds are measured against this."""
    max_s: Seconds = 30.0
    """Longer wishes are cut to this."""
    margin_s: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The best answer so far leaves this long before the deadline, to be on the wire in time; at most a tenth of it."""


class ClassSpec(Part):
    """One class of requests."""

    name: Name
    """Name in metrics."""
    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
    """What a gain is worth in this class; the plan's prices are made for 1. Half the weight gives way at half the load's
    surcharge."""
    max_loss: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Certified floor: under load a row of this class is never served at prices that lose more, see ``cascade certify``;
    none for a class to which nothing is promised."""
    beyond_floor: Literal["wait", "shed"] = "wait"
    """What happens when even that is more than the stages can do: ``wait`` lets rows wait until their deadline, ``shed``
    turns the class away at the door, so that what was let in keeps its floor."""


class AdmissionSpec(Part):
    """When a request is turned away, before the first stage."""

    wait_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of its deadline that a first-class request may wait for the first stage."""
    priorities: Annotated[int, Field(ge=1, le=8)] = 4
    """Number of classes; 1 is the most important."""
    default_priority: Annotated[int, Field(ge=1, le=8)] = 2
    """Class of a request that names none."""
    classes: tuple[ClassSpec, ...] | None = None
    """One for each priority, the most important first. By default each has half the weight of the one above it, and the
    default class has weight 1, so that traffic that names no class meets the very prices of the plan."""

    @property
    def all_classes(self) -> tuple[ClassSpec, ...]:
        """The classes as given, or the default ones."""
        if self.classes is not None:
            return self.classes
        return tuple(
            ClassSpec(name=f"p{priority}", weight=2.0 ** (self.default_priority - priority))
            for priority in range(1, self.priorities + 1)
        )

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if self.default_priority > self.priorities:
            raise ValueError(f"default_priority {self.default_priority} is above priorities {self.priorities}")
        if self.classes is None:
            return self
        if len(self.classes) != self.priorities:
            raise ValueError(f"classes: expected one for each of {self.priorities} priorities, got {len(self.classes)}")
        names = [each.name for each in self.classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"classes: the name {name!r} is used twice")
        for above, below in pairwise(self.classes):
            if below.weight > above.weight:
                raise ValueError(
                    f"classes: {below.name!r} is less important than {above.name!r}, its weight {below.weight:g} is larger"
                )
        return self


class LimitsSpec(Part):
    """What a single request, and a single client, may ask of the server."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 31)] = 32 << 20
    """Body as sent, and after inflation."""
    max_rows: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Rows in one request."""
    max_header_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] = 32 << 10
    """Request line and headers together, of requests that routers take themselves."""
    head_s: Seconds = 10.0
    """Time in which they must have come, from the connection's beginning or from their own."""
    body_s: Seconds = 30.0
    """Time in which a body must have come, of requests that routers take themselves; its deadline runs meanwhile."""
    write_s: Seconds = 30.0
    """A client that takes nothing of an answer for so long is cut off."""
    max_under_way: Annotated[int, Field(ge=1)] | None = 4096
    """Requests that one client may have under way in one router, streams among them. A client is a key, or an address where
    routers listen themselves; null for no such limit, where a load balancer hides the addresses."""
    max_streams: Annotated[int, Field(ge=1)] | None = 1024
    """The same of streams alone."""


class SecuritySpec(Part):
    """Keys that clients must have. Without this section everybody may ask everything."""

    keys: str = "keys.json"
    """File of the keys' hashes, relative to the spec, on every node that has a router; see ``cascade key``."""


class AnytimeSpec(Part):
    """What clients that watch an answer get better are shown."""

    answers: Literal["steady", "plain", "best_so_far", "product"] = "steady"
    """``plain`` shows each stage's own answer; ``steady`` too, but of answers that agree the surest; ``best_so_far`` keeps
    the surest of all, which is right less often; ``product`` multiplies the stages' scores, so that classes only ever drop
    out, and needs the outcome table. ``cascade report`` has what each is worth on a ladder."""
    ping_s: Seconds = 15.0
    """A comment is sent on an event stream on which nothing has happened for so long."""


class RouterSpec(Part):
    """The process that clients talk to."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Router processes; each has its own queues."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for each."""
    resources: dict[ResourceName, Amount] = Field(default={})
    """Custom Ray resources reserved for each, which pins routers to the nodes that have them. Where a node has 1 of it and a
    router takes 1, there is one router on a node."""


class AutoscalingSpec(Part):
    """When stages with ``min_replicas`` and ``max_replicas`` get more replicas, and fewer; they degrade at once anyhow."""

    up_after_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """A stage gets more replicas when its price was above the base price for this long."""
    down_after_s: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """It loses one when for this long the rest would have done without a higher price."""
    target_utilisation: Annotated[float, Field(gt=0, le=0.95)] = 0.8
    """Share of the replicas' capacity that demand should take after an increase."""

    @model_validator(mode="after")
    def _slower_down_than_up(self) -> Self:
        if self.down_after_s < self.up_after_s:
            raise ValueError(f"down_after_s {self.down_after_s:g} is below up_after_s {self.up_after_s:g}")
        return self


class TracesSpec(Part):
    """OpenTelemetry spans of a request's walk. They need ``pip install "cascade-serve[tracing]"``."""

    exporter: Literal["none", "otlp", "file"] = "none"
    """``otlp`` sends spans to a collector over HTTP, ``file`` appends them to a file as JSON lines."""
    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """For ``otlp``: URL that spans are posted to; by default what OpenTelemetry's own environment variables say, else
    ``http://localhost:4318/v1/traces``."""
    path: str | None = None
    """For ``file``: where to append."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the requests without a ``traceparent`` that are traced; those with one are traced as it says."""

    @model_validator(mode="after")
    def _exporter_has_what_it_needs(self) -> Self:
        if (self.exporter == "file") != (self.path is not None):
            raise ValueError(f"traces: a path goes with exporter file, got {self.exporter} and path {self.path!r}")
        if self.endpoint is not None and self.exporter != "otlp":
            raise ValueError(f"traces: an endpoint goes with exporter otlp, got {self.exporter}")
        return self


class TelemetrySpec(Part):
    """What a router tells about itself beside its metrics."""

    explain_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the requests of which it is kept why they were answered as they were, beside those that ask for it."""
    explain_keep: Annotated[int, Field(ge=1, le=65536)] = 256
    """How many explanations a router keeps, the last ones."""
    traces: TracesSpec = TracesSpec()
    """OpenTelemetry spans; none by default."""
    logs: Literal["text", "json"] = "text"
    """Form of the lines that routers and stages write to Serve's log."""


class DataSpec(Part):
    """Labelled rows beside the spec: ``.npz`` with one array for each input and ``labels``."""

    calibration: str = "data/calibration.npz"
    """Rows that calibration is fitted on; never trained on, never tested on."""
    test: str = "data/test.npz"
    """Rows that results are reported on; never read by calibration."""
