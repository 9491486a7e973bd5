"""The slow loop: prices follow load, slots follow replicas, and a loop that fails or dies does no harm."""

import asyncio
import logging

import numpy as np
import pytest
from ladders import UNSURE, config, fake_stages, judges, row

from cascade.calibration.certify import certify
from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Command
from cascade.policy.market import Market
from cascade.policy.policy import Policy
from cascade.serving.router import Router
from cascade.serving.slow_loop import PERIOD_S, PRICES_LAST_S, Control, SlowLoop, StagePlaces
from tests.calibration.judged_cases import difficulty_ladder

STAGES = 3
BASE = 0.01
ONE_CLASS = ClassConfig()


def market() -> Market:
    """Gains spread evenly from 0 to 1 behind each stage."""
    gain = np.linspace(0.0, 1.0, 500)
    gains = [np.column_stack([gain] * (STAGES - 1 - k)) for k in range(STAGES - 1)]
    return Market(gains, np.full((500, STAGES), 0.9), (0.0, BASE, BASE))


class Loop:
    """A slow loop over a policy that nobody drives."""

    def __init__(self, *, running=None, classes=(ONE_CLASS,), with_market=True, share=1.0, certificate=None) -> None:
        # 2 slots of 8 rows in 18 ms: about 444 rows/s a replica.
        self.policy = Policy(
            [config(base_price=0.0 if k == 0 else BASE) for k in range(STAGES)], usual_deadline_s=1.0, classes=classes
        )
        self.carried: list[Command] = []
        places = [StagePlaces(1, lambda count: 2 * count, share, running if k == 1 else None) for k in range(STAGES)]
        self.slow = SlowLoop(
            self.policy,
            Control(classes, places, market() if with_market else None, certificate),
            self.carried.extend,
            0.0,
        )

    def offer(self, rate: float, until_s: float = 3.0, priority: int = 1) -> float:
        """Let rows come evenly; returns when the last came."""
        now = 0.0
        while now < until_s:
            now += 1 / rate
            self.slow.arrived(now, priority, 1)
        return now


def test_without_load_prices_stay_at_their_base():
    loop = Loop()
    loop.slow.step(loop.offer(50.0))
    assert loop.policy.prices == (0.0, BASE, BASE)
    assert loop.slow.rate(3.0) == pytest.approx(50.0, rel=0.1)


def test_load_beyond_a_stage_raises_its_price_and_the_price_falls_with_the_load():
    loop = Loop()
    now = loop.offer(2000.0)
    loop.slow.step(now)
    assert loop.policy.prices[1] > 0.5
    loop.slow.step(now + 5.0)
    assert loop.policy.prices == (0.0, BASE, BASE)


def test_a_router_counts_on_its_own_share_of_a_stage():
    alone, shared = Loop(), Loop(share=0.5)
    for loop in (alone, shared):
        loop.slow.step(loop.offer(1000.0))
    assert shared.policy.prices[1] > alone.policy.prices[1]


def test_without_a_market_prices_are_left_alone():
    loop = Loop(with_market=False)
    loop.slow.step(loop.offer(5000.0))
    assert loop.policy.prices == (0.0, BASE, BASE)
    assert loop.slow.clearing is None


def test_slots_follow_replicas_and_a_stage_without_any_is_out_of_the_market():
    count = 3
    loop = Loop(running=lambda: count)
    now = loop.offer(2000.0)
    loop.slow.step(now)
    assert loop.policy.capacities[1].slots == 6
    count = 0
    loop.slow.step(now)
    assert loop.policy.capacities[1].slots == 0
    assert loop.slow.replicas[1] == 0
    assert loop.slow.clearing is not None
    assert loop.slow.clearing.visits[1] == 0.0
    count = 1
    loop.slow.step(now)
    assert loop.policy.capacities[1].slots == 2


def test_replicas_that_nobody_has_heard_of_change_nothing():
    loop = Loop(running=lambda: None)
    loop.slow.step(1.0)
    assert loop.policy.capacities[1].slots == 2


def test_what_autoscaling_is_told_is_surcharge_demand_and_the_rate_of_one_replica():
    loop = Loop()
    assert loop.slow.readings({"s1": 1}) == {}
    loop.slow.step(loop.offer(2000.0))
    reading = loop.slow.readings({"s1": 1})["s1"]
    assert reading.surcharge == pytest.approx(loop.policy.prices[1] - BASE)
    assert reading.demand == pytest.approx(0.99 * 2000.0, rel=0.05)
    assert reading.rate == pytest.approx(8 / 0.018)


def make(control: Control) -> Router:
    return Router(
        Policy([config(base_price=BASE)] * STAGES, usual_deadline_s=1.0),
        judges(STAGES),
        fake_stages(STAGES),
        classes=2,
        margin_s=0.02,
        clock=asyncio.get_running_loop().time,
        control=control,
    )


@pytest.mark.looptime(noop_cycles=0)
async def test_a_round_that_fails_is_logged_and_the_next_one_works(caplog):
    fail = True

    def running() -> int:
        if fail:
            raise RuntimeError("told to fail")
        return 4

    places = [StagePlaces(1, lambda count: count, 1.0, running if k == 1 else None) for k in range(STAGES)]
    router = make(Control((ClassConfig(),), places, market()))
    router.start()
    with caplog.at_level(logging.ERROR, "cascade.router"):
        await asyncio.sleep(1.5 * PERIOD_S)
    assert "the slow loop failed" in caplog.text
    fail = False
    await asyncio.sleep(PERIOD_S)
    assert router.policy.capacities[1].slots == 4
    await router.close()


@pytest.mark.looptime(noop_cycles=0)
async def test_prices_that_nobody_renews_are_forgotten():
    router = make(Control((ClassConfig(),), [StagePlaces(1, lambda count: count)] * STAGES, market()))
    router.policy.set_prices([0.0, 0.9, 0.9])  # and no slow loop is started
    (early,) = await router.answer(row(UNSURE, UNSURE, UNSURE), 1, budget_s=1.0)
    assert early.stage == 0
    await asyncio.sleep(PRICES_LAST_S + 1.0)
    await router.answer(row(UNSURE, UNSURE, UNSURE), 1, budget_s=1.0)
    assert router.policy.prices == (BASE,) * STAGES
    (late,) = await router.answer(row(UNSURE, UNSURE, UNSURE), 1, budget_s=1.0)
    assert late.stage == STAGES - 1


def test_rounds_that_fail_renew_no_price():
    loop = Loop()
    loop.slow.step(loop.offer(2000.0))
    assert loop.policy.prices[1] > BASE
    set_prices, base = loop.policy.set_prices, (0.0, BASE, BASE)

    def refusing(prices, *rest):
        if tuple(prices) != base:
            raise RuntimeError("told to fail")
        set_prices(prices, *rest)

    loop.policy.set_prices = refusing
    now = 3.0
    while now < 3.0 + PRICES_LAST_S + 1.0:
        now += PERIOD_S
        loop.slow.arrived(now, 1, 1000)
        with pytest.raises(RuntimeError):
            loop.slow.step(now)
        loop.slow.forget_stale(now)
        assert (loop.policy.prices == base) == (now > 3.0 + PRICES_LAST_S)


# -- what is certified -------------------------------------------------------------------------------------------------


def test_the_loss_of_stopping_at_a_stage_is_bounded_at_present_prices():
    certificate = certify(difficulty_ladder(rows=4000, seed=1), max_loss=0.03, confidence=0.9, prices_grid=[])
    loop = Loop(certificate=certificate)
    stops = loop.slow.certified_stops(0.0)
    assert stops == tuple(certificate.bound_stopping((0.0, BASE, BASE), stage) for stage in range(STAGES))
    assert list(stops) == sorted(stops, reverse=True)
    assert stops[-1] == loop.slow.certified_loss(0.0)
    early = loop.slow.certified_stops(0.02)
    most = certificate.path[-1].bound_below
    assert early == tuple(min(most, stop + 0.02) for stop in stops)
    loop.policy.set_prices([0.0, 0.5, 0.5])
    assert all(dear >= cheap for dear, cheap in zip(loop.slow.certified_stops(0.0), stops, strict=True))
    loop.policy.set_slots(1, 0)
    assert loop.slow.certified_stops(0.0) is None


def test_without_a_certificate_nothing_is_certified():
    assert Loop().slow.certified_stops(0.0) is None
