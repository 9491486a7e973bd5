"""The one YAML file that an operator writes: a ladder of models, and how to serve it. Knows no Ray and loads no model.

`Ladder.read(path)` validates it, or raises a SpecError that names the field, the value and what is allowed; `Ladder` then
finds the files beside it.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError, model_validator

from cascade.errors import SpecError
from cascade.models.factory import call_factory
from cascade.policy.routing import Routing
from cascade.spec_errors import describe_errors, read_mapping
from cascade.spec_exits import FROM_OWNER, check_exits, costs_alone, owner_of
from cascade.spec_sections import (
    AdmissionSpec,
    Amount,
    AnytimeSpec,
    AutoscalingSpec,
    DataSpec,
    DeadlineSpec,
    ExecutionSpec,
    LimitsSpec,
    Name,
    Part,
    ResourceName,
    RouterSpec,
    Seconds,
    SecuritySpec,
    TelemetrySpec,
    TensorField,
)


class ModelRef(Part):
    """Where a stage's network comes from."""

    factory: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """``package.module:callable`` that returns a torch.nn.Module whose forward takes the inputs and returns logits, or a
    network with several exits (``cascade.models.exits.ExitNetwork``)."""
    args: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of the factory."""
    weights: str | None = None
    """Safetensors file with its state dict, relative to the spec; none for a model without weights."""
    exit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Which exit of a network with several answers, counted from 0; none for a network that has but one answer."""

    def build(self) -> Any:
        """Import the factory and call it.

        Raises:
            SpecError: the factory cannot be imported, or refuses its arguments.
        """
        try:
            return call_factory(self.factory, self.args)
        except Exception as error:  # the user's own code may raise anything
            raise SpecError(
                f"model.factory {self.factory!r} with args {self.args}: {error or type(error).__name__}"
            ) from error


class StageSpec(Part):
    """One rung of the ladder."""

    name: Name
    """Name in answers, metrics and artefacts."""
    model: ModelRef
    """The network."""
    cost: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Cost of one row in the ladder's cost unit; of a stage that resumes, that of its own segment. What it costs to run a
    row from its inputs to a stage's answer rises from stage to stage."""
    resumes: bool = False
    """Whether it goes on from the activations that the stage before left, as a later exit of the same network: ``model`` is
    the same but for ``exit``. Nothing is computed twice."""
    placement: Literal["router", "replica", "together"] = "replica"
    """``router`` runs the stage inside the router process, which saves the hop; for the cheapest stage only. ``together``
    runs a stage that resumes in the processes of the stage before it, where the activations stay."""
    base_price: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Gain (probability of mending a wrong answer) that a visit must promise even when nothing is scarce; by default
    ``price_per_cost`` times the cost."""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows in a batch, at most."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Serve replicas, at the start if their number follows the load; not used with placement router."""
    min_replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Fewest replicas when their number follows the load; together with ``max_replicas``, not with placement router."""
    max_replicas: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most replicas when their number follows the load."""
    calls_per_replica: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches that a replica may hold: one runs while the next one travels. More where a batch takes less than the way there
    and back, about 2 ms, as on a GPU; the routers share them."""
    kept_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Memory in which a replica keeps activations for the stages that run together with it; what was kept longest is dropped
    beyond that, and computed again if it is asked for."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for a replica."""
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU that Ray reserves for a replica, which runs on the CPU if this is 0. Fractions share a device: a replica may
    allocate that share of its memory. Not with placement router."""
    resources: dict[ResourceName, Amount] = Field(default={})
    """Custom Ray resources that are reserved for a replica, which pins it to the nodes that have them: 0.001 to pin and no
    more, a larger amount to bound the replicas of a node. Not with placement router."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Torch threads of a replica."""
    nice: Annotated[int, Field(ge=0, le=19)] = 0
    """How far a replica yields the CPU to others on its machine, as by the command of that name; raise it for a dear stage
    that shares cores with the router, without which nothing moves."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format the network runs in."""
    execution: ExecutionSpec = ExecutionSpec()
    """How it is run."""
    timeout_floor_s: Seconds = 1.0
    """A batch is never given up before this; beyond it, after five times its predicted duration."""

    @property
    def numerics(self) -> dict[str, Any]:
        """What its outputs depend on beside the model."""
        return {"precision": self.precision, **self.execution.numerics}

    @property
    def scales(self) -> bool:
        """Whether the number of replicas follows the load."""
        return self.min_replicas is not None and self.min_replicas != self.max_replicas

    @model_validator(mode="after")
    def _execution_fits(self) -> Self:
        if self.num_gpus and self.placement == "router":
            raise ValueError("num_gpus does not go with placement router: routers reserve no GPU")
        if self.resources and self.placement == "router":
            raise ValueError("resources does not go with placement router: give them to router.resources")
        if self.execution.cast_weights and self.precision == "float32":
            raise ValueError("execution.cast_weights needs a precision other than float32")
        buckets = self.execution.buckets
        if buckets is not None and (list(buckets) != sorted(set(buckets)) or buckets[-1] != self.max_batch_size):
            raise ValueError(
                f"execution.buckets must rise and end with max_batch_size {self.max_batch_size}, got {list(buckets)}"
            )
        return self

    @model_validator(mode="after")
    def _replica_bounds_hold(self) -> Self:
        low, high = self.min_replicas, self.max_replicas
        if low is None and high is None:
            return self
        if low is None or high is None:
            raise ValueError(f"min_replicas and max_replicas go together, got {low} and {high}")
        if self.placement == "router":
            raise ValueError("min_replicas and max_replicas do not go with placement router")
        if not low <= self.replicas <= high:
            raise ValueError(f"replicas {self.replicas} is not between min_replicas {low} and max_replicas {high}")
        return self


class CascadeSpec(Part):
    """The whole spec."""

    name: Name
    """Model name that clients use."""
    version: Annotated[str, Field(min_length=1, max_length=64)] = "1"
    """Version that clients see."""
    inputs: Annotated[tuple[TensorField, ...], Field(min_length=1)]
    """Input tensors, in the order of the networks' forward arguments."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the classes, in the order of the logits."""
    cost_unit: Annotated[str, Field(min_length=1, max_length=32)] = "MAC"
    """Unit of the stages' costs."""
    price_per_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Gain (probability of mending a wrong answer) that one unit of cost must promise when nothing is scarce: the operator's
    preference for low cost. 0 escalates wherever accuracy may be won."""
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=16)]
    """The ladder, cheapest first."""
    routing: Routing = "cascade"
    """``cascade`` takes rows through the stages in turn; ``direct`` lets a row skip those between, where the gain tables say
    that going straight to a dearer stage is worth more. With ``direct`` no stage looks back at the answers of others."""
    deadline: DeadlineSpec = DeadlineSpec()
    """Time limits."""
    admission: AdmissionSpec = AdmissionSpec()
    """The door."""
    limits: LimitsSpec = LimitsSpec()
    """What a request and a client may ask."""
    security: SecuritySpec | None = None
    """Keys that clients must have; none by default."""
    router: RouterSpec = RouterSpec()
    """Router processes."""
    anytime: AnytimeSpec = AnytimeSpec()
    """What is shown of an answer while it gets better."""
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    """How replicas follow the load."""
    audit_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the answers below the last stage that are checked against the whole ladder after they have left, while there
    is capacity to spare; 0 for none."""
    telemetry: TelemetrySpec = TelemetrySpec()
    """Explanations, traces, logs."""
    data: DataSpec = DataSpec()
    """Labelled rows."""
    calibration: str = "calibration"
    """Folder for what profile and calibrate write, relative to the spec."""

    @property
    def base_prices(self) -> tuple[float, ...]:
        """Base price of a visit to each stage, cheapest first."""
        return tuple(
            self.price_per_cost * stage.cost if stage.base_price is None else stage.base_price for stage in self.stages
        )

    @property
    def costs_alone(self) -> tuple[float, ...]:
        """What a row costs that is run to each stage's answer alone: for stages that resume, all segments up to there."""
        return costs_alone([stage.cost for stage in self.stages], [stage.resumes for stage in self.stages])

    @property
    def placed(self) -> tuple[StageSpec, ...]:
        """The stages with, in the place of ``together``, the placement, replicas and so on of the stage they run with."""
        owners = [self.stages[owner_of(self.stages, index)] for index in range(len(self.stages))]
        fields = ("placement", *FROM_OWNER)
        return tuple(
            stage.model_copy(update={field: getattr(owner, field) for field in fields}) if owner is not stage else stage
            for stage, owner in zip(self.stages, owners, strict=True)
        )

    @model_validator(mode="after")
    def _ladder_is_a_ladder(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"stages: the name {name!r} is used twice")
        check_exits(self.stages)
        resuming = [stage.name for stage in self.stages if stage.resumes]
        if self.routing == "direct" and resuming:
            raise ValueError(f"routing: direct skips stages, and {resuming[0]!r} resumes the one before it")
        if self.routing == "direct" and self.anytime.answers == "product":
            raise ValueError("routing: direct skips stages, and anytime.answers product is the product of all of them")
        alone = self.costs_alone
        for place, (cheaper, dearer) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if alone[place + 1] <= alone[place]:
                raise ValueError(
                    f"stages: costs must rise: {dearer.name!r} costs {alone[place + 1]:g}, "
                    f"no more than {cheaper.name!r} before it with {alone[place]:g}"
                )
            if dearer.placement == "router":
                raise ValueError(f"stages: only the cheapest stage may have placement router, not {dearer.name!r}")
        if self.stages[0].execution.thinks:
            raise ValueError(f"stages: execution.thinks needs a price, which the first stage, {names[0]!r}, has not")
        tensors = [tensor.name for tensor in self.inputs]
        if len(set(tensors)) < len(tensors):
            raise ValueError("inputs: two tensors have the same name")
        if "labels" in tensors:
            raise ValueError("inputs: a tensor cannot be called 'labels', which data files keep for the labels")
        return self


class Ladder:
    """A validated spec together with the folder that its relative paths start from.

    Attributes:
        spec: the spec.
        root: folder of the YAML file.
        digests: of every stage, as its artefacts were found to belong to; None until somebody has looked. Whoever loads a
            network later, on another node perhaps, must find the same.
        source: the YAML file itself; None for a spec that was not read from one.
    """

    def __init__(self, spec: CascadeSpec, root: Path, source: Path | None = None) -> None:
        self.spec = spec
        self.root = root
        self.digests: dict[str, str] | None = None
        self.source = source

    @classmethod
    def read(cls, path: str | Path) -> "Ladder":
        """Read and validate a spec file.

        Raises:
            SpecError: it cannot be read, is no YAML, or a field is wrong; one line for each wrong field.
        """
        path = Path(path)
        document = read_mapping(path, SpecError)
        return cls(parse_spec(document, source=str(path)), path.resolve().parent, path.resolve())

    def path(self, relative: str) -> Path:
        """A file of the ladder."""
        return self.root / relative

    @property
    def table_path(self) -> Path:
        """The outcome table on the calibration rows, written by ``cascade profile``."""
        return self.path(self.spec.calibration) / "outcomes.npz"

    @property
    def service_path(self) -> Path:
        """The service-time model, written by ``cascade profile``."""
        return self.path(self.spec.calibration) / "service.json"

    @property
    def calibration_path(self) -> Path:
        """Temperatures and gain tables, written by ``cascade calibrate``."""
        return self.path(self.spec.calibration) / "calibration.json"

    @property
    def certificate_path(self) -> Path:
        """What may be lost at which prices, where ``cascade certify`` has put it there."""
        return self.path(self.spec.calibration) / "certificate.json"

    @property
    def plan_path(self) -> Path:
        """Prices by arrival rate, where ``cascade plan`` has put them there."""
        return self.path(self.spec.calibration) / "plan.json"

    def weights(self, stage: StageSpec) -> Path | None:
        """The stage's weights file.

        Raises:
            SpecError: the spec names a file that is not there.
        """
        if stage.model.weights is None:
            return None
        path = self.path(stage.model.weights)
        if not path.is_file():
            raise SpecError(f"stages.{stage.name}.model.weights: no file {path}")
        return path

    def example_row(self) -> dict[str, NDArray[Any]]:
        """One row of zeros, or of empty BYTES, of every input, batch dimension 1."""
        zeros = {"BYTES": b""}
        return {
            field.name: np.full((1, *field.shape), zeros.get(field.datatype, 0), dtype=field.tensor.dtype)
            for field in self.spec.inputs
        }

    def stage_digest(self, stage: StageSpec) -> str:
        """SHA-256 over everything that determines the stage's outputs.

        That is inputs, factory, arguments, weights, precision, exits, and what of its execution changes them.
        """
        digest = hashlib.sha256()
        facts: dict[str, Any] = {
            # What is refused at the door changes no output.
            "inputs": [tensor.model_dump(mode="json", exclude={"text"}) for tensor in self.spec.inputs],
            "labels": len(self.spec.labels),
            "factory": stage.model.factory,
            "args": stage.model.args,
            "precision": stage.precision,
        }
        if stage.execution.numerics:
            facts["execution"] = stage.execution.numerics
        if stage.model.exit is not None:
            place = [each.name for each in self.spec.stages].index(stage.name)
            # Its times, too, are those of what it runs itself.
            after = self.spec.stages[place - 1].model.exit if stage.resumes else None
            facts["exit"] = [after, stage.model.exit]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        weights = self.weights(stage)
        if weights is not None:
            digest.update(weights.read_bytes())
        return digest.hexdigest()

    def stage_digests(self) -> dict[str, str]:
        """Digest of every stage by name, cheapest first."""
        return {stage.name: self.stage_digest(stage) for stage in self.spec.stages}


def parse_spec(document: dict[str, Any], source: str = "spec") -> CascadeSpec:
    """Validate a spec that is already a mapping.

    Args:
        document: the mapping.
        source: what to call it in errors.

    Raises:
        SpecError: one line for each wrong field, with its value and what is allowed.
    """
    try:
        return CascadeSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"{source}: " + "\n".join(describe_errors(error))) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of the spec, for editors."""
    schema = CascadeSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cascade spec"
    return schema
