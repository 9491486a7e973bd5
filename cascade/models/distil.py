"""Trains a student on what a teacher says: distillation, and the mending of a pruned network. Knows torch; no ladder.

    loss = s T^2 KL( softmax(t / T) || softmax(z / T) ) + (1 - s) CE(z, label)

with z the student's logits, t the teacher's, T the temperature and s the soft share (Hinton, Vinyals & Dean 2015). T^2 keeps
the gradient of the soft part as large as that of the hard one. AdamW, a short linear warm-up and a cosine to zero; what is
kept is an exponential moving average of the weights, which a short training gains most by.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM = 0.1
"""Part of the training over which the learning rate rises."""
KEEP = 0.998
"""Share of the average that a step leaves in place, once there were many."""

Progress = Callable[[float, str], None]
"""Told the share that is done, and how it goes."""


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the rows, at most.
        seconds: stop after so many by ``clock``, the schedule being shortened to end there; None for no limit.
        batch: rows of a step.
        rate: the largest learning rate.
        weight_decay: of matrices and kernels, not of biases and norms.
        temperature: T.
        soft: s.
        seed: of the order of the rows.
    """

    epochs: int = 5
    seconds: float | None = None
    batch: int = 128
    rate: float = 2e-3
    weight_decay: float = 0.01
    temperature: float = 2.0
    soft: float = 0.7
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        network: the average, in evaluation mode.
        epochs: passes over the rows, a fraction where time ran out.
        seconds: by the clock.
        loss: mean over the last tenth of the steps.
    """

    network: nn.Module
    epochs: float
    seconds: float
    loss: float


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits [n, classes], the mean over rows."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def train(
    student: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    targets: Tensor,
    training: Training,
    *,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> Trained:
    """Train a student on rows.

    Args:
        student: float weights; trained in place, though what is returned is its average.
        inputs: what it takes, [n, ...] each.
        labels: [n].
        targets: the teacher's logits of the same rows, [n, classes].
        training: how.
        clock: seconds; of the process, where others use the machine too.
        progress: told how far it is.

    Raises:
        FloatingPointError: the loss is not a number any more; a smaller rate may help.
    """
    started = clock()
    student.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in student.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.0,
    )
    average = copy.deepcopy(student).requires_grad_(False)
    steps_an_epoch = max(1, len(labels) // training.batch)
    steps = training.epochs * steps_an_epoch
    random = torch.Generator().manual_seed(training.seed)
    losses: list[float] = []
    done, step = 0.0, 0
    order = torch.empty(0, dtype=torch.int64)
    while done < 1.0:
        if len(order) < min(training.batch, len(labels)):
            order = torch.randperm(len(labels), generator=random)
        rows, order = order[: training.batch], order[training.batch :]
        for group in optimizer.param_groups:
            group["lr"] = training.rate * _schedule(done)
        student.train()
        logits = student(*(array[rows] for array in inputs)).float()
        loss = training.soft * soft_loss(logits, targets[rows], training.temperature)
        if training.soft < 1.0:
            loss = loss + (1 - training.soft) * F.cross_entropy(logits, labels[rows])
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} after {step} steps")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _update(average, student, step)
        step += 1
        done = step / steps
        if training.seconds is not None:
            done = max(done, (clock() - started) / training.seconds)
        if progress is not None:
            progress(min(done, 1.0), f"loss {losses[-1]:.3f}")
    last = losses[-max(1, len(losses) // 10) :]
    return Trained(average.eval(), step / steps_an_epoch, clock() - started, sum(last) / len(last))


def _schedule(done: float) -> float:
    """Share of the largest learning rate after a share of the training."""
    if done < WARM:
        return max(done / WARM, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM)))


@torch.no_grad()
def _update(average: nn.Module, student: nn.Module, step: int) -> None:
    """Move the average a little toward the present weights; early in the training, faster."""
    keep = min(KEEP, (1 + step) / (10 + step))
    present = student.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(present[name].to(value.dtype), 1 - keep)
        else:
            value.copy_(present[name])
