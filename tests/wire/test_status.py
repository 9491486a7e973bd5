"""The figures of several routers put together: what adds up adds up, shares stay shares, bounds are the worst."""

from dataclasses import fields, replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.wire.live import Audited, ClassLive, Figure, LiveStatistics, StageLive
from cascade.wire.status import RouterReading, status_document, together


def stage(share, **changes) -> StageLive:
    return StageLive(**{"price": 0.1, "share": share, "capacity": 100.0, "replicas": 2, "queue": 3, **changes})


def live(rate=10.0, share=0.75, **changes) -> LiveStatistics:
    facts = {
        "rate": rate,
        "stages": {"low": stage(share), "high": stage(1 - share)},
        "degraded": 0.1,
        "shed_per_s": 1.0,
        "answered_per_s": rate,
        "lag_s": 0.001,
    }
    return LiveStatistics(**(facts | changes))


def test_one_router_speaks_for_itself():
    only = live()
    assert together([only]) is only


def test_rates_queues_and_capacities_add_up_while_replicas_are_seen_by_all():
    both = together([live(10.0), live(30.0)])
    assert (both.rate, both.answered_per_s, both.shed_per_s) == (40.0, 40.0, 2.0)
    assert (both.stages["low"].queue, both.stages["low"].capacity, both.stages["low"].replicas) == (6, 200.0, 2)


def test_a_share_is_that_of_all_the_rows_together():
    both = together([live(10.0, share=1.0, degraded=0.0), live(30.0, share=0.6, degraded=0.4)])
    assert both.stages["low"].share == pytest.approx((10 * 1.0 + 30 * 0.6) / 40)
    assert both.degraded == pytest.approx(0.3)


def test_the_loss_is_bounded_by_the_worst_router_and_by_nothing_if_one_has_no_bound():
    assert together([live(certified_loss=0.01), live(certified_loss=0.03)]).certified_loss == 0.03
    assert together([live(certified_loss=0.01), live(certified_loss=None)]).certified_loss is None


def test_no_figure_that_every_router_has_is_lost():
    figures = [field.name for field in fields(LiveStatistics) if field.type == "Figure" or field.type == Figure]
    assert len(figures) > 15
    full = live(**dict.fromkeys(figures, 1.0))
    both = together([full, full])
    assert [name for name in figures if getattr(both, name) is None] == []


def test_what_is_saved_adds_up_and_its_share_is_of_all_the_rows():
    both = together([live(10.0, cost_ratio=0.1, cost_saved_per_day=5.0), live(30.0, cost_ratio=0.5, cost_saved_per_day=7.0)])
    assert both.cost_saved_per_day == 12.0
    assert both.cost_ratio == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)


def test_a_stage_that_is_out_for_one_router_has_no_price():
    out = replace(live(), stages={"low": stage(1.0), "high": stage(0.0, price=None, replicas=0)})
    both = together([live(), out])
    assert both.stages["high"].price is None
    assert both.stages["high"].replicas == 0


def test_independent_audits_are_worth_more_together():
    both = together([live(audited_accuracy=Audited(0.8, 0.1, 50)), live(audited_accuracy=Audited(0.9, 0.1, 50))])
    assert both.audited_accuracy is not None
    assert both.audited_accuracy.value == pytest.approx(0.85)
    assert both.audited_accuracy.standard_error == pytest.approx(0.1 / sqrt(2))
    assert both.audited_accuracy.rows == 100


def test_classes_are_put_together_by_priority():
    classes = {1: ClassLive(10.0, 0.0, 0.0), 2: ClassLive(0.0, None, 4.0)}
    both = together([live(classes=classes), live(classes={1: ClassLive(30.0, 0.4, 0.0), 2: ClassLive(1.0, 1.0, 1.0)})])
    assert both.classes == {1: ClassLive(40.0, pytest.approx(0.3), 0.0), 2: ClassLive(1.0, 1.0, 5.0)}


def test_what_no_router_knows_stays_unknown():
    idle = live(0.0, degraded=None, answered_per_s=0.0)
    both = together([idle, idle])
    assert (both.degraded, both.predicted_accuracy, both.audited_accuracy, both.window_s) == (None, None, None, None)


@given(st.lists(st.tuples(st.just(0.0) | st.floats(1e-3, 1e6), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_means_lie_among_what_they_are_means_of(routers):
    seen = [live(rate, share, degraded=degraded) for rate, share, degraded in routers]
    both = together(seen)
    assert sum(entry.share for entry in both.stages.values()) == pytest.approx(1.0)
    low, high = min(degraded for *_, degraded in routers), max(degraded for *_, degraded in routers)
    assert low - 1e-9 <= both.degraded <= high + 1e-9


def test_the_document_names_every_router_that_answered():
    readings = [RouterReading("b", "v2", live(30.0)), RouterReading("a", "v1", live(10.0), "cannot read it")]
    document = status_document(readings, model="m", version="7", server="0", cost_unit="MAC", routers=3)
    assert document["routers"]["expected"] == 3
    assert document["routers"]["answered"] == 2
    assert [each["id"] for each in document["routers"]["each"]] == ["a", "b"]
    assert [each["problem"] for each in document["routers"]["each"]] == ["cannot read it", None]
    assert document["live"]["rate"] == 40.0
