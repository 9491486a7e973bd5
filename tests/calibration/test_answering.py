"""Which answer a stage gives: its own, an earlier one, or both combined; and the gains learned from several features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from table_cases import networks, softmax, views

from cascade.calibration.answering import fit_pool, improves
from cascade.calibration.artefact import Calibration, LearnedGain
from cascade.calibration.fitting import fit
from cascade.calibration.gain_model import fit_logistic_gain
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.policy.gain import evidence_features


def calibrated(table: OutcomeTable, **options: object) -> Calibration:
    return fit(table, dict.fromkeys(table.stages, "digest"), ladder="test", **options)  # type: ignore[arg-type]


def test_two_independent_views_are_combined_and_are_right_more_often_than_either() -> None:
    calibration = calibrated(views(4000, seed=1))
    second = calibration.stages[1]
    assert second.history_weight == pytest.approx(1.0, abs=0.15), "the views are independent: their log-likelihoods add up"
    unseen = judge_table(views(20_000, seed=2), calibration)
    own, served = unseen.right[:, 1].mean(), unseen.served[:, 1].mean()
    assert served > own + 0.1
    assert second.served_accuracy == pytest.approx(served, abs=0.02)
    assert abs(unseen.p_correct[:, 1].mean() - served) < 0.01


def test_a_stage_that_sees_all_that_the_one_before_sees_answers_for_itself() -> None:
    """The first stage is a noisy copy of the second: nothing it says adds to what the second says."""
    random = np.random.default_rng(3)
    rows, classes = 4000, 5
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 2.0
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array(["first", "second"]),
            "cost": np.array([1.0, 10.0]),
            "cost_unit": np.array("MAC"),
            "labels": labels,
            "probs/first": softmax(logits + 2 * random.normal(size=(rows, classes))),
            "probs/second": softmax(2.0 * logits),
        }
    )
    stage = calibrated(table).stages[1]
    assert stage.history_weight == 0
    assert stage.recall is None
    assert stage.served_accuracy == stage.accuracy


def test_replace_tries_nothing() -> None:
    stage = calibrated(views(2000, seed=1), answers="replace").stages[1]
    assert (stage.history_weight, stage.recall) == (0, None)


def scored_specialists(rows: int, seed: int) -> OutcomeTable:
    """Scores alone: the dear stage is good at one half of the rows and knows it, and poor at the other half."""
    random = np.random.default_rng(seed)
    special = random.random(rows) < 0.5
    return OutcomeTable.from_arrays(
        {
            "stages": np.array(["general", "special"]),
            "cost": np.array([1.0, 10.0]),
            "cost_unit": np.array("MAC"),
            "labels": np.zeros(rows, dtype=np.int64),
            "correct/general": random.random(rows) < 0.7,
            "score/general": np.full(rows, 0.7) + 0.01 * random.random(rows),
            "correct/special": random.random(rows) < np.where(special, 0.95, 0.4),
            "score/special": np.where(special, 0.9, 0.4) + 0.05 * random.random(rows),
        }
    )


def test_an_earlier_answer_is_recalled_where_it_is_more_probably_right() -> None:
    calibration = calibrated(scored_specialists(4000, seed=4))
    special = calibration.stages[1]
    assert special.recall is not None
    unseen = judge_table(scored_specialists(20_000, seed=5), calibration)
    assert unseen.right[:, 1].mean() == pytest.approx(0.675, abs=0.01)
    assert unseen.served[:, 1].mean() == pytest.approx(0.5 * 0.95 + 0.5 * 0.7, abs=0.01)
    kept = unseen.p_correct[:, 1] < 0.8
    assert (unseen.served[kept, 1] == unseen.right[kept, 0]).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), beta=st.floats(0.3, 2.0), weight=st.floats(0.0, 1.5))
def test_the_pool_is_the_most_likely_one(seed: int, beta: float, weight: float) -> None:
    random = np.random.default_rng(seed)
    rows, classes = 3000, 4
    own, history = (log_softmax(1.5 * random.normal(size=(rows, classes)), axis=1) for _ in range(2))
    truth = np.exp(log_softmax(beta * own + weight * history, axis=1))
    labels = (random.random((rows, 1)) > np.cumsum(truth, axis=1)).sum(axis=1).clip(max=classes - 1)

    def loss(b: float, v: float) -> float:
        pooled = b * own + v * history
        return float((logsumexp(pooled, axis=1) - pooled[np.arange(rows), labels]).mean())

    found = fit_pool(own, history, labels)
    assert min(found) >= 0
    for step in (-0.01, 0.01):
        assert loss(*found) <= loss(max(found[0] + step, 0), found[1]) + 1e-9
        assert loss(*found) <= loss(found[0], max(found[1] + step, 0)) + 1e-9
    assert found == (pytest.approx(beta, abs=0.25), pytest.approx(weight, abs=0.25))


def test_a_difference_that_chance_may_give_is_no_improvement() -> None:
    present = np.zeros(100, dtype=bool)
    few, many = present.copy(), present.copy()
    few[:2], many[:5] = True, True
    assert not improves(present, present)
    assert not improves(few, present)
    assert improves(many, present)


def test_a_gain_that_depends_on_the_class_is_learned() -> None:
    """Only rows of two classes can be mended by the dear stage, and confidence says nothing about which."""
    random = np.random.default_rng(6)
    rows, classes = 6000, 6
    predicted = random.integers(0, classes, rows)
    right = random.random(rows) < 0.6
    labels = np.where(right, predicted, (predicted + 1) % classes)
    probs = np.full((rows, classes), 0.08)
    probs[np.arange(rows), predicted] = 0.6
    table = OutcomeTable.from_arrays(
        {
            "stages": np.array(["cheap", "dear"]),
            "cost": np.array([1.0, 10.0]),
            "cost_unit": np.array("MAC"),
            "labels": labels,
            "probs/cheap": probs,
            "correct/dear": np.where(predicted < 2, True, right),
            "score/dear": np.full(rows, 0.9),
        }
    )
    calibration = calibrated(table)
    gain = calibration.stages[0].gains["dear"]
    assert isinstance(gain, LearnedGain)
    assert gain.held_out.logistic is not None
    assert gain.held_out.logistic < min(gain.held_out.isotonic, gain.held_out.binned)
    values = judge_table(table, calibration).gains[:, 0, 1]
    assert values[predicted < 2].mean() == pytest.approx(0.4, abs=0.03)
    assert abs(values[predicted >= 2]).max() < 0.05


def test_a_learned_gain_recovers_its_own_model() -> None:
    random = np.random.default_rng(7)
    features = random.normal(size=(40_000, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, 1.0]
    scores = np.column_stack([features @ [1.0, 0.1, 0.0] - 2.0, features @ [0.0, -0.1, 5.0] - 6.0, np.zeros(40_000)])
    truth = softmax(scores)
    drawn = (random.random((40_000, 1)) > np.cumsum(truth, axis=1)).sum(axis=1)
    model = fit_logistic_gain(features, np.array([1.0, -1.0, 0.0])[drawn])
    gain = truth[:, 0] - truth[:, 1]
    np.testing.assert_allclose(model.index(features), gain, atol=0.03)
    assert abs(model(features) - gain).mean() < 0.02


def test_a_learned_gain_is_nothing_where_the_stages_never_differed() -> None:
    random = np.random.default_rng(11)
    features = np.column_stack([random.random(2000), random.random(2000)])
    difference = np.where((features[:, 0] > 0.7) & (random.random(2000) < 0.5), 1.0, 0.0)
    gain = fit_logistic_gain(features, difference)
    assert gain(np.array([[0.1, 0.5], [0.2, 0.9]])).tolist() == [0.0, 0.0], "else such rows would go on at a price of 0"
    assert gain(np.array([[0.9, 0.5]]))[0] > 0.3


def test_a_feature_that_never_varies_gets_no_weight() -> None:
    random = np.random.default_rng(8)
    features = np.column_stack([random.random(200), np.ones(200)])
    model = fit_logistic_gain(features, np.where(features[:, 0] > 0.5, 1.0, 0.0))
    assert model.mended[2] == model.spoilt[2] == 0
    assert np.isfinite(model(features)).all()


def test_evidence_features_are_what_they_say() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    features = evidence_features(probabilities, np.array([0, 2]))
    np.testing.assert_allclose(features[:, 0], [0.7, 0.5])
    np.testing.assert_allclose(features[:, 1], [0.5, 0.0])
    np.testing.assert_allclose(features[:, 2], [0.8018186, np.log(2)], rtol=1e-6)
    assert features[:, 3].tolist() == [1, 0]
    assert features[:, 4:].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert evidence_features(probabilities, None)[:, 3].tolist() == [1, 1]


def test_fitting_with_combination_costs_no_calibration() -> None:
    """p(correct) of combined answers holds on rows not fitted on, among those that reach the stage."""
    calibration = calibrated(networks(8000, seed=9))
    unseen = judge_table(networks(40_000, seed=10), calibration)
    for stage in range(3):
        reached = unseen.exits(calibration.prices) >= stage
        predicted, served = unseen.p_correct[reached, stage], unseen.served[reached, stage]
        assert predicted.mean() == pytest.approx(served.mean(), abs=0.03)
