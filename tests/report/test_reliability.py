"""Reliability by stage: what counts, how it is binned, and what the figure shows."""

from dataclasses import replace

import numpy as np
import pytest

from cascade.report.reliability import ROWS_A_BIN, reliability_figure, stage_reliability
from cascade.report.style import pyplot
from tests.calibration.judged_cases import difficulty_ladder

PRICES = (0.0, 0.05, 0.2)


@pytest.fixture
def walked():
    return difficulty_ladder(6000, seed=3).walk(PRICES)


def test_only_rows_that_reach_a_stage_count(walked) -> None:
    found = stage_reliability(walked)
    assert [stage.rows for stage in found] == [int((walked.exits >= k).sum()) for k in range(3)]
    for k, stage in enumerate(found):
        reach = walked.exits >= k
        assert stage.count.sum() == stage.histogram.sum() == stage.rows
        assert stage.mean_accuracy == pytest.approx(walked.judged.served[reach, k].mean())
        assert stage.mean_confidence == pytest.approx(walked.judged.p_correct[reach, k].mean())


def test_true_probabilities_err_by_chance_only(walked) -> None:
    for stage in stage_reliability(walked):
        assert 0 < stage.ece < 2 * stage.ece_by_chance


def test_the_error_of_perfect_confidences_is_what_is_expected_of_it() -> None:
    # 40 tables of 2,000 rows whose probabilities are the truth.
    found = [stage_reliability(difficulty_ladder(2000, seed=seed).stop_at(2))[0] for seed in range(40)]
    eces = np.array([stage.ece for stage in found])
    assert eces.mean() == pytest.approx(np.mean([stage.ece_by_chance for stage in found]), abs=4 * eces.std() / np.sqrt(40))


def test_confidences_that_are_a_tenth_too_high_show_it(walked) -> None:
    # The second stage is right about 8 of 10 at most, so a tenth more stays a probability.
    low = np.minimum(walked.judged.p_correct, 0.85)
    honest, bold = (replace(walked, judged=replace(walked.judged, p_correct=p)) for p in (low, low + 0.1))
    before, after = stage_reliability(honest)[1], stage_reliability(bold)[1]
    assert before.mean_confidence is not None
    assert after.mean_confidence == pytest.approx(before.mean_confidence + 0.1)
    assert after.mean_accuracy == before.mean_accuracy
    assert after.ece > before.ece + 0.02


def test_intervals_hold_the_accuracy_and_narrow_with_rows(walked) -> None:
    for stage in stage_reliability(walked):
        assert (stage.low <= stage.accuracy).all()
        assert (stage.accuracy <= stage.high).all()
    wide, narrow = (stage_reliability(difficulty_ladder(rows, seed=1).stop_at(2))[0] for rows in (400, 40_000))
    assert (narrow.high - narrow.low).max() < (wide.high - wide.low).max() / 3


def test_few_rows_make_few_bins() -> None:
    found = stage_reliability(difficulty_ladder(4 * ROWS_A_BIN, seed=1).stop_at(2))
    assert len(found[0].count) == 4


def test_a_stage_that_no_row_reaches_says_nothing() -> None:
    last = stage_reliability(difficulty_ladder(500).stop_at(0))[-1]
    assert (last.rows, last.mean_accuracy, last.mean_confidence, last.ece) == (0, None, None, 0.0)
    assert last.document()["accuracy"] == []


def test_the_figure_shows_every_bin(walked) -> None:
    stage = stage_reliability(walked)[0]
    figure = reliability_figure(stage)
    points = figure.axes[0].lines[1]
    np.testing.assert_allclose(points.get_xdata(), 100 * stage.confidence)
    np.testing.assert_allclose(points.get_ydata(), 100 * stage.accuracy)
    assert "6,000 rows" in figure.axes[0].get_title(loc="left")
    pyplot().close(figure)
