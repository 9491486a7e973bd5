"""Trains every rung of the Fashion-MNIST ladder from the data, and writes the weights and data that the ladder ships.

    python deployments/fashion/train.py [--rung NAME ...] [--data DIR] [--out DIR] [--threads N] [--resume]

Rows never mix: the first 55,000 rows of the training file train (of these the last 2,000 only watch the training: no
gradient sees them), its last 5,000 rows calibrate, the 10,000 rows of the test file test. The last epoch's averaged
weights are kept, never the best epoch's. The recipes below were fixed beforehand, with two exceptions: tiny lost one
channel to keep its cost within 20 times that of linear, and medium was given a third group of blocks and another
schedule because its first version hardly beat small (92.8 against 92.5 % of the watched rows; its test accuracy, 92.6 %,
had been seen by then too).

Recipe: SGD with Nesterov momentum, linear warm-up and cosine decay to zero, random mirroring, shifting and erasing, an
exponential moving average of the weights. Only the top rung smooths its labels: smoothing blurs the difference between
sure and unsure answers, on which the cheaper rungs are sent up or not. No rung is distilled from another.

Seeds are fixed, but sums of floats depend on the machine and on the number of threads: a repetition lands within about
0.3 points of the accuracies in train.json, not on the same bits. Downloads nothing. Knows nothing of Ray or serving.
"""

import copy
import gzip
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cascade.models import networks
from cascade.models.flops import macs

HERE = Path(__file__).resolve().parent
DEBIAN_PACKAGE = "dataset-fashion-mnist"
TRAIN_ROWS = 55_000
WATCH_ROWS = 2_000
SIDE = 28

console = Console()


@dataclass(frozen=True)
class Recipe:
    """How one rung is built and trained.

    Attributes:
        network: class in cascade.models.networks.
        args: its keyword arguments.
        epochs: passes over the training rows.
        batch: rows in a step.
        peak_lr: learning rate at the end of the warm-up.
        weight_decay: on weight matrices and kernels, not on biases and norms.
        shift: largest random shift, pixels.
        mirror: mirror half of the images.
        erase: probability of painting over a random rectangle.
        smoothing: label smoothing.
        bf16: run the arithmetic of the forward pass in bfloat16, where the network is large enough to gain by it.
    """

    network: str
    args: dict[str, Any] = field(default_factory=dict)
    epochs: int = 30
    batch: int = 128
    peak_lr: float = 0.1
    weight_decay: float = 5e-4
    shift: int = 0
    mirror: bool = False
    erase: float = 0.0
    smoothing: float = 0.0
    bf16: bool = False


RECIPES = {
    "linear": Recipe("PooledLinear", {"pool": 2}, epochs=20, peak_lr=0.02, weight_decay=1e-4),
    "tiny": Recipe(
        "StridedCNN",
        {"widths": [11, 16], "kernels": [4, 3], "strides": [4, 2]},
        epochs=40,
        weight_decay=1e-4,
        mirror=True,
    ),
    "small": Recipe(
        "StridedCNN",
        {"widths": [16, 32, 48], "kernels": [3, 3, 3], "strides": [2, 2, 2]},
        epochs=40,
        shift=1,
        mirror=True,
    ),
    "medium": Recipe(
        "ResidualNet",
        {"stem": 16, "widths": [24, 48, 96], "depths": [1, 1, 1], "strides": [2, 2, 2]},
        epochs=30,
        peak_lr=0.1,
        shift=1,
        mirror=True,
        bf16=True,
    ),
    "large": Recipe(
        "ResidualNet",
        {"stem": 32, "widths": [64, 128, 256], "depths": [1, 1, 1], "strides": [2, 2, 2], "mirror": True},
        epochs=30,
        peak_lr=0.2,
        shift=2,
        mirror=True,
        erase=0.5,
        smoothing=0.1,
        bf16=True,
    ),
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes: big-endian magic 0x0000_08_dims, sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    sizes = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(tuple(int(size) for size in sizes))


def read_rows(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 28, 28] and labels int64 [n] of ``train`` or ``t10k``."""
    images, labels = (data / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    for path in (images, labels):
        if not path.is_file():
            console.print(
                f"[red]{path} is missing.[/red] Install the data with `apt-get install {DEBIAN_PACKAGE}`, or name the "
                "directory that holds the four idx .gz files with --data."
            )
            raise typer.Exit(2)
    return torch.tensor(read_idx(images)), torch.tensor(read_idx(labels).astype(np.int64))


def augment(image: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Shift, mirror and erase each image of uint8 [n, 28, 28] on its own dice."""
    n, shift = len(image), recipe.shift
    pixel = torch.arange(SIDE)
    row = pixel + torch.randint(0, 2 * shift + 1, (n, 1), generator=random)
    column = pixel + torch.randint(0, 2 * shift + 1, (n, 1), generator=random)
    if recipe.mirror:
        column = torch.where(torch.rand(n, 1, generator=random) < 0.5, column.flip(1), column)
    padded = F.pad(image, (shift, shift, shift, shift))
    image = padded[torch.arange(n)[:, None, None], row[:, :, None], column[:, None, :]]
    if recipe.erase:
        height, width = torch.randint(4, 15, (2, n, 1), generator=random)
        top, left = torch.randint(-4, SIDE - 4, (2, n, 1), generator=random)
        inside_rows = (pixel >= top) & (pixel < top + height)
        inside_columns = (pixel >= left) & (pixel < left + width)
        chosen = torch.rand(n, 1, 1, generator=random) < recipe.erase
        paint = torch.randint(0, 256, (n, 1, 1), generator=random, dtype=torch.uint8)
        image = torch.where(inside_rows[:, :, None] & inside_columns[:, None, :] & chosen, paint, image)
    return image


def batches(image: Tensor, label: Tensor, recipe: Recipe, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order; the dice depend on seed and epoch only, so that a resumed run sees the same rows."""
    random = torch.Generator().manual_seed(seed * 1_000 + epoch)
    order = torch.randperm(len(image), generator=random)
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        rows = order[start : start + recipe.batch]
        yield augment(image[rows], recipe, random), label[rows]


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up over the first 15 % of the run, then a cosine to zero; ``progress`` in 0..1."""
    warm = 0.15
    if progress < warm:
        return recipe.peak_lr * progress / warm
    return recipe.peak_lr * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def accuracy(network: nn.Module, image: Tensor, label: Tensor) -> float:
    """Share of rows whose largest logit is the label's, in evaluation mode and full precision."""
    device = next(network.parameters()).device
    network.eval()
    right = 0
    with torch.inference_mode():
        for rows, labels in zip(image.split(500), label.split(500), strict=True):
            right += int((network(rows.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(label)


def build(recipe: Recipe, device: torch.device) -> nn.Module:
    """An untrained network of the recipe's kind."""
    network: nn.Module = getattr(networks, recipe.network)(**recipe.args)
    return network.to(device, memory_format=torch.channels_last)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move the averaged weights a little toward the present ones; early in the run, faster."""
    keep = min(0.998, (1 + step) / (10 + step))
    present = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(present[name], 1 - keep)
        else:
            value.copy_(present[name])


@dataclass
class Run:
    """A training run that can be put down after any epoch and picked up again.

    Attributes:
        network: the one that gradients move.
        average: the one that is kept.
        optimizer: of ``network``.
        epoch: epochs done.
        seconds: wall time spent in training so far.
    """

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.SGD
    epoch: int = 0
    seconds: float = 0.0

    @classmethod
    def fresh(cls, recipe: Recipe, device: torch.device, seed: int) -> "Run":
        """A run that has done nothing yet."""
        torch.manual_seed(seed)
        network = build(recipe, device)
        groups = [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
        return cls(network, copy.deepcopy(network).requires_grad_(False), optimizer)

    def save(self, path: Path) -> None:
        """Write everything that resuming needs; a kill in between leaves the previous checkpoint whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        torch.save({**parts, "epoch": self.epoch, "seconds": self.seconds}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Take up where ``save`` put down."""
        parts = torch.load(path, weights_only=True)
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(parts[name])
        self.epoch, self.seconds = parts["epoch"], parts["seconds"]


def train(name: str, run: Run, rows: tuple[Tensor, Tensor], device: torch.device, seed: int, checkpoint: Path) -> None:
    """Run the epochs that are left, with a checkpoint and a line of held-out accuracy after each."""
    recipe = RECIPES[name]
    image, label = (part[: TRAIN_ROWS - WATCH_ROWS] for part in rows)
    watched = tuple(part[TRAIN_ROWS - WATCH_ROWS : TRAIN_ROWS] for part in rows)
    steps = len(image) // recipe.batch
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=steps * recipe.epochs, completed=steps * run.epoch)
        while run.epoch < recipe.epochs:
            started, losses = time.perf_counter(), 0.0
            run.network.train()
            for index, (pixels, labels) in enumerate(batches(image, label, recipe, seed, run.epoch)):
                step = run.epoch * steps + index
                for group in run.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, (step + 1) / (steps * recipe.epochs))
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                    logits = run.network(pixels.to(device))
                loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=recipe.smoothing)
                run.optimizer.zero_grad()
                loss.backward()
                run.optimizer.step()
                update_average(run.average, run.network, step)
                losses += float(loss.detach())
                progress.advance(task)
            run.epoch += 1
            run.seconds += time.perf_counter() - started
            run.save(checkpoint)
            progress.console.print(
                f"{name} epoch {run.epoch}/{recipe.epochs}  loss {losses / steps:.4f}  "
                f"held-out accuracy {accuracy(run.average, *watched):.4f}  {run.seconds:.0f} s",
                highlight=False,
            )


def write_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict with every float as fp16: half the bytes, and no rung's accuracy moves by a tenth point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    path.write_bytes(safetensors.torch.save(state))


def measure(name: str, run: Run, weights: Path, rows: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """What train.json says of a rung: measured on the weights as they are read back from their file."""
    recipe = RECIPES[name]
    network = build(recipe, torch.device("cpu"))
    network.load_state_dict(safetensors.torch.load_file(weights))
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "factory": f"cascade.models.networks:{recipe.network}",
        "args": recipe.args,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": macs(network, test[0][:1]),
        "epochs": run.epoch,
        "of_epochs": recipe.epochs,
        "seconds": round(run.seconds, 1),
        "accuracy_calibration": accuracy(network, *(part[TRAIN_ROWS:] for part in rows)),
        "accuracy_test": accuracy(network, *test),
        "torch": torch.__version__,
        "machine": machine,
        "threads": torch.get_num_threads(),
    }


def write_split(path: Path, image: Tensor, label: Tensor) -> None:
    """Write one split as the ladder reads it: ``image`` uint8 [n, 28, 28] and ``labels`` int64 [n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, image=image.numpy(), labels=label.numpy())


def main(
    rung: Annotated[list[str] | None, typer.Option(help="Train only this rung; may be repeated.")] = None,
    data: Annotated[Path, typer.Option(help="Directory of the four idx .gz files.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    out: Annotated[Path, typer.Option(help="Where weights/, data/ and train.json go.")] = HERE,
    checkpoints: Annotated[Path, typer.Option(help="Where unfinished runs are kept.")] = Path("scratch/fashion"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of rows and the augmentation.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint instead of from nothing.")] = False,
    export: Annotated[bool, typer.Option(help="Train nothing: write what the last checkpoint holds.")] = False,
) -> None:
    """Train the rungs, measure them, and write weights, data splits and train.json."""
    torch.set_num_threads(threads)
    names = rung or list(RECIPES)
    for name in names:
        if name not in RECIPES:
            console.print(f"[red]--rung {name} is not one of {', '.join(RECIPES)}.[/red]")
            raise typer.Exit(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, test = read_rows(data, "train"), read_rows(data, "t10k")
    write_split(out / "data" / "calibration.npz", *(part[TRAIN_ROWS:] for part in rows))
    write_split(out / "data" / "test.npz", *test)
    for name in names:
        run = Run.fresh(RECIPES[name], device, seed)
        checkpoint = checkpoints / f"{name}.pt"
        if resume or export:
            run.load(checkpoint)
        if not export:
            train(name, run, rows, device, seed, checkpoint)
        weights = out / "weights" / f"{name}.safetensors"
        write_weights(run.average, weights)
        facts = {**measure(name, run, weights, rows, test), "seed": seed}
        report = out / "train.json"
        known = json.loads(report.read_text()) if report.is_file() else {}
        known[name] = facts
        report.write_text(json.dumps({key: known[key] for key in RECIPES if key in known}, indent=2) + "\n")
        console.print(f"{name}: {facts['macs']:,} MACs, test accuracy {facts['accuracy_test']:.4f}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
