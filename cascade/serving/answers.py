"""The answers of a message's rows as one answer: which of them speaks for all, and their arrays. Decides nothing."""

from typing import NamedTuple

import numpy as np

from cascade.policy.gain import Floats, Judgement
from cascade.policy.request import Answer, ExitReason
from cascade.wire.tensors import Array, TensorSpec

_WORST_FIRST = (
    ExitReason.FAILURE,
    ExitReason.DEADLINE,
    ExitReason.EVICTED,
    ExitReason.PRICE,
    ExitReason.BUDGET,
    ExitReason.SATISFIED,
    ExitReason.LAST_STAGE,
    ExitReason.CONFIDENT,
)
RANK = {reason: rank for rank, reason in enumerate(_WORST_FIRST)}
"""Which reason a message of several rows reports: the one that an operator would most want to know of."""


class BatchRows(NamedTuple):
    """The rows of a message that left it from one batch.

    Attributes:
        judgement: of that batch.
        rows: their rows in it.
        places: their places in the message.
    """

    judgement: Judgement
    rows: list[int]
    places: list[int]


def by_batch(answers: list[Answer]) -> list[BatchRows]:
    """The rows of a message by the batch that they left from, which are few: arrays are read once for each batch."""
    found: dict[int, BatchRows] = {}
    for place, answer in enumerate(answers):
        judgement = answer.judgement
        batch = found.get(id(judgement))
        if batch is None:
            batch = found[id(judgement)] = BatchRows(judgement, [], [])
        batch.rows.append(answer.row)
        batch.places.append(place)
    return list(found.values())


def worst_of(answers: list[Answer]) -> Answer:
    """The answer that speaks for a message: the most degraded, then the one from the dearest stage."""
    if len(answers) == 1:
        return answers[0]
    kinds = {(answer.reason, answer.stage): answer for answer in reversed(answers)}  # of each kind the first
    return min(kinds.values(), key=lambda answer: (RANK[answer.reason], -answer.stage))


def probabilities_of(batches: list[BatchRows]) -> Floats:
    """Class probabilities of each row of a message, [rows, classes]."""
    judged = batches[0].judgement.probabilities
    if len(batches) == 1:
        return judged[batches[0].rows]
    together = np.empty((sum([len(batch.rows) for batch in batches]), judged.shape[1]))
    for judgement, rows, places in batches:
        together[places] = judgement.probabilities[rows]
    return together


def least_confidence(batches: list[BatchRows]) -> float:
    """Calibrated probability that the least certain row of a message is answered right."""
    return min([float(judgement.p_correct[rows].min()) for judgement, rows, _ in batches])


def recalled_rows(batches: list[BatchRows]) -> int:
    """How many rows of a message were given an earlier stage's answer by the stage that they stopped at."""
    return sum([int(each.recalled[rows].sum()) for each, rows, _ in batches if each.recalled is not None])


def output_array(spec: TensorSpec, probabilities: Floats) -> Array:
    """One output of every row, from the probabilities of all classes."""
    return probabilities.argmax(axis=1) if spec.name == "label" else probabilities.astype(np.float32)
