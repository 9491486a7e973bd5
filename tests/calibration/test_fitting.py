"""From a table to a calibration: which rows, which numbers, and what they are worth on rows not seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from table_cases import every_form, networks, scored

from cascade.calibration.artefact import Calibration
from cascade.calibration.fitting import MIN_REACHED, fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import confidence, log_probabilities, reliability
from cascade.calibration.service_time import fit_service_time
from cascade.errors import ConfigError, TableError
from cascade.policy.gain import Curve


def calibrated(table: OutcomeTable, **options: object) -> Calibration:
    return fit(table, {stage: f"digest of {stage}" for stage in table.stages}, ladder="test", **options)  # type: ignore[arg-type]


def test_every_pair_of_stages_has_a_gain_and_every_stage_its_numbers() -> None:
    table = networks(3000, seed=1)
    calibration = calibrated(table)
    assert [stage.name for stage in calibration.stages] == list(table.stages)
    assert [list(stage.gains) for stage in calibration.stages] == [["net1", "net2"], ["net2"], []]
    for stage in calibration.stages:
        assert stage.digest == f"digest of {stage.name}"
        assert stage.accuracy == pytest.approx(table.correct(stage.name).mean())
        assert stage.temperature > 1.2
        assert stage.nll_before is not None
        assert stage.nll_after is not None
        assert stage.nll_after < stage.nll_before
        assert stage.ece_before is not None
        assert stage.ece_after < stage.ece_before
    assert calibration.table.digest == table.digest()
    assert (calibration.table.rows, calibration.table.split) == (3000, None)


def test_p_correct_and_gains_hold_on_rows_not_fitted_on() -> None:
    calibration = calibrated(networks(10_000, seed=2))
    unseen = networks(40_000, seed=3)
    first = calibration.stages[0]
    confidences = confidence(log_probabilities(unseen.probs("net0")), first.temperature)
    predicted = Curve.of(first.p_correct.x, first.p_correct.y)(confidences)
    assert reliability(predicted, unseen.correct("net0")).ece < 0.02
    for dearer, gain in first.gains.items():
        difference = unseen.correct(dearer).astype(float) - unseen.correct("net0")
        expected = Curve.of(gain.x, gain.y)(confidences)
        for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 1.0)):
            inside = (expected > low) & (expected <= high)
            assert difference[inside].mean() == pytest.approx(expected[inside].mean(), abs=0.03)


def test_a_stage_is_fitted_on_the_rows_that_reach_it() -> None:
    """Over all rows stage b is right nine times in ten; among those that a passes on, half of the time."""
    random = np.random.default_rng(4)
    hard = random.random(8000) < 0.2
    score = np.where(hard, random.uniform(0.2, 0.4, 8000), random.uniform(0.8, 1.0, 8000))
    first = np.where(hard, random.random(8000) < 0.2, True)
    second = np.where(hard, random.random(8000) < 0.5, True)
    table = scored(score, first, second)
    routed = calibrated(table).stages[1]
    assert routed.rows == pytest.approx(hard.sum(), abs=150)
    assert routed.p_correct.y[0] == pytest.approx(second[hard].mean(), abs=0.03)
    assert routed.accuracy == pytest.approx(second.mean())
    bypassed = calibrated(table, prices=(0.0, 0.9)).stages[1]
    assert bypassed.rows == 8000, "nothing reaches it at that price, so all rows stand in"
    assert bypassed.p_correct.y[0] == pytest.approx(second.mean(), abs=0.02)


def test_few_reaching_rows_give_way_to_all_rows() -> None:
    random = np.random.default_rng(5)
    hard = np.arange(2000) < MIN_REACHED // 2
    score = np.where(hard, 0.1, random.uniform(0.8, 1.0, 2000))
    table = scored(score, ~hard, np.ones(2000, dtype=bool))
    assert calibrated(table).stages[1].rows == 2000


def test_a_split_is_read_alone_and_named() -> None:
    arrays = every_form(rows=100)
    calibration = calibrated(OutcomeTable.from_arrays(arrays), split="calibration")
    assert (calibration.table.rows, calibration.table.split) == (50, "calibration")
    assert calibration.stages[2].accuracy == pytest.approx(arrays["correct/large"][:50].mean())


def test_scores_alone_are_used_as_they_are() -> None:
    calibration = calibrated(OutcomeTable.from_arrays(every_form(rows=200)))
    for stage in calibration.stages[1:]:
        assert stage.temperature == 1.0
        assert stage.nll_before is stage.nll_after is None
        assert stage.ece_before is not None


def test_scores_that_are_no_probabilities_have_no_calibration_error_before() -> None:
    random = np.random.default_rng(6)
    margin = random.normal(size=500)
    right = random.random(500) < 1 / (1 + np.exp(-margin))
    stage = calibrated(scored(10 * margin, right)).stages[0]
    assert stage.ece_before is None
    assert stage.ece_after < 0.1
    assert stage.p_correct.x[0] < 0


def test_progress_is_told_stage_by_stage() -> None:
    told: list[tuple[int, int, str]] = []
    calibrated(networks(100, seed=7), progress=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == list(range(7))
    assert {total for _, total, _ in told} == {6}
    assert [what for _, _, what in told][::3] == ["answers of net0", "gains over net0", "done"]


def test_the_same_table_and_seed_give_the_same_calibration() -> None:
    table = networks(500, seed=8)
    assert calibrated(table, seed=3) == calibrated(table, seed=3)


def test_what_cannot_be_fitted_is_refused() -> None:
    table = networks(30, seed=9)
    with pytest.raises(TableError, match="calibration needs at least 20 rows, the table has 19"):
        calibrated(table.select(np.arange(19)))
    with pytest.raises(TableError, match="no split array"):
        calibrated(table, split="test")
    with pytest.raises(ConfigError, match="no digest for stage 'net1'"):
        fit(table, {"net0": "a"}, ladder="test")
    with pytest.raises(ConfigError, match="expected one price for each of 3 stages, got 1"):
        calibrated(table, prices=(0.0,))


@settings(deadline=None)
@given(
    a=st.floats(0, 0.1),
    b=st.floats(1e-6, 0.01),
    sizes=st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True),
)
def test_an_exact_line_of_batch_times_is_recovered(a: float, b: float, sizes: list[int]) -> None:
    found = fit_service_time(sizes, [a + b * n for n in sizes])
    for n in sizes:
        assert found[0] + found[1] * n == pytest.approx(a + b * n, rel=1e-6)


@settings(deadline=None)
@given(
    times=st.lists(st.tuples(st.integers(1, 256), st.floats(1e-4, 1.0)), min_size=1, max_size=10),
)
def test_a_service_time_is_never_negative_and_minimises_relative_errors(times: list[tuple[int, float]]) -> None:
    sizes, seconds = [n for n, _ in times], [t for _, t in times]
    a, b = fit_service_time(sizes, seconds)
    assert a >= 0
    assert b >= 0
    design = np.array([[1 / t, n / t] for n, t in times])
    _, least = nnls(design, np.ones(len(times)))
    assert np.linalg.norm(design @ [a, b] - 1) == pytest.approx(least, abs=1e-6)


def test_short_and_long_batches_count_alike() -> None:
    """The error that is allowed at 256 rows does not swamp the time of one row."""
    sizes = [1, 2, 4, 64, 256]
    seconds = [0.0011, 0.0012, 0.0014, 0.0080, 0.0260]
    a, b = fit_service_time(sizes, seconds)
    for n, t in zip(sizes, seconds, strict=True):
        assert a + b * n == pytest.approx(t, rel=0.1)


@pytest.mark.parametrize("seconds", [[], [0.1], [0.1, 0.0], [0.1, float("nan")]])
def test_times_that_are_none_are_refused(seconds: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected a time above 0 for each of 2 batch sizes"):
        fit_service_time([1, 2], seconds)
