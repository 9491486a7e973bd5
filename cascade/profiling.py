"""Runs every stage of a ladder over labelled rows, once: the outcome table and the service-time model. Knows no Ray.

This is the only offline step that runs models; everything after it reads the two files that it writes.
"""

import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from cascade import __version__
from cascade.calibration.artefact import Machine, MeasuredBatch, ServiceProfile, StageService
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.service_time import fit_service_time
from cascade.errors import ConfigError, SpecError
from cascade.models.device import CudaDevice, Device
from cascade.models.energy import EnergyMeter, nvml_meter
from cascade.models.stage import Arrays, Execution, TorchStage, load_weights
from cascade.rows import read_rows
from cascade.spec import Ladder, StageSpec

logger = logging.getLogger("cascade.stage")

RUNS = 30
"""Batches timed at each size; their median is what the service-time model is fitted on."""
LONGEST_S = 3.0
"""Timing of one size stops after this, so that a dear stage does not hold everything up."""
RUNNING_SHARE = 0.8
"""Of the progress of a stage, what running the rows counts for; the rest is timing."""

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of the whole that is done."""


def load_network(ladder: Ladder, stage: StageSpec, *, device: Device | None = None, meter: bool = False) -> TorchStage:
    """Build the network of a stage, load its weights and warm it up.

    Args:
        ladder: the ladder.
        stage: one of its stages.
        device: where it runs; by default the GPU that the process sees if the stage reserves any of one, else the CPU.
        meter: whether to measure the energy that its GPU takes.

    Raises:
        SpecError: the factory is wrong, there is no weights file, or the network does not take the declared inputs.
        ConfigError: the weights file is broken or does not fit the network.
    """
    network = network_of(ladder, stage)
    names = [field.name for field in ladder.spec.inputs]
    if device is None and stage.num_gpus > 0:
        device = _gpu(stage)
    loaded = TorchStage(
        network,
        names,
        precision=stage.precision,
        threads=stage.threads,
        device=device,
        execution=execution_of(stage),
        meter=_meter(stage) if meter and isinstance(device, CudaDevice) else None,
    )
    half = max(1, stage.max_batch_size // 2)
    try:
        loaded.warm_up(ladder.example_row(), sorted({1, 2, half, stage.max_batch_size}))
    except Exception as error:  # the user's own code may raise anything
        raise SpecError(f"stages.{stage.name}.model: its forward fails on rows of zeros: {error}") from error
    return loaded


def network_of(ladder: Ladder, stage: StageSpec) -> nn.Module:
    """Build the network of a stage and load its weights.

    Args:
        ladder: the ladder.
        stage: one of its stages, or one that could be.

    Raises:
        SpecError: the factory is wrong, or there is no weights file.
        ConfigError: the weights file is broken or does not fit the network.
    """
    network = stage.model.build()
    if not isinstance(network, nn.Module):
        raise SpecError(f"stages.{stage.name}.model.factory must return a torch.nn.Module, got {type(network).__name__}")
    weights = ladder.weights(stage)
    if weights is not None:
        try:
            load_weights(network, weights)
        except SafetensorError as error:
            raise ConfigError(f"weights {weights}: not a safetensors file: {error}") from error
    return network


def execution_of(stage: StageSpec) -> Execution:
    """How a stage's network is run."""
    how = stage.execution
    return Execution(
        cast_weights=how.cast_weights,
        channels_last=how.channels_last,
        compile=how.compile,
        graphs=how.graphs,
        buckets=how.buckets or (),
        in_flight=how.in_flight,
        max_rows=stage.max_batch_size,
    )


def _gpu(stage: StageSpec) -> Device | None:
    if torch.cuda.is_available():
        return CudaDevice(stage.num_gpus)
    logger.warning("stage %s reserves a GPU and there is none here: it runs on the CPU, and not as fast", stage.name)
    return None


def _meter(stage: StageSpec) -> EnergyMeter | None:
    return nvml_meter(str(torch.cuda.get_device_properties(0).uuid), shared=stage.num_gpus < 1)


def profile(ladder: Ladder, data: Path, split: str, progress: Progress) -> tuple[OutcomeTable, ServiceProfile]:
    """Run every stage over labelled rows, and time it at growing batch sizes.

    Args:
        ladder: the ladder.
        data: the labelled rows.
        split: what to call these rows in the table, such as ``calibration``.
        progress: told how far it is.

    Raises:
        ConfigError: the rows, a factory or weights are wrong, or a stage's outputs are no logits of the spec's classes.
    """
    inputs, labels = read_rows(ladder, data)
    spec = ladder.spec
    digests = ladder.stage_digests()
    probs: dict[str, NDArray[np.float32]] = {}
    services: list[StageService] = []
    for index, stage in enumerate(spec.stages):
        progress(stage.name, index / len(spec.stages))
        loaded = load_network(ladder, stage)

        def done(share: float, index: int = index, name: str = stage.name) -> None:
            progress(name, (index + RUNNING_SHARE * share) / len(spec.stages))

        probs[stage.name] = run_all(loaded, inputs, stage, len(spec.labels), done)
        measured = measured_batches(loaded, inputs, stage)
        a_s, b_s = fit_service_time([m.rows for m in measured], [m.median_s for m in measured])
        services.append(
            StageService(name=stage.name, digest=digests[stage.name], a_s=a_s, b_s=b_s, measured=tuple(measured))
        )
    progress("done", 1.0)
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array([stage.name for stage in spec.stages]),
            "cost": np.array([stage.cost for stage in spec.stages]),
            "cost_unit": np.array(spec.cost_unit),
            "labels": labels,
            "split": np.full(len(labels), split),
            **{f"probs/{name}": array for name, array in probs.items()},
        }
    )
    service = ServiceProfile(
        format_version=1,
        created_by=f"cascade {__version__}",
        ladder=spec.name,
        machine=machine(),
        stages=tuple(services),
    )
    return table, service


def run_all(
    stage: TorchStage, inputs: Arrays, spec: StageSpec, classes: int, done: Callable[[float], None]
) -> NDArray[np.float32]:
    """Class probabilities of every row, at temperature 1, [N, classes]."""
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, spec.max_batch_size):
        stop = start + spec.max_batch_size
        logits = stage.run({name: array[start:stop] for name, array in inputs.items()}).logits
        expected = (min(stop, rows) - start, classes)
        if logits.shape != expected or not np.isfinite(logits).all():
            raise ConfigError(f"stage {spec.name!r} must return finite logits {expected}, got {logits.shape}")
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        parts.append(shifted / shifted.sum(axis=1, keepdims=True))
        done(min(stop, rows) / rows)
    return np.concatenate(parts).astype(np.float32)


def measured_batches(stage: TorchStage, inputs: Arrays, spec: StageSpec) -> list[MeasuredBatch]:
    """Time a stage at growing batch sizes, one batch at a time, through the same code that serves.

    Args:
        stage: the stage, ready to run.
        inputs: rows to run, again and again if they are few.
        spec: its spec.
    """
    sizes = {min(2**k, spec.max_batch_size) for k in range(13)}
    if stage.pipeline is not None:
        # Between two buckets a batch takes as long as the upper one: the largest of each and the smallest, weighed alike.
        buckets = stage.pipeline.buckets
        sizes = {*buckets, *(bucket + 1 for bucket in buckets[:-1])}
    rows = len(next(iter(inputs.values())))
    measured = []
    for size in sorted(sizes):
        picks = np.arange(size) % rows
        batch = {name: array[picks] for name, array in inputs.items()}
        durations: list[float] = []
        started = time.perf_counter()
        while len(durations) < RUNS and time.perf_counter() - started < LONGEST_S:
            before = time.perf_counter()
            stage.run(batch)
            durations.append(time.perf_counter() - before)
        measured.append(
            MeasuredBatch(
                rows=size,
                median_s=float(np.median(durations)),
                p99_s=float(np.quantile(durations, 0.99)),
                runs=len(durations),
            )
        )
    return measured


def machine() -> Machine:
    """Where this process measures."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return Machine(kind=kind, cpu_count=os.cpu_count() or 1, torch_threads=torch.get_num_threads())
