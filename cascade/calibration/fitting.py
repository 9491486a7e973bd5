"""From an outcome table to a `Calibration`, and from measured batches to a service-time model.

Runs the estimators of `scores` and `gains` over the stages of a table. Knows no model and no file.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

import cascade
from cascade.calibration.artefact import Calibration, CrossValidation, GainCurve, Knots, StageCalibration, TableSource
from cascade.calibration.gains import FOLDS, fit_gain
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import (
    Floats,
    confidence,
    fit_temperature,
    log_probabilities,
    p_correct_curve,
    reliability,
    significant,
)
from cascade.errors import ConfigError, TableError
from cascade.policy.gain import Curve
from cascade.policy.price import continuation_value

MIN_ROWS = 20
"""Fewest rows that anything is fitted on."""
MIN_REACHED = 200
"""Fewest reaching rows that stand for a stage's traffic; below it, the noise of few rows outweighs the bias of all."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


def fit(
    table: OutcomeTable,
    digests: Mapping[str, str],
    *,
    ladder: str,
    split: str | None = None,
    prices: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Fit temperatures, p(correct) curves and the gain curves of every pair of stages.

    Calibration over all rows does not survive routing: the rows that a cheap stage passes on are harder than their
    confidence at the next stage tells. So each stage is fitted on the rows that reach it when nothing is loaded: row by
    row, the policy's own rule decides with the curves of the cheaper stages, fitted before.

    Args:
        table: outcomes on rows that no stage was trained on.
        digests: of each stage by name, to recognise the models again.
        ladder: name of the ladder.
        split: use only the rows of this split.
        prices: price of each stage, the operating point that decides which rows reach a stage; zeros if left out.
        seed: of the divisions for cross-validation.
        progress: told about each step.

    Raises:
        TableError: fewer than `MIN_ROWS` rows, or no such split.
        ConfigError: a digest or a price is missing.
    """
    rows = table if split is None else table.select(split)
    if rows.rows < MIN_ROWS:
        raise TableError(f"calibration needs at least {MIN_ROWS} rows, the table has {rows.rows}")
    if missing := [stage for stage in table.stages if stage not in digests]:
        raise ConfigError(f"no digest for stage {missing[0]!r}")
    prices = (0.0,) * len(table.stages) if prices is None else tuple(prices)
    if len(prices) != len(table.stages):
        raise ConfigError(f"expected one price for each of {len(table.stages)} stages, got {len(prices)}")
    right = {stage: rows.correct(stage) for stage in rows.stages}
    reached = np.ones(rows.rows, dtype=np.bool_)
    stages: list[StageCalibration] = []
    for index, stage in enumerate(rows.stages):
        if progress is not None:
            progress(index, len(rows.stages), f"stage {stage}")
        fitted = reached if int(reached.sum()) >= MIN_REACHED else np.ones_like(reached)
        calibrated, confidences = _fit_stage(rows, stage, digests[stage], right, fitted, seed)
        stages.append(calibrated)
        if calibrated.gains:
            gains = np.column_stack([Curve.of(g.x, g.y)(confidences) for g in calibrated.gains.values()])
            dearer = range(index + 1, len(rows.stages))
            reached &= continuation_value(gains, index, dearer, prices) > prices[index + 1]
    if progress is not None:
        progress(len(rows.stages), len(rows.stages), "done")
    return Calibration(
        format_version=1,
        created_by=f"cascade {cascade.__version__}",
        ladder=ladder,
        table=TableSource(digest=table.digest(), rows=rows.rows, split=split),
        prices=prices,
        stages=tuple(stages),
    )


def fit_service_time(rows: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit batch time a + b n with a, b >= 0, minimising relative errors: sum_i ((a + b n_i - t_i) / t_i)^2.

    Args:
        rows: batch sizes n, at least one.
        seconds: time of each, above 0.

    Returns:
        a and b, in seconds.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if len(rows) != len(times) or not len(times) or not np.all(np.isfinite(times) & (times > 0)):
        raise ConfigError(f"expected a time above 0 for each of {len(rows)} batch sizes, got {list(seconds)}")
    design = np.column_stack([np.ones_like(times), np.asarray(rows, dtype=np.float64)])
    (a_s, b_s), _ = nnls(design / times[:, None], np.ones_like(times))
    return significant(a_s), significant(b_s)


def _fit_stage(
    table: OutcomeTable,
    stage: str,
    digest: str,
    right: Mapping[str, NDArray[np.bool_]],
    fitted: NDArray[np.bool_],
    seed: int,
) -> tuple[StageCalibration, Floats]:
    """Fit one stage on the rows ``fitted``; also return its confidence on every row of the table, [N]."""
    temperature = 1.0
    nll: tuple[float, float] | tuple[None, None] = (None, None)
    raw: Floats = table.score(stage)
    confidences = raw
    if table.has_probs(stage):
        logits = log_probabilities(table.probs(stage))
        found = fit_temperature(logits if fitted.all() else logits[fitted], table.labels[fitted])
        temperature = significant(found.temperature)
        nll = (significant(found.nll_before), significant(found.nll_after))
        confidences = confidence(logits, temperature)
    raw, used, correct = raw[fitted], confidences[fitted], right[stage][fitted]
    is_probability = bool(raw.min() >= 0 and raw.max() <= 1 + 1e-6)
    gains: dict[str, GainCurve] = {}
    for dearer in table.stages[table.stages.index(stage) + 1 :]:
        difference = right[dearer][fitted].astype(np.float64) - correct
        gain = fit_gain(used, difference, seed=seed)
        gains[dearer] = GainCurve(
            **_knots(gain.curve),
            method=gain.method,
            cv_error=CrossValidation(
                isotonic=significant(gain.cv_error["isotonic"]), binned=significant(gain.cv_error["binned"])
            ),
        )
    return StageCalibration(
        name=stage,
        digest=digest,
        temperature=temperature,
        p_correct=Knots(**_knots(p_correct_curve(used, correct))),
        gains=gains,
        accuracy=significant(float(right[stage].mean())),
        rows=int(fitted.sum()),
        ece_before=significant(reliability(raw, correct).ece) if is_probability else None,
        ece_after=significant(_cross_validated_ece(used, correct, seed)),
        nll_before=nll[0],
        nll_after=nll[1],
    ), confidences


def _cross_validated_ece(confidences: Floats, correct: NDArray[np.bool_], seed: int) -> float:
    """Calibration error of p(correct) curves on the rows that each was not fitted on."""
    fold = np.random.default_rng(seed).permutation(len(correct)) % FOLDS
    predicted = np.empty(len(correct))
    for held_out in range(FOLDS):
        test = fold == held_out
        predicted[test] = p_correct_curve(confidences[~test], correct[~test])(confidences[test])
    return reliability(predicted, correct).ece


def _knots(curve: Curve) -> dict[str, tuple[float, ...]]:
    return {"x": tuple(curve.x.tolist()), "y": tuple(curve.y.tolist())}
