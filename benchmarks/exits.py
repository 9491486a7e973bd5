"""A network with exits that resume against the same exits as separate models: rows a second, and CPU a row, in one run.

    python -m benchmarks.exits                 # a network trained on the spot, minutes; in one process and served
    python -m benchmarks.exits --spec FILE     # a ladder of exits of your own, or where to keep the one that is trained
    python -m benchmarks.exits --only loop     # without a server

Both sides have the same network, weights, rows and exit decisions. What differs is whether an exit goes on from where the
one before stopped, or begins at the pixels.
"""

import copy
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import typer
import yaml
from numpy.typing import NDArray
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.ladders import DEADLINE_S, MANY, messages
from benchmarks.measure import Given, Load, Point, check, measure
from benchmarks.systems import System
from cascade.calibration.artefact import Calibration
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.console import console, progress_bar
from cascade.loading import load_chain, load_network
from cascade.models.exit_networks import ResidualExits
from cascade.models.exits import Segment
from cascade.models.flops import macs
from cascade.models.kept import KeptStates
from cascade.models.stage import TorchStage
from cascade.profiling import profile
from cascade.rows import read_rows
from cascade.serving.environment import free_port
from cascade.serving.states import Kept, gather_states
from cascade.spec import Ladder

SHIPPED = Path(__file__).resolve().parent.parent / "deployments" / "fashion" / "cascade.yaml"
FACTORY = "cascade.models.exit_networks:ResidualExits"
BATCH = 32
TRAIN_SHARE = 0.6
"""Of the shipped calibration rows; the others calibrate."""
EPOCHS = 12
ROWS_OF_STEP = 64
GAIN_PER_TOP = 0.003
"""What running a row through the whole network must promise: the price of its cost."""

Decisions = NDArray[np.intp]
Run = Callable[[NDArray[Any], Decisions], NDArray[np.int64]]
"""Rows and the exit of each to the labels that they leave with."""


# -- the ladder --------------------------------------------------------------------------------------------------------


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], epochs: int) -> ResidualExits:
    """A network trained briefly, all exits together: enough for exits that differ as they should, not for a record.

    Args:
        images: uint8 [n, height, width].
        labels: [n].
        epochs: passes over them.
    """
    torch.manual_seed(0)
    network = ResidualExits()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(images) // ROWS_OF_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    pixels, truth = torch.from_numpy(images), torch.from_numpy(labels)
    order = torch.Generator().manual_seed(0)
    with progress_bar() as bar:
        task = bar.add_task(f"training on {len(pixels):,} rows", total=epochs * len(pixels))
        for _ in range(epochs):
            for rows in torch.randperm(len(pixels), generator=order).split(ROWS_OF_STEP):
                logits = network.train()(pixels[rows])
                loss = sum(F.cross_entropy(logits[:, exit_], truth[rows]) for exit_ in range(network.exits))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[union-attr]  # of at least one exit
                optimiser.step()
                schedule.step()
                bar.advance(task, len(rows))
    return network.eval()


def write_ladder(path: Path, epochs: int) -> None:
    """Train the network, and write a ladder of its exits that run together; ``path`` is that of its spec."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    shipped = Ladder.read(SHIPPED)
    inputs, labels = read_rows(shipped, shipped.path(shipped.spec.data.calibration))
    test, test_labels = read_rows(shipped, shipped.path(shipped.spec.data.test))
    count = int(TRAIN_SHARE * len(labels))
    network = train(inputs["image"][:count], labels[:count], epochs)
    (folder / "data").mkdir()
    np.savez(folder / "data" / "calibration.npz", image=inputs["image"][count:], labels=labels[count:])
    np.savez(folder / "data" / "test.npz", image=test["image"], labels=test_labels)
    save_file(network.state_dict(), folder / "network.safetensors")
    row = torch.from_numpy(inputs["image"][:1])
    upto = [macs(Segment(network, exit_), row) for exit_ in range(network.exits)]
    stages = []
    for exit_, cost in enumerate(np.diff(upto, prepend=0).tolist()):
        stage: dict[str, Any] = {
            "name": f"exit{exit_}",
            "model": {"factory": FACTORY, "weights": "network.safetensors", "exit": exit_},
            "cost": cost,
            "max_batch_size": BATCH,
        }
        stages.append(stage | ({"resumes": True, "placement": "together"} if exit_ else {}))
    document = {
        "name": "exits",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [28, 28]}],
        "labels": list(shipped.spec.labels),
        "price_per_cost": GAIN_PER_TOP / upto[-1],
        "stages": stages,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def variants(spec: Path, folder: Path) -> dict[str, Ladder]:
    """The ladder served in three ways, each calibrated from the same outcomes; what they do with a row is the same.

    Args:
        spec: the ladder of exits.
        folder: where to write, empty.
    """
    source = Ladder.read(spec)
    document = yaml.safe_load(spec.read_text(encoding="utf-8"))
    document["deadline"] = {"default_s": DEADLINE_S, "max_s": DEADLINE_S}
    document["audit_share"] = 0.0
    document["data"] = {name: str(source.path(path)) for name, path in source.spec.data.model_dump().items()}
    prices, alone = source.spec.base_prices, source.spec.costs_alone
    for stage, of_spec, price in zip(document["stages"], source.spec.stages, prices, strict=True):
        stage["model"]["weights"] = str(source.weights(of_spec))
        stage["base_price"] = price  # the same decisions, whatever a visit costs
    apart, separate = copy.deepcopy(document), copy.deepcopy(document)
    for stage, model, cost in zip(apart["stages"], separate["stages"], alone, strict=True):
        if stage.get("placement") == "together":
            stage["placement"] = model["placement"] = "replica"
        model |= {"cost": cost, "resumes": False}
    found = {}
    for name, each in (("together", document), ("apart", apart), ("separate", separate)):
        path = folder / name / "cascade.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(each, sort_keys=False), encoding="utf-8")
        found[name] = Ladder.read(path)
    return found


@dataclass(frozen=True)
class JudgedTestRows:
    """Test rows, and where they leave.

    Attributes:
        table: what every exit says of them.
        exits: [rows] the exit at which each leaves.
    """

    table: OutcomeTable
    exits: Decisions


def calibrate(ladders: dict[str, Ladder]) -> JudgedTestRows:
    """Profile each ladder, calibrate the first, and give all of them its calibration; where its test rows leave."""
    from cascade.calibration.fitting import fit

    first = next(iter(ladders.values()))
    with progress_bar() as bar:
        task = bar.add_task("profile", total=float(len(ladders) + 1))
        calibration: Calibration | None = None
        for number, ladder in enumerate(ladders.values()):
            rows = ladder.path(ladder.spec.data.calibration)

            def told(what: str, share: float, number: int = number) -> None:
                bar.update(task, completed=number + share, description=f"profile {what}")

            table, service = profile(ladder, rows, "calibration", told)
            ladder.service_path.parent.mkdir()
            # No table goes beside it: a server that has one charges more under load, and would decide otherwise.
            service.write(ladder.service_path)
            if calibration is None:
                calibration = fit(table, ladder.stage_digests(), ladder=ladder.spec.name, prices=ladder.spec.base_prices)
            digests = ladder.stage_digests()
            stages = tuple(stage.model_copy(update={"digest": digests[stage.name]}) for stage in calibration.stages)
            calibration.model_copy(update={"stages": stages}).write(ladder.calibration_path)
        test, _ = profile(first, first.path(first.spec.data.test), "test", lambda *_: None)
        bar.update(task, completed=float(len(ladders) + 1))
    assert calibration is not None
    return JudgedTestRows(test, judge_table(test, calibration).exits(first.spec.base_prices))


# -- in one process ----------------------------------------------------------------------------------------------------


def resuming(stages: Sequence[TorchStage], *, keep: bool) -> Run:
    """A loop over batches that goes on where the exit before stopped.

    Args:
        stages: the exits' segments.
        keep: whether states stay with the network, as where stages run together, or are handed on as arrays.
    """
    store = KeptStates(1 << 30, 1e9, time.monotonic)

    def run(images: NDArray[Any], exits: Decisions) -> NDArray[np.int64]:
        labels = np.empty(len(images), np.int64)
        going = np.arange(len(images))
        slots: dict[int, Any] = {}
        for index, stage in enumerate(stages):
            for start in range(0, len(going), BATCH):
                rows = going[start : start + BATCH]
                inputs: Any = {"image": images[rows]}
                if index and keep:
                    inputs, places = store.take(np.array([slots.pop(row) for row in rows.tolist()]))
                    rows = rows[places]
                elif index:
                    inputs = gather_states([slots.pop(row) for row in rows.tolist()])
                result = stage.run(inputs, keep=keep)
                labels[rows] = result.logits.argmax(axis=1)
                if result.kept is not None:
                    kept = store.keep(result.kept)
                    store.free(kept[exits[rows] <= index])
                    slots.update(zip(rows.tolist(), kept.tolist(), strict=True))
                elif result.state is not None:
                    slots.update((row, Kept(index, result.state, place)) for place, row in enumerate(rows.tolist()))
            going = going[exits[going] > index]
        return labels

    return run


def beginning_again(stages: Sequence[TorchStage]) -> Run:
    """The same loop over separate models, each of which begins at the pixels."""

    def run(images: NDArray[Any], exits: Decisions) -> NDArray[np.int64]:
        labels = np.empty(len(images), np.int64)
        going = np.arange(len(images))
        for index, stage in enumerate(stages):
            for start in range(0, len(going), BATCH):
                rows = going[start : start + BATCH]
                labels[rows] = stage.run({"image": images[rows]}).logits.argmax(axis=1)
            going = going[exits[going] > index]
        return labels

    return run


def loops(ladders: dict[str, Ladder], images: NDArray[Any], exits: Decisions, rounds: int) -> dict[str, Any]:
    """Rows a second and CPU of each loop, in alternating rounds; all must answer alike."""
    chain = load_chain(ladders["together"], range(len(ladders["together"].spec.stages)))
    separate = [load_network(ladders["separate"], stage) for stage in ladders["separate"].spec.stages]
    runs = {
        "exits, states kept": resuming(chain, keep=True),
        "exits, states as arrays": resuming(chain, keep=False),
        "separate models": beginning_again(separate),
    }
    labels = {name: run(images, exits) for name, run in runs.items()}
    alike = {name: float(np.mean(each == labels["separate models"])) for name, each in labels.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with progress_bar() as bar:
        task = bar.add_task("loops", total=rounds * len(runs))
        for number in range(rounds):
            for name, run in list(runs.items())[:: 1 if number % 2 == 0 else -1]:
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                run(images, exits)
                wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
                found[name].append((len(images) / wall_s, 1e3 * cpu_s / len(images)))
                bar.advance(task)
    return {
        name: {"rows_per_s": [rate for rate, _ in each], "cpu_ms": [ms for _, ms in each], "alike": alike[name]}
        for name, each in found.items()
    }


# -- served ------------------------------------------------------------------------------------------------------------


def served(
    ladders: dict[str, Ladder], images: NDArray[Any], rounds: int, seconds: float, connections: int
) -> dict[str, Any]:
    """Rows a second and CPU of every process of a server of each ladder, one server at a time in alternating rounds.

    Requests hold many rows: taking a request of one row costs several times what these networks do.
    """
    requests = messages(next(iter(ladders.values())), images)["many"]
    stages = [stage.name for stage in next(iter(ladders.values())).spec.stages]
    points: dict[str, list[Point]] = {name: [] for name in ladders}
    answers: dict[str, list[Given | None]] = {}
    with progress_bar() as bar, tempfile.TemporaryDirectory() as logs:
        task = bar.add_task("served", total=rounds * len(ladders))
        for number in range(rounds):
            for name, ladder in list(ladders.items())[:: 1 if number % 2 == 0 else -1]:
                port = free_port()
                spec = ladder.root / "cascade.yaml"
                command = [sys.executable, "-m", "cascade.cli", "serve", str(spec), "--port", str(port)]
                system = System(command, port, Path(logs) / f"{name}.log")
                try:
                    system.wait_for_answer(requests[0])
                    check(system, requests, stages)  # the first calls to each stage are slow, and may be given up
                    answers.setdefault(name, check(system, requests, stages))
                    load = Load(name, connections=connections, rows=MANY)
                    points[name].append(
                        measure(system, requests, answers[name], stages, load, warm_s=3.0, seconds=seconds, seed=number)
                    )
                finally:
                    system.stop()
                bar.advance(task)
    reference = answers["separate"]
    return {
        name: {
            "rows_per_s": [MANY * point.throughput for point in each],
            "cpu_ms": [point.cpu_ms / MANY for point in each],
            "p50_ms": [point.p50_ms for point in each],
            "other_share": [point.other_share for point in each],
            "cpu_ms_by_process": {kind: ms / MANY for kind, ms in each[-1].cpu_ms_by_process.items()},
            "alike": float(np.mean([a == b for a, b in zip(answers[name], reference, strict=True)])),
            "wrong": sum(point.wrong for point in each),
        }
        for name, each in points.items()
    }


# -- the command -------------------------------------------------------------------------------------------------------


def _show(title: str, found: dict[str, Any], reference: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "rows/s", "spread", "CPU-ms a row", "spread", "of the separate models' CPU", "answers alike"):
        table.add_column(column, justify="left" if not column else "right")
    base = float(np.median(found[reference]["cpu_ms"]))
    for name, each in found.items():
        rates, cpu = np.array(each["rows_per_s"]), np.array(each["cpu_ms"])
        table.add_row(
            name,
            f"{np.median(rates):,.0f}",
            f"{rates.min():,.0f} to {rates.max():,.0f}",
            f"{np.median(cpu):.3f}",
            f"{cpu.min():.3f} to {cpu.max():.3f}",
            f"{np.median(cpu) / base:.0%}",
            f"{each['alike']:.2%}",
        )
    console.print(table)


def main(
    spec: Annotated[
        Path | None,
        typer.Option(help="A ladder of exits over `image`; trained and written there if there is none. Default: not kept."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Test rows.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison; of servers half as many, at least one.")] = 6,
    seconds: Annotated[float, typer.Option(help="Window of a server under load.")] = 8.0,
    connections: Annotated[int, typer.Option(help="Of the closed loop that loads a server.")] = 8,
    epochs: Annotated[int, typer.Option(help="Of the training, without --spec.")] = EPOCHS,
    only: Annotated[Literal["loop", "served"] | None, typer.Option(help="One of the comparisons.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all that was measured, as JSON.")] = None,
) -> None:
    """Compare exits that resume with the same exits as separate models."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server that runs is stopped
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = spec or folder / "ladder" / "cascade.yaml"
        if not path.exists():
            write_ladder(path, epochs)
        ladders = variants(path, folder)
        judged = calibrate(ladders)
        first = ladders["together"]
        inputs, _ = read_rows(first, first.path(first.spec.data.test))
        images, exits = inputs["image"][:rows], judged.exits[:rows]
        shares = np.bincount(exits, minlength=len(first.spec.stages)) / len(exits)
        names = [stage.name for stage in first.spec.stages]
        for name, share, cost in zip(names, shares, first.spec.costs_alone, strict=True):
            right = judged.table.correct(name).mean()
            console.print(
                f"{name}: {right:.2%} right alone, {cost:,.0f} from the inputs on; {share:.1%} of the rows leave here"
            )
        document: dict[str, Any] = {"exits": dict(zip(names, shares.tolist(), strict=True)), "rows": len(images)}
        if only != "served":
            document["loop"] = loops(ladders, images, exits, rounds)
            _show(f"one process, one thread, batches of {BATCH}", document["loop"], "separate models")
        if only != "loop":
            document["served"] = served(ladders, images, max(1, rounds // 2), seconds, connections)
            _show(f"served, {connections} connections, {MANY} rows a request", document["served"], "separate")
    if out is not None:
        out.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
