"""Which answer a row gets that stops at a stage: the stage's own, an earlier one, or all stages passed combined.

    own      argmax softmax(z / T)
    recall   the earlier answer where it is more probably right
    combine  argmax of the log-linear pool p^beta q^v, p = softmax(z / T), q those of the answer so far; beta, v >= 0

The pool's weights minimise the negative log-likelihood, which is convex in them. Own answers are kept unless another way is
right more often on rows held out, by more than chance would give. The pool may win by less if it also is the likelier one
there: the likelihood tells real from chance better than a count of few changed answers does.

Reads one stage of a table at a time; knows no file, no gain and no price.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from cascade.calibration.gain_model import MAX_CLASSES
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import Floats, fit_temperature, log_probabilities, p_correct_curve
from cascade.policy.gain import Curve, evidence_features

Bools = NDArray[np.bool_]
Answers = Literal["best", "replace"]

MAX_ROWS = 10_000
"""Rows that a pool is tried on, at most, in each of two folds."""
MAX_VALUES = 4_000_000
"""Probabilities that a pool is fitted on, at most: two numbers do not need more."""
ONE_IN_TWENTY = 1.645
"""Standard errors that a paired difference exceeds by chance once in twenty."""
LEAST_WEIGHT = 1e-6
"""Smallest beta: with none at all the stage's own evidence would not count."""
_CHUNK_ROWS = 2048


@dataclass
class Answering:
    """What one stage answers the N rows of a table with.

    Attributes:
        temperature: T / beta; 1 where the table has only scores.
        history_weight: v; 0 where the stage answers for itself or recalls.
        recall: confidence to p(correct) of the stage's own answer; None where it never recalls.
        raw: [N] confidence or score as it stands in the table.
        confidence: [N] how sure the answer is: the largest probability or the score; where the stage recalls, the
            probability that the chosen answer is right.
        right: [N] whether it is right.
        nll: mean negative log-likelihood at T = 1 and of the answer, nats; None without probabilities.
        log_probabilities: [N, C] of the answer; None without probabilities.
        features: [N, F] evidence for a learned gain; None without probabilities, or with too many classes.
        own: confidence and correctness of the stage's own answers, [N] each.
    """

    temperature: float
    history_weight: float
    recall: Curve | None
    raw: Floats
    confidence: Floats
    right: Bools
    nll: tuple[float, float] | None
    log_probabilities: Floats | None
    features: Floats | None
    own: tuple[Floats, Bools]

    def recall_again(self, p_correct: Floats, right: Bools) -> None:
        """Where the stage recalls, choose again between its own and earlier answers [N], of which more is known now."""
        if self.recall is not None:
            own_confidence, own_right = self.own
            own_p = self.recall(own_confidence)
            kept = p_correct > own_p
            self.confidence = np.where(kept, p_correct, own_p)
            self.right = np.where(kept, right, own_right)


def answer_stage(
    table: OutcomeTable, stage: str, before: Answering | None, fitted: Bools, answers: Answers, seed: int
) -> Answering:
    """Settle what a stage answers.

    Args:
        table: the outcomes, N rows.
        stage: name of the stage.
        before: what the stage before answers; None for the first stage.
        fitted: [N] rows to fit on, those that reach the stage.
        answers: ``best`` takes the way that is right most often on rows held out, ``replace`` the stage's own answers.
        seed: of the choice of these rows.
    """
    answering = _own(table, stage, fitted)
    if before is not None and answers == "best":
        answering = _best(table, answering, before, fitted, seed)
    logp = answering.log_probabilities
    if logp is not None and logp.shape[1] <= MAX_CLASSES:
        history = None if before is None else before.log_probabilities
        earlier = None if history is None else history.argmax(axis=1)
        answering.features = evidence_features(np.exp(logp, dtype=np.float64), earlier)
    return answering


def fit_pool(own: Floats, history: Floats, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Find beta, v >= 0 that minimise the mean of logsumexp(w) - w[y] with w = beta log p + v log q.

    Args:
        own: [N, C] log p, of the stage alone.
        history: [N, C] log q, of the answer so far.
        labels: [N] true classes.
    """
    parts = np.asarray(own, dtype=np.float64), np.asarray(history, dtype=np.float64)
    mean_own = [float(part[np.arange(len(labels)), labels].mean()) for part in parts]
    scores, scratch = np.empty_like(parts[0]), np.empty_like(parts[0])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        np.multiply(parts[0], weights[0], out=scores)
        np.multiply(parts[1], weights[1], out=scratch)
        np.add(scores, scratch, out=scores)
        top = scores.max(axis=1, keepdims=True)
        np.subtract(scores, top, out=scores)
        np.exp(scores, out=scores)
        mass = scores.sum(axis=1)
        slope = [
            float((np.einsum("nc,nc->n", scores, part) / mass).mean()) - mean
            for part, mean in zip(parts, mean_own, strict=True)
        ]
        value = float((np.log(mass) + top[:, 0]).mean()) - float(weights @ mean_own)
        return value, np.array(slope)

    found = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(LEAST_WEIGHT, None), (0.0, None)])
    return float(found.x[0]), float(found.x[1])


def improves(candidate: Floats | Bools, present: Floats | Bools) -> bool:
    """Whether the mean of one quantity is above that of another by more than chance gives once in twenty.

    Args:
        candidate: [N] the one, such as whether each row is answered right.
        present: [N] the other, for the same rows.
    """
    difference = np.asarray(candidate, dtype=np.float64) - present
    return bool(difference.mean() > ONE_IN_TWENTY * difference.std() / np.sqrt(len(difference)))


def _own(table: OutcomeTable, stage: str, fitted: Bools) -> Answering:
    right, raw = table.correct(stage), table.score(stage)
    if not table.has_probs(stage):
        return Answering(1.0, 0.0, None, raw, raw, right, None, None, None, (raw, right))
    logits = log_probabilities(table.probs(stage))
    found = fit_temperature(logits if fitted.all() else logits[fitted], table.labels[fitted])
    logits /= np.asarray(found.temperature, dtype=logits.dtype)
    confidence = _normalise(logits)
    nll = found.nll_before, found.nll_after
    return Answering(found.temperature, 0.0, None, raw, confidence, right, nll, logits, None, (confidence, right))


def _best(table: OutcomeTable, own: Answering, before: Answering, fitted: Bools, seed: int) -> Answering:
    random = np.random.default_rng(seed)
    rows = random.permutation(np.flatnonzero(fitted))[: 2 * MAX_ROWS]
    folds = np.array_split(rows, 2)
    earlier_p = p_correct_curve(before.confidence[fitted], before.right[fitted])(before.confidence)
    recalled, pooled, likelier = np.empty(len(rows), dtype=np.bool_), None, 0.0
    if own.log_probabilities is not None and before.log_probabilities is not None:
        pooled = np.empty(len(rows), dtype=np.bool_)
    places = np.array_split(np.arange(len(rows)), 2)
    for train, test, place in ((folds[0], folds[1], places[1]), (folds[1], folds[0], places[0])):
        own_p = p_correct_curve(own.confidence[train], own.right[train])(own.confidence[test])
        recalled[place] = np.where(earlier_p[test] > own_p, before.right[test], own.right[test])
        if pooled is not None and own.log_probabilities is not None:
            weights = _fit_pool_on(train, own, before, table.labels)
            scores = _pool_scores(own, before, weights, test)
            _normalise(scores)
            pooled[place] = scores.argmax(axis=1) == table.labels[test]
            likelier += float((scores - own.log_probabilities[test])[np.arange(len(test)), table.labels[test]].sum())
    present = own.right[rows]
    if pooled is not None and likelier > 0 and present.sum() < pooled.sum() >= recalled.sum():
        return _combined(table, own, before, fitted, rows)
    return _recalled(own, before, earlier_p, fitted) if improves(recalled, present) else own


def _combined(table: OutcomeTable, own: Answering, before: Answering, fitted: Bools, rows: NDArray[np.intp]) -> Answering:
    beta, weight = _fit_pool_on(rows, own, before, table.labels)
    scores = _pool_scores(own, before, (beta, weight), slice(None))
    confidence = _normalise(scores)
    right = np.asarray(scores.argmax(axis=1) == table.labels)
    assert own.nll is not None
    nll_after = -float(scores[np.flatnonzero(fitted), table.labels[fitted]].mean(dtype=np.float64))
    return replace(
        own,
        temperature=own.temperature / beta,
        history_weight=weight,
        confidence=confidence,
        right=right,
        nll=(own.nll[0], nll_after),
        log_probabilities=scores,
    )


def _recalled(own: Answering, before: Answering, earlier_p: Floats, fitted: Bools) -> Answering:
    curve = p_correct_curve(own.confidence[fitted], own.right[fitted])
    logp = own.log_probabilities
    if logp is not None and before.log_probabilities is not None:
        kept = earlier_p > curve(own.confidence)
        logp = np.where(kept[:, None], before.log_probabilities, logp)
    answering = replace(own, recall=curve, log_probabilities=logp)
    answering.recall_again(earlier_p, before.right)
    return answering


def _fit_pool_on(
    rows: NDArray[np.intp], own: Answering, before: Answering, labels: NDArray[np.int64]
) -> tuple[float, float]:
    assert own.log_probabilities is not None
    assert before.log_probabilities is not None
    rows = rows[: max(MAX_VALUES // own.log_probabilities.shape[1], 1000)]
    return fit_pool(own.log_probabilities[rows], before.log_probabilities[rows], labels[rows])


def _pool_scores(own: Answering, before: Answering, weights: tuple[float, float], rows: NDArray[np.intp] | slice) -> Floats:
    assert own.log_probabilities is not None
    assert before.log_probabilities is not None
    beta, weight = (np.float32(value) for value in weights)
    scores: Floats = own.log_probabilities[rows] * beta
    scores += weight * before.log_probabilities[rows]
    return scores


def _normalise(scores: Floats) -> NDArray[np.float64]:
    """Turn scores [N, C] into log probabilities in place; return the largest probability of each row, [N]."""
    top = np.empty(len(scores))
    for start in range(0, len(scores), _CHUNK_ROWS):
        block = scores[start : start + _CHUNK_ROWS]
        block -= block.max(axis=1, keepdims=True)
        mass = np.exp(block).sum(axis=1, dtype=np.float64)
        block -= np.log(mass)[:, None].astype(block.dtype)
        top[start : start + _CHUNK_ROWS] = 1 / mass
    return top
