"""Outcome tables for tests, made from numbers alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.outcomes import OutcomeTable

STAGES = ("small", "medium", "large")


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def every_form(rows: int = 40, classes: int = 4, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Arrays of a table with one stage of each form."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)
    logits = random.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1.0
    return {
        "stages": np.array(STAGES),
        "cost": np.array([1.0, 10.0, 100.0]),
        "cost_unit": np.array("MAC"),
        "labels": labels,
        "probs/small": softmax(logits).astype(np.float32),
        "prediction/medium": np.where(random.random(rows) < 0.8, labels, 0),
        "score/medium": random.random(rows),
        "correct/large": random.random(rows) < 0.9,
        "score/large": random.random(rows),
        "group": np.array(["north", "south"] * (rows // 2)),
        "split": np.array(["calibration"] * (rows // 2) + ["test"] * (rows - rows // 2)),
    }


def scored(score: NDArray[Any], *correct: NDArray[np.bool_]) -> OutcomeTable:
    """A table of stages a, b, ... of known rightness; the first has the scores, the others none to speak of."""
    stages = "abcdefgh"[: len(correct)]
    arrays: dict[str, NDArray[Any]] = {
        "stages": np.array(list(stages)),
        "cost": 10.0 ** np.arange(len(stages)),
        "cost_unit": np.array("MAC"),
        "labels": np.zeros(len(score), dtype=np.int64),
    }
    for stage, right in zip(stages, correct, strict=True):
        arrays[f"correct/{stage}"] = right
        arrays[f"score/{stage}"] = score if stage == "a" else np.full(len(score), 0.5)
    return OutcomeTable.from_arrays(arrays)


def networks(rows: int, seed: int, strengths: tuple[float, ...] = (1.5, 3.0, 5.0), classes: int = 5) -> OutcomeTable:
    """A ladder of over-confident classifiers that find the same rows hard."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    ease = random.normal(size=rows)
    arrays: dict[str, NDArray[Any]] = {
        "stages": np.array([f"net{k}" for k in range(len(strengths))]),
        "cost": 10.0 ** np.arange(len(strengths)),
        "cost_unit": np.array("MAC"),
        "labels": labels,
    }
    for k, strength in enumerate(strengths):
        logits = random.normal(size=(rows, classes))
        logits[np.arange(rows), labels] += strength + 1.5 * ease
        arrays[f"probs/net{k}"] = softmax(4.0 * logits).astype(np.float32)
    return OutcomeTable.from_arrays(arrays)


def views(rows: int, seed: int, stages: int = 2, classes: int = 5) -> OutcomeTable:
    """Equally good networks, each with an independent view of the row."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    arrays: dict[str, NDArray[Any]] = {
        "stages": np.array([f"view{k}" for k in range(stages)]),
        "cost": 10.0 ** np.arange(stages),
        "cost_unit": np.array("MAC"),
        "labels": labels,
    }
    for k in range(stages):
        logits = random.normal(size=(rows, classes))
        logits[np.arange(rows), labels] += 1.5
        arrays[f"probs/view{k}"] = softmax(1.5 * logits)
    return OutcomeTable.from_arrays(arrays)
