"""The benchmark of scale: what it plays is what it took down, and its tables say what its document holds."""

from math import log

import numpy as np
import pytest

from benchmarks.scale import cost, quality, settings, solve, tables
from benchmarks.scale.replay import ARRIVED, Player, measure, size_of
from cascade.policy.commands import Reply


@pytest.fixture(scope="module")
def recording():
    """A short run of two replicas of each stage."""
    return cost.record(cost.Case(2, 1, 2.0), rows=100)


def test_a_recording_played_to_a_fresh_policy_gives_every_row_the_same_way(recording):
    answered = []
    for _ in range(2):
        player, told = Player(recording.policy()), []
        player.play(
            recording.events,
            lambda commands, told=told: told.extend((c.tag, c.answer.stage) for c in commands if type(c) is Reply),
        )
        answered.append(told)
    assert answered[0] == answered[1]
    assert len(answered[0]) > 50


def test_what_is_measured_begins_with_a_row_after_the_run_has_filled_up(recording):
    kind, now, *_ = recording.events[recording.begin]
    assert kind == ARRIVED
    assert now >= cost.FILL_S
    assert recording.rows > 0


def test_one_router_of_several_is_recorded_with_its_own_rows_only():
    one, both = cost.record(cost.Case(2, 2, 2.0), rows=50), cost.record(cost.Case(2, 1, 2.0), rows=100)
    came = [sum(len(event[2]) for event in found.events if event[0] == ARRIVED) for found in (one, both)]
    assert came[0] == pytest.approx(came[1] / 2, rel=0.2)


def test_the_figures_of_a_recording_say_what_is_under_way_at_its_end(recording):
    found = measure(recording, rounds=2, limit_s=1e9)
    assert len(found.cpu_s) == 2
    assert found.live >= found.waiting > 0
    assert 0 < found.running <= 6
    assert found.bytes > found.idle_bytes > 0


def test_the_size_of_an_object_holds_what_it_refers_to_once():
    rows = np.zeros(1000)
    assert 8000 < size_of([rows, rows]) < 8000 + 500
    assert size_of([rows[:1]]) > 8000  # a view keeps the whole


def test_one_router_loses_nothing_against_itself():
    run = quality.Run(replicas=2, routers=1, load=2.0, rows=100, seed=0)
    loss = quality.compare(run)
    assert (loss.lost, loss.error) == (0.0, 0.0)
    assert 50 < loss.right <= 100


def test_runs_that_are_compared_are_of_the_same_requests():
    for runs in quality.planned_runs():
        assert len({(run.replicas, run.load, run.seed, run.rows) for run in runs}) == 1
        assert runs[0].routers == 1
        assert len(runs) == len(set(runs))


@pytest.mark.parametrize(
    ("routers", "calls", "slots", "rows"),
    [
        (1, "server", [64, 64, 64], [32, 16, 8]),
        (8, "server", [64, 64, 64], [4, 2, 1]),
        (64, "server", [32, 16, 8], [1, 1, 1]),
        (64, "each", [64, 64, 64], [1, 1, 1]),
        (8, "large", [8, 8, 8], [32, 16, 8]),
        (64, "large", [4, 4, 4], [8, 4, 2]),
    ],
)
def test_an_arrangement_says_how_routers_share_replicas(routers, calls, slots, rows):
    configs, servers = settings.arrangement(64, routers, calls)
    assert [config.slots for config in configs] == slots
    assert [config.max_batch_size for config in configs] == rows
    assert all(server.replicas == 64 for server in servers)


def test_a_ladder_of_any_number_of_stages_is_right_about_its_own_gains():
    judged = solve.ladder(4, 20_000)
    for k in range(4):
        assert judged.served[:, k].mean() == pytest.approx(judged.p_correct[:, k].mean(), abs=0.01)
        for j in range(k + 1, 4):
            measured = (judged.served[:, j].astype(float) - judged.served[:, k]).mean()
            assert judged.gains[:, k, j].mean() == pytest.approx(measured, abs=0.01)


def test_growth_is_fitted_against_the_logarithm_and_against_the_size():
    sizes = [4, 16, 64, 256, 1000]
    by_log = [10 + 3 * log(size) for size in sizes]
    assert tables.fit(sizes, by_log, log) == pytest.approx((10.0, 3.0, 1.0))
    assert tables.fit(sizes, by_log, float).explained < 0.8
    assert tables.within_log(sizes, by_log)
    assert not tables.within_log(sizes, [10 + 0.1 * size for size in sizes])
    assert tables.within_log(sizes, [10.0] * 5)


def cost_entry(replicas: int, routers: int = 1, load: float = 8.0, **more):
    usual = {"rows": 1000, "events": 4000, "cpu_s": [0.03, 0.04, 0.05], "live": 10, "waiting": 4, "running": 3}
    return {"replicas": replicas, "routers": routers, "load": load, **usual, "bytes": 21_000, "idle_bytes": 1000, **more}


def quality_entry(routers: int, seed: int = 0, **more):
    usual = {"replicas": 4, "load": 8.0, "rows": 100, "compared": 8, "calls": "server", "right": 90.0, "top_rows": 7.0}
    return {
        **usual,
        "routers": routers,
        "seed": seed,
        "lost": 0.0,
        "error": 0.3,
        "calls_per_row": 1.5,
        "p99_ms": 300.0,
        **more,
    }


def test_the_section_says_what_was_found_and_a_missed_target_is_called_missed():
    slow = cost_entry(1000, cpu_s=[9.0], before_cpu_s=[18.0])
    document = {
        "machine": {"cores": 2, "python": "3.11", "system": "Linux"},
        "date": "2026-01-01",
        "before": "v1",
        "cost": [cost_entry(4), slow, cost_entry(1000, routers=8)],
        "quality": [
            quality_entry(1),
            quality_entry(4, lost=0.4),
            quality_entry(4, seed=1, lost=0.6),
            quality_entry(4, calls="each"),
        ],
        "solve": [solve.Solved(10, 5, 2.0, 3.0, 0.0, 0)._asdict(), solve.Solved(10, 1, 1.0, 1.5, 9.0, 80)._asdict()],
    }
    text = tables.section(document)
    assert "| x8 | 40.0 (30.0–50.0) | 9,000.0 |" in text
    assert "MISSED" in text
    assert "| x2.00 |" in text
    assert "+0.50 ± 0.21" in text
    assert "2,000" in text  # bytes a row
    assert "| 10 x 5 | 2.00 | 3.00 | as with one |" in text
    document["cost"] = [cost_entry(4), cost_entry(1000)]
    assert "MISSED" not in tables.section(document)
