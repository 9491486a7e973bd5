"""A network that chooses its depth, under growing pressure: accuracy, mean depth and speed, beside fixed depths.

    python benchmarks/halting.py [--rule ponder|act] [--seeds 3] [--epochs 20] [--threads 1] [--out FILE]

Trains `cascade.models.halting_networks.pondering_images` on the 5,000 calibration rows of the Fashion-MNIST ladder, which
trained no network of that ladder, and runs it over the 10,000 test rows at every pressure: what a surcharge would be. Fixed
depths are the same network, stopped at the same step for every row and answering as it would there. Rows a second are those
of one process, batches of 64, the median of three passes over the first 2,000 test rows; they mean something beside one
another only. Fails if the mean depth ever rises with the pressure.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from cascade.models.halting import PonderNetwork
from cascade.models.halting_losses import ActLoss, PonderLoss, act_weights
from cascade.models.halting_networks import pondering_images
from cascade.models.training import TensorRows, seeded, train
from cascade.models.training_options import TrainingOptions

DATA = Path(__file__).resolve().parent.parent / "deployments" / "fashion" / "data"
PRESSURES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
BATCH, SPEED_ROWS, PASSES = 64, 2_000, 3


def rows_of(name: str) -> tuple[Tensor, Tensor]:
    with np.load(DATA / f"{name}.npz") as archive:
        return torch.from_numpy(archive["image"]), torch.from_numpy(archive["labels"])


def batches(image: Tensor, pressure: float) -> Iterator[tuple[Tensor, Tensor]]:
    for part in image.split(BATCH):
        yield part, torch.full((len(part),), pressure)


def measured(network: PonderNetwork, image: Tensor, label: Tensor, pressure: float) -> dict[str, Any]:
    """Accuracy and depths on all rows, speed on some."""
    with torch.inference_mode():
        thoughts = [network.think(part, pressure=share) for part, share in batches(image, pressure)]
        speeds = []
        for _ in range(PASSES):
            began = time.perf_counter()
            for part, share in batches(image[:SPEED_ROWS], pressure):
                network.think(part, pressure=share)
            speeds.append(SPEED_ROWS / (time.perf_counter() - began))
    right = torch.cat([thought.logits for thought in thoughts]).argmax(dim=1) == label
    depth = torch.cat([thought.depth for thought in thoughts])
    return {
        "pressure": pressure,
        "accuracy": right.double().mean().item(),
        "mean_depth": depth.double().mean().item(),
        "depths": torch.bincount(depth, minlength=network.steps + 1)[1:].tolist(),
        "rows_per_s": float(np.median(speeds)),
    }


def at_fixed_depths(network: PonderNetwork, image: Tensor, label: Tensor) -> list[float]:
    """Accuracy if every row took the same number of steps."""
    right = torch.zeros(network.steps)
    with torch.inference_mode():
        for part, truth in zip(image.split(BATCH), label.split(BATCH), strict=True):
            steps = network.unroll(part)
            for depth in range(1, network.steps + 1):
                answer = steps.logits[:, depth - 1]
                if network.rule == "act":
                    weights, _ = act_weights(steps.halting[:, :depth], network.epsilon)
                    answer = (weights[:, :, None] * steps.logits[:, :depth]).sum(dim=1)
                right[depth - 1] += (answer.argmax(dim=1) == truth).sum()
    return (right / len(label)).tolist()


def run(options: argparse.Namespace, seed: int, progress: Progress) -> dict[str, Any]:
    """One network, trained and measured."""
    image, label = rows_of("calibration")
    test_image, test_label = rows_of("test")
    rows, watched = TensorRows([image], label).split(0.1, seed)
    objective = ActLoss(options.ponder_cost) if options.rule == "act" else PonderLoss(options.prior, options.beta)
    with seeded(seed, 0):
        network = pondering_images(options.channels, options.steps, rule=options.rule)
    task = progress.add_task(f"train, seed {seed}", total=None)
    epochs = train(
        network,
        rows,
        objective,
        TrainingOptions(epochs=options.epochs, batch_size=64, lr=options.lr, seed=seed),
        held_out=watched,
        step_done=lambda done, total: progress.update(task, completed=done, total=total),
    )
    task = progress.add_task(f"measure, seed {seed}", total=len(PRESSURES))
    points = []
    for pressure in PRESSURES:
        points.append(measured(network, test_image, test_label, pressure))
        progress.advance(task)
    return {
        "seed": seed,
        "objective": objective.description,
        "training_seconds": sum(epoch.seconds for epoch in epochs),
        "held_out_accuracy": epochs[-1].accuracy[0],
        "points": points,
        "fixed_depth_accuracy": at_fixed_depths(network, test_image, test_label),
    }


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean, and smallest to largest if there are several."""
    scaled = [scale * value for value in values]
    shown = f"{np.mean(scaled):.{digits}f}"
    return shown if len(values) == 1 else f"{shown} ({min(scaled):.{digits}f}–{max(scaled):.{digits}f})"


def show(runs: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, title=f"{len(runs)} seed(s), 10,000 test rows: mean (smallest–largest)", title_justify="left")
    for column in ("pressure", "mean depth", "accuracy, %", "rows/s"):
        table.add_column(column, justify="right")
    for place, pressure in enumerate(PRESSURES):
        points = [run["points"][place] for run in runs]
        table.add_row(
            f"{pressure:g}",
            spread([point["mean_depth"] for point in points]),
            spread([point["accuracy"] for point in points], 100),
            spread([point["rows_per_s"] for point in points], digits=0),
        )
    console.print(table)
    fixed = zip(*(run["fixed_depth_accuracy"] for run in runs), strict=True)
    shown = ", ".join(f"{depth}: {spread(list(values), 100)}" for depth, values in enumerate(fixed, start=1))
    console.print(f"accuracy at fixed depths, %: {shown}", highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", choices=("ponder", "act"), default="ponder")
    parser.add_argument("--seeds", type=int, default=3, help="networks, from seed 0 on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="most steps of a row")
    parser.add_argument("--prior", type=float, default=0.3, help="ponder: lambda of the geometric prior")
    parser.add_argument("--beta", type=float, default=0.1, help="ponder: weight of the divergence from it")
    parser.add_argument("--ponder-cost", type=float, default=0.01, help="act: cost of a step")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, help="everything that was measured, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    with Progress(console=Console(stderr=True)) as progress:
        runs = [run(options, seed, progress) for seed in range(options.seeds)]
    show(runs, console)
    if options.out is not None:
        options.out.write_text(json.dumps(runs, indent=1) + "\n")
    rises = [
        (run["seed"], more["pressure"])
        for run in runs
        for less, more in zip(run["points"], run["points"][1:], strict=False)
        if more["mean_depth"] > less["mean_depth"]
    ]
    for seed, pressure in rises:
        console.print(f"[red]seed {seed}: the mean depth rises towards pressure {pressure:g}[/red]")
    return 1 if rises else 0


if __name__ == "__main__":
    sys.exit(main())
