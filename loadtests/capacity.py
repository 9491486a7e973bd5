"""What a stage can do, from what it did in a window: arithmetic on a server's counters. Knows no server and no client.

With differences over a window of T seconds, for a stage with r replicas that hold c batches each:

    rate       = rows / T                                 rows a second that it got through
    occupancy  = run time of its batches / (T r c)        share of its places that held a batch, 1 when saturated
    capacity   = max(rate, r B / (S(B) q)),               q = run time / (a batches + b rows)

S(n) = a + b n is the profiled service time, q how much slower batches are here, and B the largest batch. The rate is what a
saturated stage can do; there calls wait for each other in a replica, which makes q, and so the second term, too pessimistic.
The second term is for a stage that the stages before it cannot fill: its calls do not overlap, so its places do not count.

Stages that share replicas take turns there, so what one of them could do alone follows from what they did together: with
w = S(B) / B of each,

    capacity of k = (sum of rate_j w_j over the stages j of the group) / w_k,

as long as the replicas always had work, which `occupancy` says: the calls of the whole group by the places of one stage.

`unit_rate` is the requests a second if all of them went to the top: the last stage's capacity, or, where it shares replicas
with the stages before it, what these can do for rows that visit all of them, 1 / sum of 1 / capacity.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cascade.calibration.artefact import StageService
from cascade.errors import ConfigError
from cascade.spec import StageSpec

SATURATED = 0.85
"""Occupancy of the last stage below which its capacity is an estimate rather than a measurement."""


@dataclass(frozen=True)
class Counters:
    """What one stage has done since the server started.

    Attributes:
        batches: batches that came back.
        rows: rows in them.
        run_s: seconds from call to return, summed over the batches.
    """

    batches: int
    rows: int
    run_s: float

    def since(self, before: "Counters") -> "Counters":
        """What was done between two readings."""
        return Counters(self.batches - before.batches, self.rows - before.rows, self.run_s - before.run_s)


@dataclass(frozen=True)
class Window:
    """One stage, kept busy for a while.

    Attributes:
        stage: its name.
        seconds: length of the window.
        answered_per_s: answers with status 200 a second as the client saw them, but for those that keep the last stage busy.
        refused: answers with another status.
        rate: rows a second that the stage got through.
        batch: mean rows in a batch.
        occupancy: see the module.
        capacity: rows a second that the stage can do, see the module.
        client_share: CPU of the load client, share of one core.
    """

    stage: str
    seconds: float
    answered_per_s: float
    refused: int
    rate: float
    batch: float
    occupancy: float
    capacity: float
    client_share: float


@dataclass(frozen=True)
class Measured:
    """What a server can do.

    Attributes:
        unit_rate: requests a second if all went through the top stage.
        stage0_rate: requests a second that get through stage 0.
        rows_per_s: rows a second of each stage, by name, medians.
        spread: (largest - smallest) / median of the repeats, by stage; of the rate for the first.
        seconds: length of a window.
        windows: everything that was measured.
    """

    unit_rate: float
    stage0_rate: float
    rows_per_s: dict[str, float]
    spread: dict[str, float]
    seconds: float
    windows: tuple[Window, ...]

    @property
    def saturated(self) -> bool:
        """Whether the last stage was the bottleneck whenever it was measured; if not, `unit_rate` is an estimate."""
        last = list(self.rows_per_s)[-1]
        return all(window.occupancy >= SATURATED for window in self.windows if window.stage == last)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Undo `document`, from a file.

        Raises:
            ConfigError: it cannot be read, or is something else.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**document, "windows": tuple(Window(**window) for window in document["windows"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: not a measured capacity: {error}") from error


def counters_of(document: Mapping[str, Any], model: str, stages: Sequence[str]) -> list[Counters]:
    """Each stage's counters out of the document of ``GET /v2/models/{model}/stats``.

    Raises:
        ConfigError: a stage is missing.
    """
    entries = {entry["name"]: entry for entry in document["model_stats"]}
    found = []
    for stage in stages:
        entry = entries.get(f"{model}.{stage}")
        if entry is None:
            raise ConfigError(f"the statistics of model {model!r} name no stage {stage!r}, only {', '.join(entries)}")
        run = entry["inference_stats"]["compute_infer"]
        found.append(Counters(entry["execution_count"], entry["inference_count"], run["ns"] * 1e-9))
    return found


def capacity_of(done: Counters, seconds: float, stage: StageSpec, profiled: StageService) -> tuple[float, float]:
    """A stage's capacity and occupancy from what it did in a window; the formulae are in the module's docstring.

    Args:
        done: differences of its counters.
        seconds: length of the window.
        stage: the stage.
        profiled: its service time.

    Returns:
        Rows a second, and the occupancy.

    Raises:
        ConfigError: the stage did nothing in the window.
    """
    if not done.batches or not done.rows:
        raise ConfigError(f"stage {stage.name!r} ran no batch while it was to be kept busy for {seconds:g} s")
    replicas = 1 if stage.placement == "router" else stage.replicas
    occupancy = done.run_s / (seconds * places(stage))
    slower = done.run_s / (profiled.a_s * done.batches + profiled.b_s * done.rows)
    full_s = (profiled.a_s + profiled.b_s * stage.max_batch_size) * slower
    return max(done.rows / seconds, replicas * stage.max_batch_size / full_s), occupancy


def shared_capacity(
    done: Sequence[Counters], seconds: float, stages: Sequence[StageSpec], profiled: Sequence[StageService], index: int
) -> tuple[float, float]:
    """The same as `capacity_of` for a stage that shares replicas.

    Args:
        done: differences of the counters of every stage on these replicas.
        seconds: length of the window.
        stages: they, as placed.
        profiled: their service times.
        index: which of them.

    Returns:
        Rows a second that the stage could do alone, and the occupancy of the replicas, at most 1.

    Raises:
        ConfigError: the stage did nothing in the window.
    """
    if not done[index].rows:
        raise ConfigError(f"stage {stages[index].name!r} ran no batch while it was to be kept busy for {seconds:g} s")
    row_s = [each.a_s / stage.max_batch_size + each.b_s for each, stage in zip(profiled, stages, strict=True)]
    busy = sum(each.rows / seconds * work_s for each, work_s in zip(done, row_s, strict=True))
    occupancy = sum(each.run_s for each in done) / (seconds * places(stages[0]))
    return busy / row_s[index], min(1.0, occupancy)


def summarise(windows: Sequence[Window], stages: Sequence[str], together: Sequence[int] = ()) -> Measured:
    """Medians and spreads of repeated windows.

    Args:
        windows: in any order, at least one of each stage.
        stages: names, cheapest first.
        together: indices of the stages on the last one's replicas, if there are others.
    """
    of_stage = {stage: [window for window in windows if window.stage == stage] for stage in stages}
    rows_per_s = {stage: median(window.capacity for window in found) for stage, found in of_stage.items()}
    spread = {stage: _spread([window.capacity for window in found]) for stage, found in of_stage.items()}
    through = [window.rate for window in of_stage[stages[0]]]
    spread[stages[0]] = _spread(through)
    requests_per_s = unit_rate([rows_per_s[stages[k]] for k in together or [-1]])
    return Measured(requests_per_s, median(through), rows_per_s, spread, windows[0].seconds, tuple(windows))


def unit_rate(rows_per_s: Sequence[float]) -> float:
    """Requests a second through the top stage, see the module; of it and the stages on its replicas, if there are others."""
    return 1 / sum(1 / each for each in rows_per_s)


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / median(values)


def places(stage: StageSpec) -> int:
    """Batches that may be with a stage's replicas."""
    return 1 if stage.placement == "router" else stage.replicas * stage.calls_per_replica
