"""Makes cheaper variants of a ladder's stages, each a stage that a spec can name, with its weights in a file. Knows no Ray.

Training rows come from a file of their own; rows that calibrate or test the ladder are left out of it. What a variant is
worth is measured in `cascade.rungs`.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cascade.errors import ConfigError
from cascade.loading import network_of
from cascade.models.compress import How, Method, Rows, Source, Student, Variant, make
from cascade.models.stage import Arrays
from cascade.rows import read_rows
from cascade.spec import Ladder, StageSpec

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of it that is done."""


@dataclass(frozen=True, eq=False)
class Made:
    """A variant that has become a stage, with its weights in a file."""

    stage: StageSpec
    parent: str
    variant: Variant


def training_rows(ladder: Ladder, path: Path) -> tuple[Rows, int]:
    """Read rows to train on, and leave out those that calibrate or test the ladder.

    Args:
        ladder: says what rows look like, and where the others are.
        path: ``.npz`` like the ladder's own data files.

    Returns:
        The rows, and how many were left out.

    Raises:
        ConfigError: the file is not as the spec says, holds BYTES, or nothing but rows of the other files.
    """
    inputs, labels = read_rows(ladder, path)
    if any(array.dtype == object for array in inputs.values()):
        raise ConfigError(f"{path}: a network over BYTES cannot be compressed here")
    taken: set[bytes] = set()
    for other in (ladder.spec.data.calibration, ladder.spec.data.test):
        if ladder.path(other).is_file():
            taken.update(_row_digests(read_rows(ladder, ladder.path(other))[0]))
    keep = np.array([digest not in taken for digest in _row_digests(inputs)])
    if not keep.any():
        raise ConfigError(f"{path}: all its rows are calibration or test rows, which nothing may be trained on")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(array[keep])) for array in inputs.values())
    return Rows(tensors, torch.from_numpy(labels[keep])), int((~keep).sum())


def make_variant(
    ladder: Ladder,
    stage: StageSpec,
    method: Method,
    how: How,
    rows: Rows | None,
    out: Path,
    *,
    progress: Progress | None = None,
) -> Made:
    """Make one variant of a stage and write its weights to ``out/weights``.

    Args:
        ladder: the ladder.
        stage: one of its stages.
        method: how.
        how: details.
        rows: training rows.
        out: folder.
        progress: told how far a training is.

    Raises:
        ConfigError: see `cascade.models.compress.make`; or a file cannot be written.
    """
    name = f"{stage.name}-{method}"
    if not stands_alone(stage):
        raise ConfigError(
            f"stage {stage.name!r} is an exit of a network; only stages that have one of their own can be made cheaper"
        )
    source = Source(stage.model.factory, stage.model.args, network_of(ladder, stage).float().eval())
    example = tuple(torch.from_numpy(array.copy()) for array in ladder.example_row().values())
    told = None if progress is None else lambda share, what: progress(f"{name}: {what}", share)
    try:
        variant = make(method, source, example, rows, how, clock=time.process_time, progress=told)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.detail}") from error
    except RuntimeError as error:  # of torch, about the user's own network
        raise ConfigError(f"{name}: {error}") from error
    path = out / "weights" / f"{name}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().contiguous() for key, value in variant.state.items()}, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    model = {"factory": variant.factory, "args": variant.args, "weights": _relative(path, ladder.root)}
    execution = stage.execution.model_dump() | {"cast_weights": variant.precision != "float32"}
    fields = {"name": name, "model": model, "precision": variant.precision, "execution": execution}
    written = StageSpec.model_validate(stage.model_dump() | fields | {"placement": "replica", "base_price": None})
    return Made(written, stage.name, variant)


def stands_alone(stage: StageSpec) -> bool:
    """Whether a stage has a network of its own, and is no exit of one that others share."""
    return not stage.resumes and stage.model.exit is None


def student_of(ladder: Ladder, name: str, args: dict[str, Any]) -> Student:
    """What to distil into: a stage of the ladder, which goes on from its own weights, or a factory, which begins afresh.

    Raises:
        ConfigError: neither such a stage nor a factory.
    """
    for stage in ladder.spec.stages:
        if stage.name == name:
            if args:
                raise ConfigError(f"the student is the stage {name!r}, which has arguments of its own: leave them out")
            weights = ladder.weights(stage)
            return Student(stage.model.factory, stage.model.args, None if weights is None else load_file(weights))
    if ":" not in name:
        names = ", ".join(stage.name for stage in ladder.spec.stages)
        raise ConfigError(f"the student {name!r} is neither a stage ({names}) nor a factory package.module:callable")
    return Student(name, args)


def _row_digests(inputs: Arrays) -> list[bytes]:
    arrays = [np.ascontiguousarray(array) for array in inputs.values()]
    return [
        hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays), digest_size=16).digest()
        for row in range(len(arrays[0]))
    ]


def _relative(path: Path, root: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
