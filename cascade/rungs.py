"""What rungs are worth: a ladder's stages and variants of them, run over the same rows and timed in turns. Knows no Ray.

Timed in turns, so that whatever else the machine does hits all of them alike, and a ratio of two times is one of times taken
next to each other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from cascade import __version__
from cascade.calibration.artefact import MeasuredBatch, ServiceProfile
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.service_time import stage_service
from cascade.compressing import Made, Progress, stands_alone
from cascade.errors import ConfigError
from cascade.loading import load_network, network_of
from cascade.models.compress import Method
from cascade.models.flops import macs
from cascade.models.stage import Arrays, TorchStage
from cascade.profiling import machine, run_all
from cascade.rows import read_rows
from cascade.spec import Ladder, StageSpec

RUNS = 30
"""Batches timed at each size."""
LONGEST_S = 3.0
"""Timing of one stage at one size stops after this."""
LEAST_RUNS = 5
"""But not before so many."""
SURE = 2.0
"""Standard errors by which a difference must exceed none to be called one."""


@dataclass(frozen=True)
class Rung:
    """One rung, of the ladder or new, as it was measured.

    Attributes:
        stage: as a spec names it; its cost is `row_s`.
        parent: name of the stage that it is a variant of; None for a stage of the ladder.
        method: how it was made.
        note: what happened then.
        macs: multiply-accumulates of a row; None where they cannot be counted.
        size: bytes of its weights file.
        accuracy: share of the calibration rows that it has right.
        change: its accuracy less its parent's, by the same rows.
        change_se: standard error of that.
        full: the largest batch that was timed.
        one: a batch of one row.
        speed: how many times faster than its parent it is at full batches, the median over the turns.
        speed_se: standard error of that.
    """

    stage: StageSpec
    parent: str | None
    method: Method | None
    note: str
    macs: int | None
    size: int
    accuracy: float
    change: float
    change_se: float
    full: MeasuredBatch
    one: MeasuredBatch
    speed: float
    speed_se: float

    @property
    def row_s(self) -> float:
        """Seconds of a row in a full batch."""
        return self.full.median_s / self.full.rows

    @property
    def is_cheaper(self) -> bool:
        """Whether it is faster than its parent, by more than chance."""
        return self.speed - SURE * self.speed_se > 1.0

    @property
    def verdict(self) -> str:
        """What that means, in words; empty for a stage of the ladder."""
        if self.parent is None:
            return ""
        if self.speed + SURE * self.speed_se < 1.0:
            return f"slower than {self.parent}: it earns no place"
        if not self.is_cheaper:
            return f"no cheaper than {self.parent}: it earns no place"
        if self.change + SURE * self.change_se < 0:
            return f"cheaper than {self.parent}, and less accurate"
        return f"cheaper than {self.parent}, and as accurate as far as these rows tell"

    def document(self) -> dict[str, Any]:
        """The rung as plain values for JSON."""
        return {
            "stage": self.stage.model_dump(mode="json", exclude_defaults=True),
            "parent": self.parent,
            "method": self.method,
            "note": self.note,
            "macs": self.macs,
            "bytes": self.size,
            "accuracy": self.accuracy,
            "accuracy_change": self.change,
            "accuracy_change_se": self.change_se,
            "seconds_a_row": self.row_s,
            "full_batch": self.full.model_dump(mode="json"),
            "one_row": self.one.model_dump(mode="json"),
            "speed": self.speed,
            "speed_se": self.speed_se,
            "cheaper": self.is_cheaper,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class Compressed:
    """The stages of a ladder and their variants, by rising seconds of a row."""

    rungs: tuple[Rung, ...]
    table: OutcomeTable
    """Outcomes of all on the calibration rows; costs are seconds of a row."""
    test: OutcomeTable | None
    """The same on the test rows, where that was asked for."""
    service: ServiceProfile
    """Service times of all."""


def measure(ladder: Ladder, made: Sequence[Made], *, test: bool = False, progress: Progress | None = None) -> Compressed:
    """Run and time all stages of a ladder that have a network of their own, and all variants.

    Args:
        ladder: the ladder.
        made: variants of its stages.
        test: run the test rows too.
        progress: told how far it is.

    Raises:
        ConfigError: rows, a factory or weights are wrong, or a stage's outputs are no logits of the spec's classes.
    """
    specs = [*filter(stands_alone, ladder.spec.stages), *(each.stage for each in made)]
    stages = [load_network(_only(ladder, spec), spec) for spec in specs]
    splits = ["calibration", *(["test"] if test else [])]
    probs: dict[str, list[NDArray[np.float32]]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    inputs: Arrays = {}
    for number, split in enumerate(splits):
        inputs, labels[split] = read_rows(ladder, ladder.path(getattr(ladder.spec.data, split)))
        probs[split] = []
        for index, (stage, spec) in enumerate(zip(stages, specs, strict=True)):

            def done(share: float, at: float = number + index / len(specs), name: str = spec.name) -> None:
                if progress is not None:
                    progress(f"run {name}", (at + share / len(specs)) / (2 * len(splits)))

            torch.set_num_threads(spec.threads)
            probs[split].append(run_all([stage], inputs, [spec], len(ladder.spec.labels), done)[spec.name])

    def timed(share: float) -> None:
        if progress is not None:
            progress("time all in turns", 0.5 + 0.5 * share)

    times = timed_in_turns(stages, specs, inputs, timed)
    digests = [ladder.stage_digest(spec) for spec in specs]
    rungs = _rungs(ladder, specs, made, probs["calibration"], labels["calibration"], times)
    order = np.argsort([rung.row_s for rung in rungs], kind="stable").tolist()
    tables = [_table(rungs, order, probs[split], labels[split], split) for split in splits]
    service = ServiceProfile(
        format_version=1,
        created_by=f"cascade {__version__}",
        ladder=ladder.spec.name,
        machine=machine(),
        stages=tuple(stage_service(specs[index].name, digests[index], _measured(times[index])) for index in order),
    )
    return Compressed(tuple(rungs[index] for index in order), tables[0], tables[1] if test else None, service)


def timed_in_turns(
    stages: Sequence[TorchStage], specs: Sequence[StageSpec], inputs: Arrays, done: Callable[[float], None]
) -> list[dict[int, NDArray[np.float64]]]:
    """Time stages at growing batch sizes, one batch of each in turn.

    Args:
        stages: ready to run.
        specs: of each.
        inputs: rows to run.
        done: told the share that is done.

    Returns:
        For each stage, seconds of its batches by their size, in the order of the turns.
    """
    rows = len(next(iter(inputs.values())))
    times: list[dict[int, NDArray[np.float64]]] = [{} for _ in stages]
    steps = max(len(_sizes(spec)) for spec in specs)
    for step in range(steps):
        sizes = [_sizes(spec) for spec in specs]
        picked = [(size[min(step, len(size) - 1)], step < len(size)) for size in sizes]
        taken: list[list[float]] = [[] for _ in stages]
        for turn in range(RUNS):
            for index, (stage, spec, (size, due)) in enumerate(zip(stages, specs, picked, strict=True)):
                if not due or (turn >= LEAST_RUNS and sum(taken[index]) > LONGEST_S):
                    continue
                batch = {name: array[np.arange(size) % rows] for name, array in inputs.items()}
                torch.set_num_threads(spec.threads)
                before = time.perf_counter()
                stage.run(batch)
                taken[index].append(time.perf_counter() - before)
            done((step + (turn + 1) / RUNS) / steps)
        for index, (size, due) in enumerate(picked):
            if due:
                times[index][size] = np.array(taken[index])
    return times


def write(found: Compressed, out: Path) -> list[Path]:
    """Write ``rungs.yaml``, ``outcomes.npz``, ``service.json`` and, where there is one, ``test-outcomes.npz``.

    Args:
        found: what was measured.
        out: folder.

    Raises:
        ConfigError: a file cannot be written.
    """
    paths = [out / name for name in ("rungs.yaml", "outcomes.npz", "service.json", "test-outcomes.npz")]
    stages = [rung.stage.model_dump(mode="json", exclude_defaults=True) for rung in found.rungs]
    text = yaml.safe_dump({"cost_unit": "seconds", "stages": stages}, sort_keys=False, width=120)
    head = "# For cascade.yaml: the ladder's stages and their variants; cost is what a row of a full batch took here.\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(head + text, encoding="utf-8")
        found.table.write(paths[1])
        found.service.write(paths[2])
        if found.test is not None:
            found.test.write(paths[3])
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from error
    return paths if found.test is not None else paths[:-1]


def _rungs(
    ladder: Ladder,
    specs: Sequence[StageSpec],
    made: Sequence[Made],
    probs: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    times: Sequence[dict[int, NDArray[np.float64]]],
) -> list[Rung]:
    right = [(each.argmax(axis=1) == labels).astype(np.float64) for each in probs]
    place = {spec.name: index for index, spec in enumerate(specs)}
    variants = {each.stage.name: each for each in made}
    counted: dict[str, int | None] = {}
    rungs = []
    for index, spec in enumerate(specs):
        variant = variants.get(spec.name)
        parent = index if variant is None else place[variant.parent]
        change = right[index] - right[parent]
        own, other = times[index][max(times[index])], times[parent][max(times[parent])]
        turns = min(len(own), len(other))
        speed, speed_se = _median(other[:turns] / own[:turns])
        # Its kernels are none that torch's counter knows, and the work is the same.
        as_parent = variant is not None and variant.variant.method not in (Method.PRUNED, Method.DISTILLED)
        counted[spec.name] = counted[specs[parent].name] if as_parent else _macs(ladder, spec)
        weights = ladder.weights(spec)
        measured = _measured(times[index])
        rungs.append(
            Rung(
                stage=spec.model_copy(update={"cost": measured[-1].median_s / measured[-1].rows}),
                parent=None if variant is None else variant.parent,
                method=None if variant is None else variant.variant.method,
                note="" if variant is None else variant.variant.note,
                macs=counted[spec.name],
                size=0 if weights is None else weights.stat().st_size,
                accuracy=float(right[index].mean()),
                change=float(change.mean()),
                change_se=float(change.std() / np.sqrt(len(change))),
                full=measured[-1],
                one=measured[0],
                speed=speed,
                speed_se=speed_se,
            )
        )
    return rungs


def _only(ladder: Ladder, stage: StageSpec) -> Ladder:
    """A ladder of one stage, with the files of another."""
    alone = stage.model_copy(update={"base_price": None})
    return Ladder(ladder.spec.model_copy(update={"stages": (alone,)}), ladder.root)


def _macs(ladder: Ladder, stage: StageSpec) -> int | None:
    example = [torch.from_numpy(array.copy()) for array in ladder.example_row().values()]
    try:
        return macs(network_of(ladder, stage).eval(), *example)
    except Exception:  # torch's counter does not know every operator, and a count is no reason to fail
        return None


def _table(
    rungs: Sequence[Rung], order: Sequence[int], probs: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], split: str
) -> OutcomeTable:
    cost = np.array([rungs[index].row_s for index in order])
    for index in range(1, len(cost)):  # a table's costs rise; equal ones are a coincidence of the clock
        cost[index] = max(cost[index], np.nextafter(cost[index - 1], np.inf))
    return OutcomeTable.from_arrays(
        {
            "stages": np.array([rungs[index].stage.name for index in order]),
            "cost": cost,
            "cost_unit": np.array("seconds"),
            "labels": labels,
            "split": np.full(len(labels), split),
            **{f"probs/{rungs[index].stage.name}": probs[index] for index in order},
        }
    )


def _measured(times: dict[int, NDArray[np.float64]]) -> tuple[MeasuredBatch, ...]:
    return tuple(MeasuredBatch.of(size, taken) for size, taken in sorted(times.items()))


def _sizes(spec: StageSpec) -> list[int]:
    return sorted({1, spec.max_batch_size, *(4**k for k in range(1, 6) if 4**k < spec.max_batch_size)})


def _median(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """Median and its standard error, 1.253 s / sqrt(n) for a normal; s from the median absolute deviation."""
    median = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios - median)))
    return median, 1.2533 * spread / float(np.sqrt(len(ratios)))
