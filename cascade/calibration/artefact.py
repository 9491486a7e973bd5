"""The files that calibrating and profiling leave behind: calibration.json and service.json.

What stands in them, reading, writing, and the check that they belong to the ladder at hand. Plain values; knows nothing
of how they were fitted, and needs no scipy, because a server's router reads them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cascade.errors import CalibrationMismatch, ConfigError
from cascade.policy.gain import Curve, Judge, LogisticGain

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

_REMAKE = "run `cascade profile`, then `cascade calibrate`"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _File(_Part):
    """A model that is a whole file."""

    def write(self, path: Path | str) -> None:
        """Write as JSON, one line a list of numbers, keys in the order of the fields."""
        document = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        # A text cannot hold a raw line break in JSON, so this touches only lists of numbers.
        document = re.sub(r"\[\n([-+.\deE,\s]+)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", document)
        Path(path).write_text(document + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and validate.

        Raises:
            ConfigError: the file cannot be read, is not JSON, or a field is wrong; the message names the field.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_REMAKE}") from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {_sentence(error)}") from error


class Knots(_Part):
    """A piecewise linear function of confidence, constant beyond its ends."""

    x: Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]
    """Confidences, strictly ascending."""
    y: Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]
    """Values at them."""

    @model_validator(mode="after")
    def _is_a_function(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(f"x has {len(self.x)} knots, y has {len(self.y)}")
        if any(right <= left for left, right in pairwise(self.x)):
            raise ValueError("x must be strictly ascending")
        return self

    def curve(self) -> Curve:
        """The function."""
        return Curve.of(self.x, self.y)


class HeldOutError(_Part):
    """Mean squared error of the estimators of a gain, on rows that they were not fitted on."""

    isotonic: Annotated[float, Field(ge=0)]
    """Of the curve that never rises with confidence."""
    binned: Annotated[float, Field(ge=0)]
    """Of the curve of any shape."""
    logistic: Annotated[float, Field(ge=0)] | None = None
    """Of the learned model; None where it was not tried, because the table has only scores or too many classes."""


class GainCurve(Knots):
    """E[1(dearer right) - 1(this right) | confidence], in [-1, 1]."""

    method: Literal["isotonic", "binned"]
    """The estimator that was chosen."""
    held_out: HeldOutError
    """The errors of all."""

    def estimator(self) -> Curve:
        """The function from confidence to gain."""
        return self.curve()


class LearnedGain(_Part):
    """P(dearer right, this wrong) - P(dearer wrong, this right), given several features of the evidence."""

    method: Literal["logistic"]
    """The estimator that was chosen."""
    mended: Annotated[tuple[float, ...], Field(min_length=7)]
    """Weights of the first event: constant, top probability, margin, entropy, agreement, then one for each class."""
    spoilt: Annotated[tuple[float, ...], Field(min_length=7)]
    """Weights of the second, in the same order."""
    curve: Knots
    """Their difference to the gain."""
    held_out: HeldOutError
    """The errors of all."""

    @model_validator(mode="after")
    def _reads_the_same(self) -> Self:
        if len(self.mended) != len(self.spoilt):
            raise ValueError(f"mended has {len(self.mended)} weights, spoilt has {len(self.spoilt)}")
        return self

    def estimator(self) -> LogisticGain:
        """The function from features to gain."""
        return LogisticGain(np.asarray(self.mended), np.asarray(self.spoilt), self.curve.curve())


class StageCalibration(_Part):
    """What was learned about one stage."""

    name: Text
    """Name of the stage."""
    digest: Text
    """Identifies the weights, the network and its precision."""
    temperature: Annotated[float, Field(gt=0)]
    """T of softmax(logits / T); 1 where the table had only scores."""
    p_correct: Knots
    """Probability of being right by confidence, strictly between 0 and 1, on the rows counted by ``rows``."""
    gains: dict[str, Annotated[GainCurve | LearnedGain, Field(discriminator="method")]]
    """Gain of each dearer stage by its name, cheapest first, on the rows counted by ``rows``."""
    history_weight: Annotated[float, Field(ge=0)] = 0.0
    """Exponent of the probabilities of the stages passed, multiplied into this stage's own; 0 replaces them by its own."""
    recall: Knots | None = None
    """Probability that its own answer is right: an earlier answer that is more probably right is kept. None: never."""
    accuracy: Share
    """Share of the table's rows, all of them, that the stage itself has right."""
    served_accuracy: Share
    """Share of them for which the answer given on stopping at this stage is right."""
    rows: Annotated[int, Field(ge=1)]
    """Rows that the stage was fitted on: those that reach it at ``Calibration.prices``, or all if those are few."""
    ece_before: Share | None
    """Calibration error of the raw confidence (equal-mass bins); None where scores are no probabilities."""
    ece_after: Share
    """Calibration error of ``p_correct``, cross-validated."""
    nll_before: Annotated[float, Field(ge=0)] | None
    """Mean negative log-likelihood at T = 1, nats; None where the table had only scores."""
    nll_after: Annotated[float, Field(ge=0)] | None
    """The same at ``temperature``."""

    @model_validator(mode="after")
    def _is_never_certain(self) -> Self:
        if not all(0 < y < 1 for y in self.p_correct.y):
            raise ValueError("p_correct must lie strictly between 0 and 1")
        if self.recall is not None and self.history_weight:
            raise ValueError("a stage recalls earlier answers or combines with them, not both")
        return self

    def judge(self) -> Judge:
        """How to read the stage's evidence."""
        return Judge(
            self.temperature,
            self.p_correct.curve(),
            tuple(gain.estimator() for gain in self.gains.values()),
            self.history_weight,
            None if self.recall is None else self.recall.curve(),
        )


class TableSource(_Part):
    """The outcome table that a calibration was fitted on."""

    digest: Text
    """Digest of the whole table."""
    rows: Annotated[int, Field(ge=1)]
    """Rows that were read."""
    split: str | None
    """The split they are, or None for all rows."""


class Calibration(_File):
    """calibration.json: everything the policy needs to turn evidence into decisions."""

    format_version: Literal[1]
    """Version of this file format."""
    created_by: Text
    """Program and version that wrote the file."""
    ladder: Text
    """Name of the ladder."""
    table: TableSource
    """What it was fitted on."""
    prices: tuple[float, ...]
    """Price of each stage; the rows that reach a stage at these prices are the ones it was fitted on."""
    stages: Annotated[tuple[StageCalibration, ...], Field(min_length=1)]
    """The stages, cheapest first."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: a name is used twice in {', '.join(names)}")
        if len(self.prices) != len(names):
            raise ValueError(f"prices: expected one for each of {len(names)} stages, got {len(self.prices)}")
        for index, stage in enumerate(self.stages):
            if list(stage.gains) != names[index + 1 :]:
                raise ValueError(
                    f"stages.{index}.gains: expected the dearer stages {', '.join(names[index + 1 :]) or '(none)'} "
                    f"in that order, got {', '.join(stage.gains) or '(none)'}"
                )
        return self

    def check_belongs(self, stage_names: Sequence[str], digests: Mapping[str, str]) -> None:
        """Refuse to serve other models than the ones calibrated.

        Args:
            stage_names: names of the ladder's stages, cheapest first.
            digests: digest of each stage by name.

        Raises:
            CalibrationMismatch: naming the first stage that differs and what to run.
        """
        _check_belongs("calibration", [(stage.name, stage.digest) for stage in self.stages], stage_names, digests)

    def check_looks_back_nowhere(self) -> None:
        """Refuse to let rows skip stages that later ones look back at.

        Raises:
            CalibrationMismatch: a stage combines, recalls or compares with the answers of stages before it.
        """
        for stage in self.stages:
            if stage.judge().looks_back:
                raise CalibrationMismatch(
                    f"stage {stage.name!r} looks back at the answers of stages before it, which direct routing may skip; "
                    "run `cascade calibrate` with routing: direct in the spec, or with --routing direct for a table"
                )


class MeasuredBatch(_Part):
    """Measured time of batches of one size."""

    rows: Annotated[int, Field(ge=1)]
    """Rows in the batch."""
    median_s: Annotated[float, Field(gt=0)]
    """Median over runs."""
    p99_s: Annotated[float, Field(gt=0)]
    """99th percentile over runs."""
    runs: Annotated[int, Field(ge=1)]
    """Batches that were timed."""

    @classmethod
    def of(cls, rows: int, seconds: Sequence[float] | NDArray[np.float64]) -> Self:
        """From the times of the batches."""
        return cls(rows=rows, median_s=float(np.median(seconds)), p99_s=float(np.quantile(seconds, 0.99)), runs=len(seconds))


class StageService(_Part):
    """How long one stage takes: a batch of n rows takes a_s + b_s * n seconds."""

    name: Text
    """Name of the stage."""
    digest: Text
    """Identifies the weights, the network and its precision."""
    a_s: Annotated[float, Field(ge=0)]
    """Time of a batch before its first row."""
    b_s: Annotated[float, Field(ge=0)]
    """Time that each row adds."""
    measured: tuple[MeasuredBatch, ...]
    """What the two were fitted on."""

    @property
    def row_s(self) -> float:
        """Seconds of a row in the largest batch that was timed; of a row alone where none was."""
        largest = max(self.measured, key=lambda each: each.rows, default=None)
        return self.a_s + self.b_s if largest is None else largest.median_s / largest.rows

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.a_s + self.b_s <= 0:
            raise ValueError("a_s and b_s cannot both be 0")
        return self


class Machine(_Part):
    """Where times were measured; free text, so that no host need be named."""

    kind: Text
    """Processor or accelerator."""
    cpu_count: Annotated[int, Field(ge=1)]
    """Processors that the measurement could use."""
    torch_threads: Annotated[int, Field(ge=1)]
    """Threads that torch used."""


class ServiceProfile(_File):
    """service.json: the service-time model of every stage."""

    format_version: Literal[1]
    """Version of this file format."""
    created_by: Text
    """Program and version that wrote the file."""
    ladder: Text
    """Name of the ladder."""
    machine: Machine
    """Where it was measured."""
    stages: Annotated[tuple[StageService, ...], Field(min_length=1)]
    """The stages, cheapest first."""

    def check_belongs(self, stage_names: Sequence[str], digests: Mapping[str, str]) -> None:
        """Refuse to plan with other models' times; see `Calibration.check_belongs`.

        Raises:
            CalibrationMismatch: naming the first stage that differs and what to run.
        """
        _check_belongs("service profile", [(stage.name, stage.digest) for stage in self.stages], stage_names, digests)


def _check_belongs(
    file: str, made_for: Sequence[tuple[str, str]], stage_names: Sequence[str], digests: Mapping[str, str]
) -> None:
    known = dict(made_for)
    for name in stage_names:
        if name not in known:
            raise CalibrationMismatch(f"stage {name!r} of the ladder is not in the {file}; {_REMAKE}")
        if known[name] != digests[name]:
            raise CalibrationMismatch(
                f"stage {name!r}: the {file} was made for digest {known[name]}, the ladder now has {digests[name]}; "
                f"{_REMAKE}"
            )
    for name in known:
        if name not in stage_names:
            raise CalibrationMismatch(f"stage {name!r} of the {file} is not in the ladder; {_REMAKE}")
    for name, here in zip(known, stage_names, strict=True):
        if name != here:
            raise CalibrationMismatch(f"stage {here!r} stands where the {file} has {name!r}; {_REMAKE}")


def _sentence(error: ValidationError) -> str:
    """Say what is wrong with the first wrong field, and how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"])
    given: Any = first["input"]
    shown = f", got {given!r}" if isinstance(given, str | int | float | None) and first["type"] != "json_invalid" else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field + ': ' if field else ''}{first['msg']}{shown}{more}"
