"""From an outcome table to a `Calibration`. Runs the estimators of the modules beside it over the stages; knows no model.

Two passes. The first settles what each stage answers: its temperature, and whether earlier answers are recalled or combined
with its own. The second fits, on the rows that reach a stage, how probably its answer is right and what every dearer stage
would gain over it; a gain needs the dearer stage's answer, hence the order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import cascade
from cascade.calibration.answering import Answering, Answers, answer_stage, improves
from cascade.calibration.artefact import (
    Calibration,
    GainCurve,
    HeldOutError,
    Knots,
    LearnedGain,
    StageCalibration,
    TableSource,
)
from cascade.calibration.gain_model import fit_logistic_gain
from cascade.calibration.gains import FOLDS, Method, fit_gain
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import Floats, p_correct_curve, reliability, significant
from cascade.errors import ConfigError, TableError
from cascade.policy.gain import Curve
from cascade.policy.price import continuation_value
from cascade.policy.routing import Routing

MIN_ROWS = 20
"""Fewest rows that anything is fitted on."""
MIN_REACHED = 200
"""Fewest reaching rows that stand for a stage's traffic; below it, the noise of few rows outweighs the bias of all."""
MANY_ROWS = 10_000
"""With more, a learned gain is tried on one fold instead of all: the choice is clear enough, and costs a fifth."""

Bools = NDArray[np.bool_]
Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what comes next."""


def fit(
    table: OutcomeTable,
    digests: Mapping[str, str],
    *,
    ladder: str,
    split: str | None = None,
    prices: Sequence[float] | None = None,
    answers: Answers = "best",
    routing: Routing = "cascade",
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Fit temperatures, the way to answer, p(correct) curves and the gain of every pair of stages.

    Calibration over all rows does not survive routing: the rows that a cheap stage passes on are harder than their
    confidence at the next stage tells. So each stage is fitted on the rows that reach it when nothing is loaded: row by
    row, the policy's own rule decides with the curves of the cheaper stages, fitted before.

    Args:
        table: outcomes on rows that no stage was trained on.
        digests: of each stage by name, to recognise the models again.
        ladder: name of the ladder.
        split: use only the rows of this split.
        prices: price of each stage, the operating point that decides which rows reach a stage; zeros if left out.
        answers: ``best`` lets a stage recall or combine earlier answers where that is right more often on rows held out;
            ``replace`` has every stage answer for itself.
        routing: how rows will walk. With ``direct`` no stage looks back at others, whatever ``answers`` says, since rows may
            not have visited them. The rows that stages are fitted on are those of the cascade all the same: the few that
            reach a stage past others at one vector of prices tell too little about other prices.
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
    tell = _teller(progress, 2 * len(rows.stages))
    if routing == "direct":
        answers = "replace"
    fitting = _Fitting(rows, prices, seed, learned=routing == "cascade")
    for stage in rows.stages:
        tell(f"answers of {stage}")
        fitting.settle_answers(answers)
    stages = []
    for index, stage in enumerate(rows.stages):
        tell(f"gains over {stage}")
        stages.append(fitting.calibrate(index, digests[stage]))
    tell("done")
    return Calibration(
        format_version=1,
        created_by=f"cascade {cascade.__version__}",
        ladder=ladder,
        table=TableSource(digest=table.digest(), rows=rows.rows, split=split),
        prices=prices,
        stages=tuple(stages),
    )


def _teller(progress: Progress | None, steps: int) -> Callable[[str], None]:
    done = iter(range(steps + 1))

    def tell(what: str) -> None:
        if progress is not None:
            progress(next(done), steps, what)

    return tell


@dataclass
class _Fitting:
    """The state of the two passes over one table."""

    table: OutcomeTable
    prices: tuple[float, ...]
    seed: int
    learned: bool

    def __post_init__(self) -> None:
        self._right = [self.table.correct(stage) for stage in self.table.stages]
        self._answered: list[Answering] = []
        self._reached = np.ones(self.table.rows, dtype=np.bool_)
        self._before: tuple[Floats, Bools] | None = None  # p(correct) and correctness of the answers of the stage before

    def settle_answers(self, answers: Answers) -> None:
        """First pass, one stage further: what it answers every row with, and provisionally which rows go on."""
        index = len(self._answered)
        before = self._answered[-1] if index else None
        fitted = self._fitted()
        answering = answer_stage(self.table, self.table.stages[index], before, fitted, answers, self.seed)
        if not self.learned:
            answering.features = None  # agreement with the stage before is one of them
        self._answered.append(answering)
        if before is not None:
            before.log_probabilities = None  # as large as a stage of the table, and read only by the stage after
        behind = self._right[index + 1 :]
        if behind:
            # Provisional: what dearer stages will answer is not settled yet, so each stands for itself.
            confidences = answering.confidence
            gains = np.column_stack(
                [
                    fit_gain(confidences[fitted], _difference(right[fitted], answering.right[fitted]), folds=0).curve(
                        confidences
                    )
                    for right in behind
                ]
            )
            self._keep_going(index, gains)
        else:
            self._reached = np.ones(self.table.rows, dtype=np.bool_)

    def calibrate(self, index: int, digest: str) -> StageCalibration:
        """Second pass, one stage: p(correct) and gains on the rows that reach it."""
        answering, fitted = self._answered[index], self._fitted()
        if self._before is not None:
            answering.recall_again(*self._before)
        confidences, right = answering.confidence, answering.right
        used, correct = confidences[fitted], right[fitted]
        p_correct = p_correct_curve(used, correct)
        self._before = p_correct(confidences), right
        gains: dict[str, GainCurve | LearnedGain] = {}
        values = np.empty((self.table.rows, len(self.table.stages) - index - 1))
        for place, dearer in enumerate(self._answered[index + 1 :]):
            chosen, values[:, place] = self._gain(answering, dearer, fitted)
            gains[self.table.stages[index + 1 + place]] = chosen
        if gains:
            self._keep_going(index, values)
        raw, own = answering.raw[fitted], self._right[index][fitted]
        is_probability = bool(raw.min() >= 0 and raw.max() <= 1 + 1e-6)
        nll = (None, None) if answering.nll is None else tuple(significant(value) for value in answering.nll)
        return StageCalibration(
            name=self.table.stages[index],
            digest=digest,
            temperature=significant(answering.temperature),
            p_correct=_knots(p_correct),
            gains=gains,
            history_weight=significant(answering.history_weight),
            recall=None if answering.recall is None else _knots(answering.recall),
            accuracy=significant(float(self._right[index].mean())),
            served_accuracy=significant(float(right.mean())),
            rows=int(fitted.sum()),
            ece_before=significant(reliability(raw, own).ece) if is_probability else None,
            ece_after=significant(_cross_validated_ece(used, correct, self.seed)),
            nll_before=nll[0],
            nll_after=nll[1],
        )

    def _fitted(self) -> Bools:
        """Rows to fit the present stage on."""
        return self._reached if int(self._reached.sum()) >= MIN_REACHED else np.ones_like(self._reached)

    def _keep_going(self, index: int, gains: Floats) -> None:
        dearer = range(index + 1, len(self.table.stages))
        self._reached = self._reached & (continuation_value(gains, index, dearer, self.prices) > self.prices[index + 1])

    def _gain(self, answering: Answering, dearer: Answering, fitted: Bools) -> tuple[GainCurve | LearnedGain, Floats]:
        """The gain of one dearer stage, and its value for every row, [N]."""
        confidences = answering.confidence
        used, difference = confidences[fitted], _difference(dearer.right[fitted], answering.right[fitted])
        found = fit_gain(used, difference, seed=self.seed)
        errors = {name: significant(error) for name, error in found.held_out.items()}
        features = answering.features
        if features is not None:
            is_better, error = self._learned(features[fitted], used, difference, found.method)
            held_out = HeldOutError(**errors, logistic=significant(error))
            if is_better:
                model = fit_logistic_gain(features[fitted], difference)
                mended, spoilt = tuple(model.mended.tolist()), tuple(model.spoilt.tolist())
                learned = LearnedGain(
                    method="logistic", mended=mended, spoilt=spoilt, curve=_knots(model.curve), held_out=held_out
                )
                return learned, model(features)
        else:
            held_out = HeldOutError(**errors)
        knots = _knots(found.curve)
        return GainCurve(x=knots.x, y=knots.y, method=found.method, held_out=held_out), found.curve(confidences)

    def _learned(self, features: Floats, confidences: Floats, difference: Floats, method: Method) -> tuple[bool, float]:
        """Whether the learned gain errs less on held-out rows, by more than chance would give; and its squared error."""
        fold = np.random.default_rng(self.seed).permutation(len(difference)) % FOLDS
        by_curve, by_model = [], []
        for held_out in range(FOLDS if len(difference) <= MANY_ROWS else 1):
            test = fold == held_out
            curve = fit_gain(confidences[~test], difference[~test], folds=0, method=method).curve
            model = fit_logistic_gain(features[~test], difference[~test])
            by_curve.append(np.square(difference[test] - curve(confidences[test])))
            by_model.append(np.square(difference[test] - model(features[test])))
        errors = np.concatenate(by_model)
        return improves(np.concatenate(by_curve), errors), float(errors.mean())


def _difference(dearer: Bools, cheaper: Bools) -> Floats:
    return dearer.astype(np.float64) - cheaper


def _cross_validated_ece(confidences: Floats, correct: Bools, seed: int) -> float:
    """Calibration error of p(correct) curves on the rows that each was not fitted on."""
    fold = np.random.default_rng(seed).permutation(len(correct)) % FOLDS
    predicted = np.empty(len(correct))
    for held_out in range(FOLDS):
        test = fold == held_out
        predicted[test] = p_correct_curve(confidences[~test], correct[~test])(confidences[test])
    return reliability(predicted, correct).ece


def _knots(curve: Curve) -> Knots:
    return Knots(x=tuple(curve.x.tolist()), y=tuple(curve.y.tolist()))
