"""What clients that watch see, as a report counts it: answers by time given, and how often they get worse."""

import numpy as np
import pytest
from scipy.special import softmax

from cascade.calibration.fitting import fit
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.watching import seen_by_rule
from cascade.report.anytime import FALLS, NAMES, anytime_figure, watch
from cascade.report.anytime_section import anytime
from cascade.report.style import pyplot

PRICES, SECONDS = (0.0, 0.02, 0.05), (0.001, 0.004, 0.02)
ALONE = (0.001, 0.005, 0.025)
"""As if each resumed the one before."""


def noisy(rows: int, seed: int) -> OutcomeTable:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, rows)
    arrays = {
        "stages": np.array(["a", "b", "c"]),
        "cost": np.array([1.0, 10.0, 100.0]),
        "cost_unit": np.array("MAC"),
        "labels": labels,
    }
    for stage, noise in (("a", 2.0), ("b", 1.2), ("c", 0.7)):
        arrays[f"probs/{stage}"] = softmax(2.0 * np.eye(4)[labels] + random.normal(0, noise, (rows, 4)), axis=1)
    return OutcomeTable.from_arrays(arrays)


@pytest.fixture(scope="module")
def case():
    """Judged rows, their labels, and what is seen of them."""
    table = noisy(1200, 0)
    calibration = fit(table, dict.fromkeys(table.stages, "0" * 64), ladder="table", prices=PRICES)
    fresh = noisy(3000, 1)
    return judge_table(fresh, calibration), fresh.labels, seen_by_rule(fresh, calibration)


@pytest.fixture(scope="module")
def found(case):
    judged, labels, seen = case
    return watch(judged, labels, seen, PRICES, SECONDS, ALONE)


def test_answers_by_time_are_those_of_the_stages_that_are_done_by_then(case, found) -> None:
    judged, _, _ = case
    plain = found.rules[0]
    assert found.done_s == pytest.approx((0.001, 0.005, 0.025))
    assert found.alone_s == ALONE
    assert plain.accuracy[0] == judged.served[:, 0].mean()
    assert plain.accuracy[-1] == judged.walk(PRICES).accuracy
    assert plain.accuracy[0] < plain.accuracy[1] < plain.accuracy[2]
    assert found.alone == pytest.approx(judged.right.mean(axis=0))


def test_rules_that_keep_the_best_fall_less_often(found) -> None:
    by_rule = {each.rule: each for each in found.rules}
    assert list(by_rule) == list(NAMES)
    for tau, own, kept, surest in zip(
        FALLS, *(by_rule[rule].falls for rule in ("plain", "steady", "best_so_far")), strict=True
    ):
        assert surest <= kept <= own, tau
    assert by_rule["steady"].accuracy == by_rule["plain"].accuracy, "its labels are the stages' own"
    for each in found.rules:
        assert list(each.falls) == sorted(each.falls, reverse=True)
        assert all(walked <= every for walked, every in zip(each.falls_walked, each.falls, strict=True))
    assert found.standard_error(0.5) == pytest.approx(0.5 / np.sqrt(found.rows))


def test_the_figure_shows_every_rule_and_every_stage_alone(found) -> None:
    figure = anytime_figure(found)
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c"}
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert lines.keys() == {"the ladder: steady", "the ladder: best so far", "the ladder: product", "a stage alone"}
    for each in found.rules[1:]:
        assert lines[f"the ladder: {NAMES[each.rule]}"][:-1] == pytest.approx(100 * np.array(each.accuracy))
    pyplot().close(figure)


def test_without_probabilities_the_page_says_so() -> None:
    assert "no class probabilities" in anytime(None, None)
