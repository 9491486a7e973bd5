"""A judged table is what the server would make of the same rows."""

import numpy as np
import pytest
from table_cases import every_form, networks, views

from cascade.calibration.fitting import fit
from cascade.calibration.judged import price_path
from cascade.calibration.judging import fit_and_judge, judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import CalibrationMismatch, TableError
from cascade.policy.commands import Reply, Run
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.request import Request
from cascade.policy.walk import answers_so_far


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return networks(3000, seed=1)


def digests(table: OutcomeTable) -> dict[str, str]:
    return dict.fromkeys(table.stages, "digest")


def test_rows_stop_where_the_unloaded_policy_stops_them_with_the_same_answers() -> None:
    """The rows go through the real policy and the real judges one by one, as in the server; nothing is scarce."""
    table, prices = views(3000, seed=1, stages=3), (0.0, 0.05, 0.1)
    calibration = fit(table, digests(table), ladder="test", prices=prices)
    assert any(stage.history_weight for stage in calibration.stages), "the test is about stages that look back, too"
    judged = judge_table(table, calibration)
    exits = judged.exits(prices)
    assert set(exits[:300]) == {0, 1, 2}
    judges = [stage.judge() for stage in calibration.stages]
    costs = zip(table.cost, prices, strict=True)
    configs = [StageConfig(1, 1, cost, price, 1e-6, 0) for cost, price in costs]
    policy = Policy(configs, usual_deadline_s=1e6)
    seen = 0
    for row in range(0, 300):
        policy.arrived(0.0, [Request(row, 0.0, 1e6, 1e6)])
        commands = policy.dispatch(0.0)
        while commands:
            command = commands.pop()
            if isinstance(command, Reply):
                answer = command.answer
                assert answer.stage == exits[row]
                label = int(answer.judgement.probabilities[0].argmax())
                assert (label == table.labels[row]) == judged.served[row, answer.stage]
                assert answer.confidence == pytest.approx(judged.p_correct[row, answer.stage], rel=1e-9)
                seen += 1
            elif isinstance(command, Run):
                batch = command.batch
                logits = np.log(np.maximum(table.probs(table.stages[batch.stage])[row : row + 1], 1e-38))
                earlier = answers_so_far(batch.walks, 5) if batch.stage else None
                commands += policy.completed(0.0, batch, judges[batch.stage](logits, earlier))
                commands += policy.dispatch(0.0)
    assert seen == 300


def test_higher_prices_never_let_a_row_go_further(table: OutcomeTable) -> None:
    judged = judge_table(table, fit(table, digests(table), ladder="test"))
    before = judged.exits(price_path(judged.cost)[0])
    for prices in price_path(judged.cost)[1:]:
        now = judged.exits(prices)
        assert (now <= before).all()
        before = now
    assert (before == 0).all(), "the last price is above every gain"


def test_what_comes_of_a_walk_adds_up(table: OutcomeTable) -> None:
    judged = judge_table(table, fit(table, digests(table), ladder="test"))
    walked = judged.walk((0.0, 0.02, 0.05))
    assert walked.exit_shares.sum() == pytest.approx(1)
    assert walked.visits[0] == 1
    assert walked.cost == pytest.approx(float(walked.visits @ judged.cost))
    whole = judged.stop_at(2)
    assert whole.accuracy - walked.accuracy <= walked.losses.mean()
    assert not whole.losses.any()


def test_a_bare_table_is_fitted_on_one_half_and_judged_on_the_other(table: OutcomeTable) -> None:
    calibration, judged = fit_and_judge(table, seed=3)
    assert calibration.table.rows + judged.rows == table.rows
    assert abs(calibration.table.rows - judged.rows) < 10
    again = fit_and_judge(table, seed=3)[1]
    np.testing.assert_array_equal(judged.p_correct, again.p_correct)


def test_named_splits_are_used_as_named() -> None:
    table = OutcomeTable.from_arrays(every_form(rows=200))
    calibration, judged = fit_and_judge(table, fit_split="calibration", check_split="test")
    assert (calibration.table.rows, judged.rows) == (100, 100)
    assert judged.group is not None
    with pytest.raises(TableError, match="both the split to fit on and the split to check on"):
        fit_and_judge(table, fit_split="calibration")
    with pytest.raises(TableError, match="cannot be both fitted and checked on"):
        fit_and_judge(table, fit_split="test", check_split="test")


def test_too_few_rows_to_halve_are_refused() -> None:
    with pytest.raises(TableError, match="needs 40 rows; it has 30"):
        fit_and_judge(networks(30, seed=1))


def test_another_ladder_or_a_poorer_table_is_refused(table: OutcomeTable) -> None:
    calibration = fit(table, digests(table), ladder="test")
    with pytest.raises(CalibrationMismatch, match="the table has the stages small, medium, large"):
        judge_table(OutcomeTable.from_arrays(every_form()), calibration)
    arrays = table.arrays()
    del arrays["probs/net1"]
    arrays["correct/net1"], arrays["score/net1"] = table.correct("net1"), table.score("net1")
    with pytest.raises(TableError, match="stage 'net1' reads probabilities; the table lacks probs/net1"):
        judge_table(OutcomeTable.from_arrays(arrays), calibration)


def test_chunks_change_nothing(table: OutcomeTable) -> None:
    calibration = fit(table, digests(table), ladder="test")
    whole = judge_table(table, calibration)
    some = judge_table(table.select(np.arange(17)), calibration)
    np.testing.assert_allclose(some.gains, whole.gains[:17], rtol=1e-12)
    np.testing.assert_array_equal(some.served, whole.served[:17])
