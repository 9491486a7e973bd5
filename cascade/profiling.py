"""Runs every stage of a ladder over labelled rows, once: the outcome table and the service-time model. Knows no Ray.

This is the only offline step that runs models; everything after it reads the two files that it writes. Stages that resume
each other run over each batch one after the other, so that what they leave needs no more memory than a batch.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cascade import __version__
from cascade.calibration.artefact import Machine, MeasuredBatch, ServiceProfile, StageService
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.service_time import stage_service
from cascade.errors import ConfigError
from cascade.loading import load_chain
from cascade.models.stage import Arrays, TorchStage
from cascade.rows import read_rows
from cascade.spec import Ladder, StageSpec
from cascade.spec_exits import chains

RUNS = 30
"""Batches timed at each size; their median is what the service-time model is fitted on."""
LONGEST_S = 3.0
"""Timing of one size stops after this, so that a dear stage does not hold everything up."""
SAMPLES = 8
"""Different batches that rows are timed in: those of texts take the longer, the longer the longest text."""
RUNNING_SHARE = 0.8
"""Of the progress of a stage, what running the rows counts for; the rest is timing."""

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of the whole that is done."""


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
    resumes = [stage.resumes for stage in spec.stages]
    digests = ladder.stage_digests()
    probs: dict[str, NDArray[np.float32]] = {}
    services: list[StageService] = []
    for chain in chains(spec.stages):
        stages = [spec.placed[index] for index in chain]
        shown = " and ".join(stage.name for stage in stages)
        progress(shown, chain.start / len(spec.stages))
        loaded = load_chain(ladder, chain)

        def done(share: float, chain: range = chain, shown: str = shown) -> None:
            progress(shown, (chain.start + RUNNING_SHARE * share * len(chain)) / len(spec.stages))

        probs |= run_all(loaded, inputs, stages, len(spec.labels), done)
        samples = _samples(inputs, max(stage.max_batch_size for stage in stages))
        for network, stage in zip(loaded, stages, strict=True):
            measured = measured_batches(network, samples, stage)
            services.append(stage_service(stage.name, digests[stage.name], measured))
            samples = [network.run(sample).state or {} for sample in samples]
    progress("done", 1.0)
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array([stage.name for stage in spec.stages]),
            "cost": np.array([stage.cost for stage in spec.stages]),
            **({"resumes": np.array(resumes)} if any(resumes) else {}),
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


def _samples(inputs: Arrays, size: int) -> list[Arrays]:
    """Batches of rows by chance; the same row again and again if there are fewer."""
    rng = np.random.default_rng(0)
    rows = len(next(iter(inputs.values())))
    samples = (np.resize(rng.permutation(rows), size) for _ in range(SAMPLES))
    return [{name: array[picks] for name, array in inputs.items()} for picks in samples]


def run_all(
    loaded: Sequence[TorchStage], inputs: Arrays, stages: Sequence[StageSpec], classes: int, done: Callable[[float], None]
) -> dict[str, NDArray[np.float32]]:
    """Class probabilities of every row by every stage of a chain, at temperature 1, [N, classes] by name."""
    rows = len(next(iter(inputs.values())))
    size = min(stage.max_batch_size for stage in stages)
    parts: dict[str, list[NDArray[np.float32]]] = {stage.name: [] for stage in stages}
    for start in range(0, rows, size):
        stop = start + size
        going: Arrays = {name: array[start:stop] for name, array in inputs.items()}
        for network, stage in zip(loaded, stages, strict=True):
            result = network.run(going)
            logits, going = result.logits, result.state or {}
            expected = (min(stop, rows) - start, classes)
            if logits.shape != expected or not np.isfinite(logits).all():
                raise ConfigError(f"stage {stage.name!r} must return finite logits {expected}, got {logits.shape}")
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            parts[stage.name].append(shifted / shifted.sum(axis=1, keepdims=True))
        done(min(stop, rows) / rows)
    return {name: np.concatenate(each).astype(np.float32) for name, each in parts.items()}


def measured_batches(stage: TorchStage, samples: Sequence[Arrays], spec: StageSpec) -> list[MeasuredBatch]:
    """Time a stage at growing batch sizes, one batch at a time, through the same code that serves.

    Args:
        stage: the stage, ready to run.
        samples: rows to run, in turns; each time others of a sample, again and again if they are few.
        spec: its spec.
    """
    rng = np.random.default_rng(0)
    sizes = {min(2**k, spec.max_batch_size) for k in range(13)}
    if stage.pipeline is not None:
        # Between two buckets a batch takes as long as the upper one: the largest of each and the smallest, weighed alike.
        buckets = stage.pipeline.buckets
        sizes = {*buckets, *(bucket + 1 for bucket in buckets[:-1])}
    measured = []
    for size in sorted(sizes):
        durations: list[float] = []
        started = time.perf_counter()
        while len(durations) < RUNS and time.perf_counter() - started < LONGEST_S:
            sample = samples[len(durations) % len(samples)]
            picks = np.resize(rng.permutation(len(next(iter(sample.values())))), size)
            batch = {name: array[picks] for name, array in sample.items()}
            before = time.perf_counter()
            stage.run(batch)
            durations.append(time.perf_counter() - before)
        measured.append(MeasuredBatch.of(size, durations))
    return measured


def machine() -> Machine:
    """Where this process measures."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return Machine(kind=kind, cpu_count=os.cpu_count() or 1, torch_threads=torch.get_num_threads())
