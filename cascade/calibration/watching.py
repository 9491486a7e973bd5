"""What clients that watch would have seen of a table's rows, exit by exit, under each rule of `cascade.policy.anytime`.

The offline form of those rules: whole arrays instead of row by row. Runs no model; knows no load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.anytime import product_anytime, surest, violations
from cascade.calibration.artefact import Calibration
from cascade.calibration.judging import judgements
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import log_probabilities, p_correct_curve
from cascade.errors import TableError
from cascade.policy.anytime import centred
from cascade.policy.gain import Curve

Floats = NDArray[np.float64]

MIN_REACHED = 200
"""A curve is fitted on the rows that reach a stage, unless they are fewer: then on all."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What is shown of N rows after each of S stages, as if none stopped, under one rule."""

    probabilities: Floats
    """[N, S, C]."""
    right: NDArray[np.bool_]
    """[N, S] whether the label shown is right."""
    confidence: Floats | None
    """[N, S] probability of being right that is shown; None where none has been fitted."""

    def violations(self, labels: NDArray[np.int64], tau: float, exits: NDArray[np.intp] | None = None) -> float:
        """Share of rows whose probability of the true class falls by more than ``tau`` between any two exits.

        Args:
            labels: [N] true classes.
            tau: tolerated fall, from 0 to 1.
            exits: [N] stage at which each row stops; all go to the last where left out.
        """
        probabilities = self.probabilities
        if exits is not None:
            # What is shown of a row stays as it was once the row has stopped.
            places = np.minimum(np.arange(probabilities.shape[1]), exits[:, None])
            probabilities = np.take_along_axis(probabilities, places[:, :, None], axis=1)
        return violations(probabilities, labels, tau)


def seen_by_rule(
    table: OutcomeTable, calibration: Calibration, product_curves: Sequence[Curve] | None = None
) -> Mapping[str, Seen]:
    """What is shown under every rule, by the names that the spec has for them.

    Args:
        table: outcomes with probabilities for every stage.
        calibration: fitted for the same stages, on other rows.
        product_curves: see `fit_product`; without them products have no confidence.

    Raises:
        CalibrationMismatch: the table has other stages.
        TableError: a stage has no probabilities.
    """
    logits = scores(table)
    shape = logits.shape
    probabilities, confidence = np.empty(shape), np.empty(shape[:2])
    for rows, index, judgement in judgements(table, calibration):
        probabilities[rows, index] = judgement.probabilities
        confidence[rows, index] = judgement.p_correct
    labels = table.labels[:, None]
    right = probabilities.argmax(axis=2) == labels
    product = product_anytime(logits)
    sure = None
    if product_curves is not None:
        largest = product.max(axis=2)
        sure = np.column_stack([curve(largest[:, k]).astype(np.float64) for k, curve in enumerate(product_curves)])
    return {
        "plain": Seen(probabilities, right, confidence),
        "steady": _kept(probabilities, right, confidence, steadily(probabilities.argmax(axis=2), confidence)),
        "best_so_far": _kept(probabilities, right, confidence, surest(confidence)),
        "product": Seen(product, product.argmax(axis=2) == labels, sure),
    }


def steadily(labels: NDArray[np.intp], confidence: Floats) -> NDArray[np.intp]:
    """The stage whose answer is shown by the rule `steady` after each stage, [N, S].

    Args:
        labels: [N, S] predicted by each stage.
        confidence: [N, S] how sure each is.
    """
    rows, kept = np.arange(len(labels)), np.zeros(labels.shape, dtype=np.intp)
    for stage in range(1, labels.shape[1]):
        before = kept[:, stage - 1]
        stays = (labels[rows, before] == labels[:, stage]) & (confidence[rows, before] >= confidence[:, stage])
        kept[:, stage] = np.where(stays, before, stage)
    return kept


def _kept(probabilities: Floats, right: NDArray[np.bool_], confidence: Floats, kept: NDArray[np.intp]) -> Seen:
    return Seen(
        np.take_along_axis(probabilities, kept[:, :, None], axis=1),
        np.take_along_axis(right, kept, axis=1),
        np.take_along_axis(confidence, kept, axis=1),
    )


def fit_product(table: OutcomeTable, exits: NDArray[np.intp]) -> tuple[Curve, ...]:
    """For each stage, the largest probability of the product so far to the probability that the product is right.

    Products are not calibrated, early ones least of all; these curves are, on the rows that reach the stage.

    Args:
        table: outcomes with probabilities for every stage, on rows that no stage was trained on.
        exits: [N] stage at which each row stops when nothing is loaded.

    Raises:
        TableError: a stage has no probabilities.
    """
    product = product_anytime(scores(table))
    curves = []
    for stage in range(product.shape[1]):
        reach = exits >= stage
        if reach.sum() < MIN_REACHED:
            reach = np.ones_like(reach)
        of_stage = product[reach, stage]
        curves.append(p_correct_curve(of_stage.max(axis=1), of_stage.argmax(axis=1) == table.labels[reach]))
    return tuple(curves)


def scores(table: OutcomeTable) -> Floats:
    """Every stage's class scores less their mean, [N, S, C], as a product multiplies them; see `cascade.policy.anytime`.

    Raises:
        TableError: a stage has no probabilities.
    """
    for name in table.stages:
        if not table.has_probs(name):
            raise TableError(f"products are made of class scores; the table lacks probs/{name}")
    return np.stack([centred(log_probabilities(table.probs(name))) for name in table.stages], axis=1)
