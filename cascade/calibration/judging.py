"""From an outcome table and a calibration to a `JudgedTable`: every row at every stage, as the server's policy would see it.

Runs no model; knows nothing of prices or load.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cascade.calibration.answering import Answers
from cascade.calibration.artefact import Calibration
from cascade.calibration.fitting import MIN_ROWS, Progress, fit
from cascade.calibration.judged import JudgedTable
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import log_probabilities
from cascade.errors import CalibrationMismatch, TableError
from cascade.policy.direct_market import DirectMarket
from cascade.policy.gain import Earlier, Judgement, LogisticGain
from cascade.policy.market import Market
from cascade.policy.routing import Routing

CHUNK_VALUES = 1 << 20
"""Numbers of one stage that are judged at a time: eight megabytes, so that a table of any size fits."""

MARKET_ROWS = 2000
"""Rows that stand for the traffic: the share of rows above a price is then known to a point, as is the arrival rate."""


def judge_table(table: OutcomeTable, calibration: Calibration, routing: Routing = "cascade") -> JudgedTable:
    """Judge every row of a table at every stage.

    Args:
        table: outcomes; rows that the calibration was not fitted on, if anything is to be concluded from them.
        calibration: fitted for the same stages.
        routing: whether the rows may skip stages when they walk.

    Raises:
        CalibrationMismatch: the table has other stages, or a stage looks back at others that rows may skip.
        TableError: the calibration reads probabilities that the table lacks.
    """
    if routing == "direct":
        calibration.check_looks_back_nowhere()
        if table.resumes.any():
            raise TableError("direct routing: a stage that resumes the one before it cannot be reached past that one")
    names = table.stages
    right = np.column_stack([table.correct(name) for name in names])
    served = right.copy()
    shape = right.shape
    p_correct = np.empty(shape)
    gains = np.zeros((*shape, len(names)), order="F")  # walks read whole columns
    for rows, index, judgement in judgements(table, calibration):
        p_correct[rows, index] = judgement.p_correct
        gains[rows, index, index + 1 :] = judgement.gains
        if judgement.recalled is not None:
            served[rows, index] = np.where(judgement.recalled, served[rows, index - 1], right[rows, index])
        elif calibration.stages[index].history_weight:
            served[rows, index] = judgement.probabilities.argmax(axis=1) == table.labels[rows]
    resumes = table.resumes if table.resumes.any() else None
    return JudgedTable(names, table.cost, table.cost_unit, right, served, p_correct, gains, table.group, resumes, routing)


def judgements(table: OutcomeTable, calibration: Calibration) -> Iterator[tuple[slice, int, Judgement]]:
    """What the stages make of a table's rows, some at a time: each row at every stage in turn, as if none stopped.

    Args:
        table: see `judge_table`.
        calibration: see `judge_table`.

    Yields:
        Rows, index of the stage, and its judgement of them; the stages of some rows before the next rows.

    Raises:
        CalibrationMismatch: see `judge_table`.
        TableError: see `judge_table`.
    """
    names = tuple(stage.name for stage in calibration.stages)
    if names != table.stages:
        raise CalibrationMismatch(
            f"the table has the stages {', '.join(table.stages)}, the calibration was made for {', '.join(names)}"
        )
    judges = [stage.judge() for stage in calibration.stages]
    for name, stage, judge in zip(names, calibration.stages, judges, strict=True):
        learned = any(isinstance(gain, LogisticGain) for gain in judge.gains)
        if (judge.history_weight or learned) and not table.has_probs(name):
            raise TableError(f"the calibration of stage {stage.name!r} reads probabilities; the table lacks probs/{name}")
    chunk = max(1, CHUNK_VALUES // (table.classes or 1))
    for start in range(0, table.rows, chunk):
        rows = slice(start, min(start + chunk, table.rows))
        earlier: Earlier | None = None
        for index, (name, judge) in enumerate(zip(names, judges, strict=True)):
            if table.has_probs(name):
                judgement = judge(log_probabilities(table.probs(name)[rows]), earlier)
            else:
                score = table.score(name)[rows]
                unknown = np.full((len(score), table.classes or 0), 1.0 / (table.classes or 1))
                judgement = judge.read(unknown, score, earlier)
            yield rows, index, judgement
            earlier = Earlier(judgement.probabilities, judgement.p_correct)


def fitted_on_these(calibration: Calibration, digest: str, split: str | None, rows: OutcomeTable) -> bool:
    """Whether a calibration was fitted on rows that are now to be judged by it, as far as digests and splits tell.

    Args:
        calibration: the calibration.
        digest: of the whole table.
        split: the split that is judged, or None for all rows.
        rows: the rows of that split.
    """
    source = calibration.table
    overlap = source.split is None or split is None or source.split == split
    # The digest of all rows is known; only a part may be the very table that was fitted on.
    return (digest == source.digest and overlap) or (split is not None and rows.digest() == source.digest)


def fit_and_judge(
    table: OutcomeTable,
    *,
    prices: Sequence[float] | None = None,
    fit_split: str | None = None,
    check_split: str | None = None,
    answers: Answers = "best",
    routing: Routing = "cascade",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Calibration, JudgedTable]:
    """Fit on one part of a table and judge the other: for tables that come without a calibration.

    Args:
        table: outcomes on rows that no stage was trained on.
        prices: see `fit`.
        fit_split: split to fit on; a random half, the same share of every label, where neither split is named.
        check_split: split to judge.
        answers: see `fit`.
        routing: see `fit`.
        seed: of the division and of what `fit` divides.
        progress: told about each step.

    Raises:
        TableError: only one split is named, both are the same, there is no such split, or too few rows.
    """
    if (fit_split is None) != (check_split is None):
        raise TableError("name both the split to fit on and the split to check on, or neither")
    if fit_split is not None and fit_split == check_split:
        raise TableError(f"split {fit_split!r} cannot be both fitted and checked on")
    if fit_split is not None and check_split is not None:
        fitted, checked = table.select(fit_split), table.select(check_split)
    else:
        if table.rows < 2 * MIN_ROWS:
            raise TableError(f"half of the table is fitted on, which needs {2 * MIN_ROWS} rows; it has {table.rows}")
        halves = table.split_rows({"fit": 0.5, "check": 0.5}, seed=seed)
        fitted, checked = table.select(halves["fit"]), table.select(halves["check"])
    digests = {stage: f"table {table.digest()[:16]}" for stage in table.stages}
    calibration = fit(
        fitted, digests, ladder="table", prices=prices, answers=answers, routing=routing, seed=seed, progress=progress
    )
    return calibration, judge_table(checked, calibration, routing)


def market_of(
    judged: JudgedTable,
    base_prices: Sequence[float],
    rows: int = MARKET_ROWS,
    seed: int = 0,
    pools: Sequence[int] | None = None,
) -> Market:
    """The demand of a table's rows by price, for a loop that sets prices while it serves.

    Args:
        judged: rows like those that will come.
        base_prices: [S] price of a visit to each stage when nothing is scarce.
        rows: how many of them, drawn at random, stand for the traffic.
        seed: of that draw.
        pools: see `Market`.
    """
    if judged.rows > rows:
        judged = judged.select(np.random.default_rng(seed).permutation(judged.rows)[:rows])
    stages = len(judged.stages)
    # Single precision halves what is searched and shipped; gains are known to two digits at best.
    gains = [judged.gains[:, stage, stage + 1 :].astype(np.float32) for stage in range(stages - 1)]
    kind = DirectMarket if judged.routing == "direct" else Market
    return kind(gains, judged.p_correct.astype(np.float32), base_prices, pools=pools)
