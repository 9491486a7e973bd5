"""What a certificate says about tables of known truth, its file, and the lookup of a load controller."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.calibration.artefact import Calibration
from cascade.calibration.certificate import Certificate, digest_of
from cascade.calibration.certify import certify, path_through
from cascade.calibration.judged import price_path
from cascade.calibration.risk import binomial_p, clopper_pearson, covering_losses
from cascade.errors import CalibrationMismatch, ConfigError, TableError
from tests.calibration.judged_cases import difficulty_ladder

ARTEFACT = Path(__file__).parents[2] / "deployments" / "fashion" / "calibration" / "calibration.json"


@pytest.fixture(scope="module")
def judged():
    return difficulty_ladder(rows=4000, seed=1, groups=3)


@pytest.fixture(scope="module")
def certificate(judged):
    return certify(judged, max_loss=0.03, confidence=0.9)


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_each_point_says_what_comes_of_the_rows_at_its_prices(judged, certificate):
    assert (certificate.rows, certificate.delta, certificate.max_loss) == (4000, 0.1, 0.03)
    assert len(certificate.path) == 60
    for point in certificate.path:
        walked = judged.walk(point.prices)
        assert (point.accuracy, point.cost, point.losses) == (walked.accuracy, walked.cost, walked.losses.sum())
        assert point.loss == pytest.approx(walked.losses.mean())
        assert point.bound == clopper_pearson(4000, point.losses, 0.1 / 60)
        covering = covering_losses(judged)[np.arange(4000), walked.exits].sum()
        assert point.bound_below == clopper_pearson(4000, covering, 0.1 / 60)


def test_the_chosen_point_is_the_boldest_that_was_certified(certificate):
    path, chosen = certificate.path, certificate.chosen
    assert [point.certified for point in path] == [True] * (chosen + 1) + [False] * (len(path) - chosen - 1)
    assert binomial_p(4000, path[chosen].losses, 0.03) <= 0.1
    assert binomial_p(4000, path[chosen + 1].losses, 0.03) > 0.1
    assert path[chosen].cost < path[0].cost


def test_prices_may_move_freely_up_to_a_point_no_bolder_than_the_chosen_one(judged, certificate):
    cap = certificate.price_cap
    assert cap < certificate.chosen
    covering = [
        covering_losses(judged)[np.arange(4000), judged.exits(certificate.path[index].prices)].sum()
        for index in (cap, cap + 1)
    ]
    assert binomial_p(4000, covering[0], 0.03) <= 0.1 < binomial_p(4000, covering[1], 0.03)


def test_bounds_rise_along_the_path_and_the_last_point_stops_every_row_at_once(judged, certificate):
    below = [point.bound_below for point in certificate.path]
    assert below == sorted(below)
    assert all(point.bound <= point.bound_below for point in certificate.path)
    assert certificate.path[-1].cost == judged.cost[0]
    assert certificate.path[-1].bound_below > (covering_losses(judged)[:, 0]).mean()


def test_a_path_that_ends_early_is_continued_to_where_every_row_stops(judged):
    short = certify(judged, max_loss=0.03, confidence=0.9, path=price_path(judged.cost)[:40], prices_grid=[])
    assert len(short.path) == 41
    assert short.path[-1].prices[1:] == (1.0, 1.0)
    assert short.path[-1].cost == judged.cost[0]


def test_a_path_may_pass_through_the_base_prices(judged):
    base = [0.0, 0.0124, 0.0496]
    path = path_through(judged.cost, base)
    assert len(path) == 61
    assert any(np.array_equal(point, base) for point in path)
    certificate = certify(judged, max_loss=0.03, confidence=0.9, path=path, prices_grid=[])
    assert any(point.prices == tuple(base) for point in certificate.path)
    assert len(path_through(judged.cost, [0.0, 0.9, 0.01])) == 60, "prices that lie on no such path"


def test_the_pareto_choice_is_tested_on_the_half_that_did_not_find_it(judged, certificate):
    choice = certificate.pareto
    assert (choice.tried, choice.rows) == (260, 2000)
    assert choice.front < choice.tried
    assert binomial_p(2000, choice.losses, 0.03) <= 0.1
    assert choice.cost < certificate.path[0].cost
    other = certify(judged, max_loss=0.03, confidence=0.9, seed=1).pareto
    assert (other.losses, other.accuracy) != (choice.losses, choice.accuracy)
    assert certify(judged, max_loss=0.03, confidence=0.9) == certificate


def test_a_price_of_its_own_for_each_stage_mends_gains_that_were_fitted_badly(judged):
    gains = judged.gains.copy()
    gains[:, 0, 2] = 0.0
    gains[:, 1, 2] /= 8
    misjudged = replace(judged, gains=gains)
    certificate = certify(misjudged, max_loss=0.05, confidence=0.9)
    assert certificate.pareto.cost < certificate.path[certificate.chosen].cost


# -- groups ------------------------------------------------------------------------------------------------------------


def test_groups_share_the_error_probability(judged, certificate):
    walked = judged.walk(certificate.path[certificate.chosen].prices)
    assert [group.name for group in certificate.groups] == ["group0", "group1", "group2"]
    assert sum(group.rows for group in certificate.groups) == 4000
    assert sum(group.losses for group in certificate.groups) == walked.losses.sum()
    for group in certificate.groups:
        members = judged.group == group.name
        assert group.accuracy == pytest.approx(walked.right[members].mean())
        assert group.bound == clopper_pearson(group.rows, group.losses, 0.1 / (3 * 60))


@pytest.mark.parametrize("max_loss", [0.02, 0.025, 0.03, 0.035])
def test_a_group_is_certified_if_every_point_up_to_the_chosen_one_passes_at_its_share(judged, max_loss):
    certificate = certify(judged, max_loss=max_loss, confidence=0.9, prices_grid=[])
    walks = [judged.walk(point.prices) for point in certificate.path[: certificate.chosen + 1]]
    for group in certificate.groups:
        losses = [walked.losses[judged.group == group.name].sum() for walked in walks]
        assert group.certified == bool(np.all(binomial_p(group.rows, losses, max_loss) <= 0.1 / 3))


def test_a_group_that_loses_more_is_not_certified_with_the_rest(judged):
    group = np.where(judged.p_correct[:, 0] < 0.97, "hard", "easy")
    groups = {g.name: g for g in certify(replace(judged, group=group), max_loss=0.03, confidence=0.9).groups}
    assert groups["easy"].certified
    assert not groups["hard"].certified
    assert groups["hard"].loss > groups["easy"].loss


# -- too little to go by -----------------------------------------------------------------------------------------------


def test_too_few_rows_are_refused_with_the_number_needed(judged):
    with pytest.raises(TableError, match=r"229 rows can certify nothing at a loss of 0\.01 .* at least 230 are needed"):
        certify(judged.select(np.arange(229)), max_loss=0.01, confidence=0.9)


def test_half_of_just_enough_rows_is_too_few_for_a_pareto_choice():
    perfect = difficulty_ladder(rows=230, errors=(0.0, 0.0, 0.0))
    certificate = certify(perfect, max_loss=0.01, confidence=0.9)
    assert certificate.chosen == len(certificate.path) - 1
    assert certificate.pareto is None
    assert certificate.groups == ()
    assert certificate.path[0].bound > 0.01, "the bounds at all points at once need more rows than the test"


def test_what_nothing_can_be_certified_for_says_what_could_be(judged):
    gains = -np.abs(judged.gains)
    never = certify(replace(judged, gains=gains), max_loss=0.01, confidence=0.9)
    assert never.chosen is None
    assert never.price_cap is None
    assert never.pareto is None
    assert never.groups == ()
    again = certify(replace(judged, gains=gains), max_loss=never.smallest_max_loss + 1e-9, confidence=0.9)
    assert again.chosen is not None
    less = certify(replace(judged, gains=gains), max_loss=never.smallest_max_loss - 1e-4, confidence=0.9)
    assert less.chosen is None


def test_a_ladder_of_one_stage_loses_nothing():
    one = certify(difficulty_ladder(rows=500, errors=(0.5,), cost=(1.0,)), max_loss=0.01, confidence=0.9)
    assert one.chosen == 0
    assert one.path[0].losses == 0
    assert one.bound_at([0.0]) == clopper_pearson(500, 0, 0.1)


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"max_loss": 0.0}, "max_loss"),
        ({"confidence": 1.0}, "confidence"),
        ({"path": [np.array([0, 0.1, 0.1]), np.array([0, 0.2, 0.05])]}, "path: a price falls from point 0 to point 1"),
    ],
)
def test_arguments_that_make_no_sense_are_named(judged, change, mentions):
    with pytest.raises(ConfigError, match=mentions):
        certify(judged, **({"max_loss": 0.03, "confidence": 0.9} | change))


def test_progress_is_told_of_every_price_vector(judged):
    told = []
    certify(judged, max_loss=0.03, confidence=0.9, progress=lambda done, total, what: told.append((done, total)))
    assert told == [(step, 260) for step in range(260)]


# -- the lookup --------------------------------------------------------------------------------------------------------

price = st.floats(0, 3)


@given(st.lists(price, min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3))
@settings(max_examples=100, deadline=None)
def test_the_bound_at_any_prices_covers_them_and_rises_with_them(judged, certificate, prices, shares):
    bound = certificate.bound_at(prices)
    assert bound >= covering_losses(judged)[np.arange(4000), judged.exits(prices)].mean()
    assert certificate.bound_at([p * s for p, s in zip(prices, shares, strict=True)]) <= bound


def test_the_bound_is_that_of_the_nearest_point_which_no_price_exceeds(certificate):
    point = certificate.path[30]
    just_below = [9.0, *(p * 0.999 for p in point.prices[1:])]
    assert certificate.bound_at(point.prices) == certificate.bound_at(just_below) == point.bound_below
    one_above = [0.0, point.prices[1] * 1.001, 0.0]
    assert certificate.bound_at(one_above) == certificate.path[31].bound_below
    assert certificate.bound_at([0.0, 1e9, 1e9]) == certificate.path[-1].bound_below
    with pytest.raises(ConfigError, match="one for each of 3 stages, got 2"):
        certificate.bound_at([0.0, 0.1])


def test_a_cap_is_the_boldest_point_below_which_no_more_is_lost(certificate):
    for index in (0, 20, 45, 59):
        bound = certificate.path[index].bound_below
        cap = certificate.cap_for(bound)
        assert certificate.bound_at(cap) <= bound
        assert all(c >= p for c, p in zip(cap, certificate.path[index].prices, strict=True))
    assert certificate.cap_for(certificate.path[0].bound_below * 0.999) is None


@given(st.lists(price, min_size=3, max_size=3), st.sampled_from([0, 1, 2]))
@settings(max_examples=100, deadline=None)
def test_the_bound_of_stopping_covers_rows_that_stop_at_a_stage_at_the_latest(judged, certificate, prices, stage):
    bound = certificate.bound_stopping(prices, stage)
    exits = np.minimum(judged.exits(prices), stage)
    assert bound >= covering_losses(judged)[np.arange(4000), exits].mean()
    assert bound >= (judged.served[:, -1] & ~judged.served[np.arange(4000), exits]).mean()


def test_the_bounds_of_stopping_are_those_of_all_points_and_stages_at_once(judged, certificate):
    covers = covering_losses(judged)
    for point in certificate.path[::10]:
        exits = judged.exits(point.prices)
        losses = covers[np.arange(4000), np.minimum(exits, 1)].sum()
        assert point.bounds_stopping[0] == certificate.path[-1].bound_below
        assert point.bounds_stopping[1] == clopper_pearson(4000, losses, 0.1 / 60)
        assert point.bounds_stopping[2] == point.bound_below
        assert point.bounds_stopping[0] >= point.bounds_stopping[1] >= point.bounds_stopping[2]


def test_a_file_from_before_there_were_bounds_of_stopping_knows_the_one_that_covers_all(certificate):
    old = certificate.model_copy(
        update={"path": tuple(point.model_copy(update={"bounds_stopping": ()}) for point in certificate.path)}
    )
    assert old.bound_stopping([0.0, 0.0, 0.0], 1) == certificate.path[-1].bound_below


# -- the file ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(certificate, tmp_path):
    certificate.write(tmp_path / "certificate.json")
    assert Certificate.read(tmp_path / "certificate.json") == certificate


@pytest.mark.parametrize(
    ("edit", "mentions"),
    [
        (lambda d: d.update(chosen=99), "chosen: 99 is none of 60 points"),
        (lambda d: d.update(path=d["path"][::-1]), "no price may fall"),
        (lambda d: d["path"][3].update(prices=[0.0]), "path.3.prices: expected 3 prices, got 1"),
        (lambda d: d["path"][3].update(bound=1.5), "path.3.bound"),
        (lambda d: d["path"][3].update(bounds_stopping=[0.5]), "path.3.bounds_stopping: expected 3 bounds, got 1"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(certificate, tmp_path, edit, mentions):
    document = certificate.model_dump(mode="json")
    edit(document)
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=mentions):
        Certificate.read(path)


def test_a_certificate_vouches_for_one_calibration_only(judged):
    calibration = Calibration.read(ARTEFACT)
    made = certify(judged, max_loss=0.03, confidence=0.9, prices_grid=[], calibration=digest_of(calibration))
    made.check_belongs(calibration)
    other = calibration.model_copy(update={"prices": tuple(2 * p for p in calibration.prices)})
    with pytest.raises(CalibrationMismatch, match="cascade certify"):
        made.check_belongs(other)
