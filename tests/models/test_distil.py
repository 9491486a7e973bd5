"""Distillation: the loss by hand, and students that learn what a teacher knows."""

import math
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from cascade.models.distil import Training, soft_loss, train


def rows(n: int = 512) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, their labels, and the logits of a teacher that is always right."""
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(n, 4)).astype(np.float32))
    teacher = 3 * x @ torch.from_numpy(random.normal(size=(4, 3)).astype(np.float32))
    return x, teacher.argmax(1), teacher


def test_the_soft_loss_is_that_of_the_formula():
    student, teacher = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    p = torch.softmax(teacher / 2, 1)[0].tolist()
    q = torch.softmax(student / 2, 1)[0].tolist()
    expected = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(soft_loss(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(soft_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_student_learns_what_the_teacher_says_and_not_what_the_labels_say_if_only_that_counts():
    x, labels, teacher = rows()
    torch.manual_seed(0)
    lies = (labels + 1) % 3
    trained = train(
        nn.Linear(4, 3), [x], lies, teacher, Training(epochs=40, batch=32, rate=0.05, soft=1.0), clock=lambda: 0.0
    )
    with torch.inference_mode():
        assert (trained.network(x).argmax(1) == labels).float().mean() > 0.95
    assert trained.epochs == pytest.approx(40)


def test_the_same_seed_trains_the_same_student():
    x, labels, teacher = rows(64)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(train(nn.Linear(4, 3), [x], labels, teacher, Training(epochs=2, batch=16), clock=lambda: 0.0))
    torch.testing.assert_close(found[0].network.weight, found[1].network.weight, rtol=0, atol=0)


def test_training_ends_when_its_time_is_over():
    x, labels, teacher = rows(64)
    clock, told = count(), []
    training = Training(epochs=1000, seconds=20.0, batch=16)
    trained = train(
        nn.Linear(4, 3),
        [x],
        labels,
        teacher,
        training,
        clock=lambda: float(next(clock)),
        progress=lambda share, _: told.append(share),
    )
    assert trained.epochs == pytest.approx(20 / 4)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_fewer_rows_than_a_batch_are_one_batch():
    x, labels, teacher = rows(5)
    trained = train(nn.Linear(4, 3), [x], labels, teacher, Training(epochs=3, batch=16), clock=lambda: 0.0)
    assert trained.epochs == 3


def test_a_loss_that_is_no_number_ends_the_training():
    x, labels, teacher = rows(64)
    with pytest.raises(FloatingPointError, match="nan"):
        train(nn.Linear(4, 3), [x * math.nan], labels, teacher, Training(batch=16), clock=lambda: 0.0)
