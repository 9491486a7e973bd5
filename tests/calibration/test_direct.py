"""Rows that may skip stages: judged as the server would, certified for the way they walk, refused where they cannot."""

from dataclasses import replace

import numpy as np
import pytest
from judged_cases import difficulty_ladder
from table_cases import networks, views

from cascade.calibration.certify import certify
from cascade.calibration.fitting import fit
from cascade.calibration.fluid import Capacity, OperatingPoint, gear, solve
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import judge_table, market_of
from cascade.calibration.risk import losses_if_stopping
from cascade.errors import CalibrationMismatch
from cascade.policy.commands import Reply, Run
from cascade.policy.direct_market import DirectMarket
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import Request

PRICES = (0.0, 0.02, 0.08, 0.15)


def direct(**changes) -> JudgedTable:
    """Four stages, the third hardly better than the second."""
    table = difficulty_ladder(errors=(0.9, 0.5, 0.45, 0.1), cost=(1.0, 4.0, 16.0, 64.0), **changes)
    return replace(table, routing="direct")


def test_rows_visit_and_stop_where_the_unloaded_policy_has_them():
    table = networks(3000, seed=1)
    prices = (0.0, 0.05, 0.1)
    calibration = fit(table, dict.fromkeys(table.stages, "d"), ladder="test", prices=prices, routing="direct")
    walked = judge_table(table, calibration, "direct").walk(prices)
    judges = [stage.judge() for stage in calibration.stages]
    configs = [StageConfig(1, 1, cost, price, 1e-6, 0) for cost, price in zip(table.cost, prices, strict=True)]
    policy = Policy(configs, usual_deadline_s=1e6, routing="direct")
    skipped = 0
    for row in range(300):
        policy.arrived(0.0, [Request(row, 0.0, 1e6, 1e6)])
        commands, visited = policy.dispatch(0.0), []
        while commands:
            command = commands.pop()
            if isinstance(command, Run):
                batch = command.batch
                visited.append(batch.stage)
                logits = np.log(np.maximum(table.probs(table.stages[batch.stage])[row : row + 1], 1e-38))
                commands += policy.completed(0.0, batch, judges[batch.stage](logits))
                commands += policy.dispatch(0.0)
            else:
                assert isinstance(command, Reply)
                assert command.answer.stage == walked.exits[row]
                assert command.answer.cost == pytest.approx(walked.costs[row])
        assert visited == np.flatnonzero(walked.visited[row]).tolist()
        skipped += visited == [0, 2]
    assert skipped > 20


def test_costs_and_visits_are_those_of_the_stages_that_were_run():
    walked = direct().walk(PRICES)
    assert walked.visited[:, 0].all()
    assert walked.visited[np.arange(len(walked.exits)), walked.exits].all()
    behind = np.arange(4) > walked.exits[:, None]
    assert not (walked.visited & behind).any()
    assert walked.visits == pytest.approx(walked.visited.mean(axis=0))
    assert walked.cost == pytest.approx(float((walked.visited @ np.array([1.0, 4.0, 16.0, 64.0])).mean()))
    cascade = replace(walked.judged, routing="cascade").walk(PRICES)
    assert (cascade.visited == (np.arange(4) <= cascade.exits[:, None])).all()
    assert walked.visits[2] < cascade.visits[2]  # what is hardly better than the stage before it is skipped


def test_a_mix_of_gears_knows_where_its_rows_stop():
    judged = direct()
    used = gear(judged, PRICES)
    assert used.visits == pytest.approx(judged.walk(PRICES).visits)
    found = solve(np.array([used.accuracy]), used.visits[None], Capacity(np.full(4, 1e9)), 10.0)
    point = OperatingPoint(10.0, np.array(PRICES), ((used, 1.0),), found.shed)
    assert point.exit_shares == pytest.approx(judged.walk(PRICES).exit_shares)
    assert point.exit_shares.sum() == pytest.approx(1.0)


def test_a_lower_price_may_lead_a_row_to_a_cheaper_stage_and_the_certificate_covers_that():
    judged = direct(rows=3000, seed=2)
    random = np.random.default_rng(0)
    earlier = 0
    for _ in range(60):
        high = np.append(0.0, np.sort(random.uniform(0, 0.4, 3)))
        low = high * np.append(0.0, random.uniform(0, 1, 3))
        bold, safe = judged.walk(high), judged.walk(low)
        earlier += int((safe.exits < bold.exits).sum())
        assert not (safe.losses & ~losses_if_stopping(judged, high)).any()
        stays = judged.would_stop(high)
        assert (judged.would_stop(low) <= stays).all()
        assert stays[np.arange(judged.rows), safe.exits].all()
    assert earlier > 0, "the test is about rows that stop earlier at a lower price"


def test_the_certificate_is_for_the_rule_that_was_walked():
    judged = direct(seed=3)
    certificate = certify(judged, max_loss=0.2, confidence=0.9, prices_grid=[])
    assert certificate.routing == "direct"
    for point in certificate.path:
        walked = judged.walk(point.prices)
        assert point.losses == int(walked.losses.sum())
        assert point.cost == pytest.approx(walked.cost)
        assert point.bound_below >= losses_if_stopping(judged, np.array(point.prices)).mean()
    below = [point.bound_below for point in certificate.path]
    assert below == sorted(below)
    table = networks(400, seed=1)
    calibration = fit(table, dict.fromkeys(table.stages, "d"), ladder="test")
    with pytest.raises(CalibrationMismatch, match="made for routing direct, the spec says cascade"):
        certificate.check_belongs(calibration)


def test_a_calibration_that_looks_back_is_refused_and_one_for_direct_routing_never_does():
    table = views(2000, seed=1, stages=3)
    digests = dict.fromkeys(table.stages, "d")
    looking = fit(table, digests, ladder="test")
    with pytest.raises(CalibrationMismatch, match=r"looks back .* routing: direct"):
        judge_table(table, looking, "direct")
    straight = fit(table, digests, ladder="test", routing="direct", answers="best")
    judged = judge_table(table, straight, "direct")
    assert not any(stage.judge().looks_back for stage in straight.stages)
    assert (judged.served == judged.right).all()


def test_its_market_is_one_of_rows_that_skip():
    market = market_of(direct(), [0.0, 0.0, 0.0, 0.0])
    assert isinstance(market, DirectMarket)
