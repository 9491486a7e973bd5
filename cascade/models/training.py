"""Trains a network by a loss, the same way twice from the same seed. Knows torch; no command, no ladder, no file format.

Only parameters that require a gradient move. A part of the network whose parameters are all frozen stays in evaluation mode,
so that its normalisation statistics rest too and its dropout is off. All dice of an epoch depend on seed and epoch alone,
and a checkpoint holds everything else, so a run that is put down after an epoch and picked up again ends on the same bits.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.exit_losses import Inputs, Objective
from cascade.models.frozen import training_mode
from cascade.models.training_options import TrainingOptions

Array = Tensor | NDArray[Any]
"""One input of many rows: a tensor, or where torch has no type for it (BYTES) a numpy array."""
Collate = Callable[[Inputs, torch.Generator | None], Inputs]
"""Turns the inputs of a batch's rows into what the network takes: trims, tokenises, augments. The dice are for the last and
None outside training."""

EVALUATION_ROWS = 500
"""Rows of a batch when accuracy is measured."""
SAMPLE_ROWS = 2
"""Rows on which an objective may look at the network; not one, which many a network treats differently."""


class LabelledRows(Protocol):
    """Rows to learn from, wherever they are kept."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, rows: Tensor, dice: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """Some of them.

        Args:
            rows: int64 [n], their places.
            dice: for augmentation, on the CPU; None for the rows as they are.

        Returns:
            What the network takes, each [n, ...], and the labels, int64 [n].
        """
        ...


class TensorRows:
    """Rows that lie in memory.

    Args:
        inputs: in the order of the network's arguments, each [rows, ...].
        labels: whole numbers [rows], from 0.
        collate: see `Collate`; by default inputs go to the network as they are.

    Raises:
        ConfigError: there are no rows, or the arrays differ in their number.
    """

    def __init__(self, inputs: Sequence[Array], labels: Array, collate: Collate | None = None) -> None:
        self._inputs = tuple(inputs)
        self._labels = torch.as_tensor(labels).long()
        self._collate = collate
        lengths = {len(array) for array in (*self._inputs, self._labels)}
        if not self._inputs or len(lengths) != 1 or 0 in lengths:
            raise ConfigError(f"inputs and labels must have the same rows, and some; they have {sorted(lengths)}")

    def __len__(self) -> int:
        """How many there are."""
        return len(self._labels)

    def batch(self, rows: Tensor, dice: torch.Generator | None) -> tuple[Inputs, Tensor]:
        """See `LabelledRows`."""
        inputs = tuple(array[rows if isinstance(array, Tensor) else rows.numpy()] for array in self._inputs)
        return inputs if self._collate is None else self._collate(inputs, dice), self._labels[rows]

    def split(self, share: float, seed: int) -> "tuple[TensorRows, TensorRows | None]":
        """Hold rows out, drawn at random.

        Args:
            share: of the rows, rounded; 0 for none.
            seed: of the draw.

        Returns:
            The rows that remain, and those held out, None if there are none.

        Raises:
            ConfigError: no row would be left to train on.
        """
        held = round(share * len(self))
        if held >= len(self):
            raise ConfigError(f"of {len(self)} rows {held} would be held out, which leaves none to train on")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._part(order[held:]), self._part(order[:held]) if held else None

    def digest(self) -> str:
        """SHA-256 over the types, shapes and contents of inputs and labels."""
        digest = hashlib.sha256()
        for array in (*self._inputs, self._labels):
            values = array.cpu().numpy() if isinstance(array, Tensor) else array
            digest.update(f"{values.dtype} {values.shape}\n".encode())
            if values.dtype == object:
                for value in values.flat:
                    digest.update(len(value).to_bytes(8, "little") + value)
            else:
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def _part(self, rows: Tensor) -> "TensorRows":
        inputs = [array[rows if isinstance(array, Tensor) else rows.numpy()] for array in self._inputs]
        return TensorRows(inputs, self._labels[rows], self._collate)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: from 1.
        loss: mean over its steps, while the weights moved.
        accuracy: share of the held-out rows that each exit gets right behind it; empty where none are held out.
        seconds: of training and measuring.
    """

    number: int
    loss: float
    accuracy: tuple[float, ...]
    seconds: float


class Checkpoints(Protocol):
    """Where a run is kept between epochs; see `cascade.models.checkpoints`."""

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        """Take up where `save` put down: returns the epochs done, none if nothing was saved."""
        ...

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, epochs: Sequence[Epoch]) -> None:
        """Keep everything that goes on from here."""
        ...


def train(
    network: nn.Module,
    rows: LabelledRows,
    objective: Objective,
    options: TrainingOptions,
    *,
    held_out: LabelledRows | None = None,
    device: torch.device | str = "cpu",
    checkpoints: Checkpoints | None = None,
    step_done: Callable[[int, int], object] = lambda _done, _total: None,
    epoch_done: Callable[[Epoch], object] = lambda _epoch: None,
) -> list[Epoch]:
    """Train a network in place; it is left in evaluation mode, on the device.

    Args:
        network: its frozen parameters stay as they are.
        rows: to train on.
        objective: the loss.
        options: how.
        held_out: rows on which accuracy is measured behind each epoch; no gradient sees them.
        device: where to compute.
        checkpoints: where to keep the run behind each epoch, and where one that was put down lies.
        step_done: told the steps done and of how many, those of earlier epochs included.
        epoch_done: told of each epoch, when it has been kept.

    Returns:
        All epochs, those of a resumed run included.

    Raises:
        ConfigError: nothing can be trained, a label is not among the network's classes, or the loss is not finite.
    """
    device = torch.device(device)
    network.to(device)
    optimizer = make_optimizer(network, options)
    epochs = [] if checkpoints is None else checkpoints.load(network, optimizer)
    steps = math.ceil(len(rows) / options.batch_size)
    total = steps * options.epochs
    step_done(steps * len(epochs), total)
    sample, classes = _moved(sample_of(rows), device), answer_shape(network, rows, device)[1]
    with objective.attached(network, sample):
        for number in range(len(epochs) + 1, options.epochs + 1):
            started_s, losses = time.perf_counter(), 0.0
            training_mode(network)
            with seeded(options.seed, number, device) as dice:
                order = torch.randperm(len(rows), generator=dice)
                for index, places in enumerate(order.tensor_split(steps), start=steps * (number - 1)):
                    for group in optimizer.param_groups:
                        group["lr"] = options.learning_rate((index + 1) / total)
                    inputs, labels = rows.batch(places, dice)
                    check_labels(labels, classes)
                    losses += _step(network, optimizer, objective, _moved(inputs, device), labels.to(device), options.clip)
                    if not math.isfinite(losses):
                        raise ConfigError(f"the loss is not finite in epoch {number}: a lower learning rate may help")
                    step_done(index + 1, total)
            accuracy = () if held_out is None else accuracies(network, held_out, device)
            epochs.append(Epoch(number, losses / steps, accuracy, time.perf_counter() - started_s))
            if checkpoints is not None:
                checkpoints.save(network, optimizer, epochs)
            epoch_done(epochs[-1])
    network.eval()
    return epochs


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    inputs: Inputs,
    labels: Tensor,
    clip: float,
) -> float:
    loss = objective(network, inputs, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    return float(loss.detach())


def make_optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require a gradient.

    Raises:
        ConfigError: there are none.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"nothing to train: all parameters of {type(network).__name__} are frozen, or it has none")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=options.lr)


def sample_of(rows: LabelledRows) -> Inputs:
    """The inputs of a few rows, as they are."""
    return rows.batch(torch.arange(min(SAMPLE_ROWS, len(rows))), None)[0]


def answer_shape(network: nn.Module, rows: LabelledRows, device: torch.device | str = "cpu") -> tuple[int, int]:
    """Exits and classes of a network, found by running it on a few rows; one exit if it gives a single answer.

    Args:
        network: left in evaluation mode.
        rows: what it takes.
        device: where it is.

    Raises:
        ConfigError: it cannot be run on the rows, or returns no logits [rows, exits, classes] or [rows, classes].
    """
    inputs = _moved(sample_of(rows), torch.device(device))
    network.eval()
    try:
        with torch.inference_mode():
            logits = network(*inputs)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"{type(network).__name__} cannot be run on the rows: {error or type(error).__name__}") from error
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or len(logits) != len(inputs[0]) or 0 in logits.shape:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{type(network).__name__} must return logits [rows, exits, classes], got {shape}")
    return (logits.shape[1] if logits.ndim == 3 else 1), logits.shape[-1]


def accuracies(network: nn.Module, rows: LabelledRows, device: torch.device | str = "cpu") -> tuple[float, ...]:
    """Share of rows whose largest logit is the label's, for each exit; one for a network with a single answer.

    Args:
        network: left in evaluation mode.
        rows: to measure on.
        device: where the network is.

    Raises:
        ConfigError: a label is not among the network's classes.
    """
    network.eval()
    right = None
    with torch.inference_mode():
        for places in torch.split(torch.arange(len(rows)), EVALUATION_ROWS):
            inputs, labels = rows.batch(places, None)
            logits: Tensor = network(*_moved(inputs, torch.device(device))).cpu()
            if logits.ndim == 2:
                logits = logits.unsqueeze(1)
            check_labels(labels, logits.shape[-1])
            counts = (logits.argmax(dim=-1) == labels[:, None]).sum(dim=0)
            right = counts if right is None else right + counts
    return () if right is None else tuple((right.double() / len(rows)).tolist())


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise unless the labels are among so many classes; torch itself ends the process over it on a GPU.

    Raises:
        ConfigError: they are not.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(
            f"labels must lie in 0..{classes - 1}, the network's classes, got {int(labels.min())}..{int(labels.max())}"
        )


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device | str = "cpu") -> Iterator[torch.Generator]:
    """Dice that depend on seed and epoch alone; torch's global ones, which dropout throws, too, and as before afterwards.

    Args:
        seed: of the run.
        epoch: which of its epochs, from 1; 0 for what comes before.
        device: whose global dice.

    Yields:
        A generator on the CPU.
    """
    device = torch.device(device)
    # Apart by more than the number of epochs, so that no epoch of one run has the dice of another seed's.
    mixed = (seed << 20) + epoch
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mixed)
        yield torch.Generator().manual_seed(mixed + (1 << 19))


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in inputs)
