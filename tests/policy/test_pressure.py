"""How much less a row shall think: the surcharge over its class's weight, and nothing for those whom load does not touch."""

import pytest
from builders import admit, at_stage0, batches, judged, ladder, request, stage
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.classes import ClassConfig, Classes
from cascade.policy.fairness import Tenants
from cascade.policy.stage_config import StageConfig
from cascade.policy.tariff import Tariff

BASE = (0.0, 0.0625)


def tariff(*configs: ClassConfig, tenants: Tenants | None = None) -> Tariff:
    return Tariff(BASE, Classes(configs or (ClassConfig(),), BASE), tenants or Tenants())


def thinking() -> StageConfig:
    return StageConfig(1, 4, 10.0, BASE[1], 0.01, 0.001, thinks=True)


def test_without_a_surcharge_nobody_thinks_less():
    priced = tariff()
    assert priced.pressure(0.0, request(), 1) == 0.0
    priced.set([0.0, BASE[1] / 2], float("inf"))  # below the base price, which holds then
    assert priced.pressure(0.0, request(), 1) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 100))
def test_it_grows_with_the_surcharge_and_falls_with_the_weight(price, other, weight):
    low, high = sorted((price, other))
    found = []
    for each in (low, high):
        priced = tariff(ClassConfig(weight))
        priced.set([0.0, each], float("inf"))
        found.append(priced.pressure(0.0, request(), 1))
        assert found[-1] == pytest.approx(min(1.0, max(0.0, each - BASE[1]) / weight))
    assert 0.0 <= found[0] <= found[1] <= 1.0


def test_a_class_with_a_floor_thinks_as_it_did_when_that_was_certified():
    priced = tariff(ClassConfig(1.0, (0.0, 0.25)), ClassConfig(0.5))
    priced.set([0.0, 0.3125], float("inf"))
    assert [priced.pressure(0.0, request(priority=priority), 1) for priority in (1, 2)] == [0.0, 0.5]


def test_a_tenant_within_its_fair_rate_thinks_as_without_load():
    tenants = Tenants()
    for tenth in range(200):
        tenants.arrived(tenth / 10, "large", 10)
        if tenth % 10 == 0:
            tenants.arrived(tenth / 10, "small", 1)
    priced = tariff(tenants=tenants)
    priced.set([0.0, 0.3125], 50.0)
    assert [priced.pressure(20.0, request(tenant=tenant), 1) for tenant in ("small", "large")] == [0.0, 0.25]


def test_a_policy_says_it_for_every_row_of_a_batch_and_that_it_does():
    policy = ladder(stage(batch=2), thinking(), classes=[ClassConfig(), ClassConfig(0.5)])
    assert policy.thinks == (False, True)
    admit(policy, 0.0, request(priority=1))
    batch = at_stage0(policy, request(priority=2))
    policy.set_prices([0.0, 0.3125])
    policy.completed(0.0, batch, judged([1.0], [1.0]))
    (behind,) = batches(policy.dispatch(0.0))
    assert policy.pressures(0.0, behind) == [0.25, 0.5]
    assert policy.thinks_less
    policy.set_prices([0.0, 0.0])
    assert policy.pressures(0.0, behind) == [0.0, 0.0]
    assert not policy.thinks_less


def test_the_price_of_a_stage_that_does_not_think_shortens_nothing():
    policy = ladder(stage(), stage(cost=10, base_price=BASE[1]))
    policy.set_prices([0.0, 0.5])
    assert not policy.thinks_less
