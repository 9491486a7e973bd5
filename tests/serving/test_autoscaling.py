"""Serve's side of scaling, without a cluster: Serve's own classes call the policies, with contexts made by hand."""

import json
from functools import partial
from math import nan

import pytest
from ladders import fake_ladder, parse_spec, spec_document
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from cascade.errors import SpecError
from cascade.policy.scaling import Reading
from cascade.serving.app import stage_deployment
from cascade.serving.autoscaling import autoscaling_stats, readings_of, router_replicas, stage_replicas
from cascade.spec import CascadeSpec, Ladder

SHORT = Reading(surcharge=0.1, demand=50.0, rate=20.0)
CALM = Reading(surcharge=0.0, demand=5.0, rate=20.0)


def spec(least=1, initial=1, most=4, **changes) -> CascadeSpec:
    document = spec_document(3, autoscaling={"up_after_s": 2.0, "down_after_s": 6.0, "target_utilisation": 0.5}, **changes)
    document["stages"][2] |= {"min_replicas": least, "replicas": initial, "max_replicas": most}
    return parse_spec(document)


def config_of(options) -> AutoscalingConfig:
    assert list(options) == ["autoscaling_config"]
    return options["autoscaling_config"]


def call(policy, config, name, *, app, now_s=0.0, target=1, running=None, metrics=None) -> int:
    """Call a policy as Serve's controller does; returns its decision, after Serve's own delays and factors."""
    context = AutoscalingContext(
        deployment_id=DeploymentID(name, app),
        deployment_name=name,
        app_name=app,
        current_num_replicas=target if running is None else running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics=metrics or {},
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=1e9 + now_s,
        config=config,
    )
    decision, state = policy(context)
    assert isinstance(state, dict)
    return decision


def as_serve_calls(options, name, app):
    """The policy of a deployment, wrapped and unpickled as in Serve's controller."""
    config = config_of(options)
    return partial(call, _apply_autoscaling_config(_resolve_policy_callable(config.policy)), config, name, app=app)


def reported(**routers: dict[str, Reading]):
    """What Serve's controller holds of router replicas: for each name a series for each replica, the newest last."""
    metrics: dict = {}
    for router, readings in routers.items():
        replica = ReplicaID(router, DeploymentID("router", "app"))
        for name, value in autoscaling_stats(readings).items():
            metrics.setdefault(name, {})[replica] = [TimeStampedValue(0.0, 1e9), TimeStampedValue(1.0, value)]
    return metrics


def ladder_policies(app: str, document: CascadeSpec | None = None):
    document = document or spec()
    router = as_serve_calls(router_replicas(document), "router", app)
    return router, as_serve_calls(stage_replicas(document, document.stages[2]), "s2", app)


def course(router, stage, readings, *, seconds, target, start_s=0.0) -> list[int]:
    """Decisions of each tenth of a second, which become the target at once."""
    asked = []
    for tick in range(int(seconds * 10)):
        now_s = start_s + tick / 10
        router(now_s=now_s, metrics=readings)
        target = stage(now_s=now_s, target=target)
        asked.append(target)
    return asked


# -- the way of a signal -----------------------------------------------------------------------------------------------


def test_what_a_router_says_reaches_the_stage_of_its_own_application_only():
    router, stage = ladder_policies("one")
    _, other = ladder_policies("two")
    asked = course(router, stage, reported(a={"s2": SHORT}), seconds=4, target=1)
    assert asked[0] == 1
    assert asked[-1] == 2  # 50 rows/s at half of 20 a replica are five; but at most twice as many
    assert {other(now_s=tick / 10, target=1) for tick in range(100)} == {1}


def test_what_is_said_of_one_stage_does_not_scale_another():
    router, stage = ladder_policies("three")
    assert set(course(router, stage, reported(a={"s1": SHORT}), seconds=5, target=1)) == {1}


def test_replicas_go_again_when_the_shortage_is_over():
    router, stage = ladder_policies("four")
    up = course(router, stage, reported(a={"s2": SHORT}), seconds=10, target=1)
    assert up[-1] == 4
    down = course(router, stage, reported(a={"s2": CALM}), seconds=40, target=up[-1], start_s=10.0)
    assert down[-1] == 1
    assert sorted(down, reverse=True) == down


def test_silence_of_the_routers_keeps_what_there_is():
    router, stage = ladder_policies("five")
    assert set(course(router, stage, {}, seconds=20, target=3)) == {3}
    course(router, stage, reported(a={"s2": SHORT}), seconds=1, target=3, start_s=20.0)
    assert set(course(router, stage, {}, seconds=20, target=3, start_s=21.0)) == {3}


def test_several_routers_count_as_one():
    half = Reading(SHORT.surcharge, SHORT.demand / 2, SHORT.rate)
    router, stage = ladder_policies("six")
    asked = course(router, stage, reported(a={"s2": half}, b={"s2": half}), seconds=10, target=1)
    assert asked[-1] == 4


def test_the_router_deployment_keeps_its_replicas():
    document = spec(router={"replicas": 3})
    router, _ = ladder_policies("seven", document)
    assert router(target=3, metrics=reported(a={"s2": SHORT})) == 3
    config = config_of(router_replicas(document))
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (3, 3, 3)


def test_statistics_survive_the_way_through_serve():
    readings = {"s1": CALM, "s2": SHORT}
    stats = autoscaling_stats(readings)
    assert all(type(value) is float for value in stats.values())
    assert readings_of({name: {"r": value} for name, value in stats.items()}) == readings
    assert autoscaling_stats({}) == {}


def test_what_is_no_reading_is_passed_over():
    good = {name: {"r": value} for name, value in autoscaling_stats({"s1": CALM}).items()}
    noise = {"running_requests": {"r": 3.0}, "s2.demand": {"r": 1.0}, "s1.colour": {"r": 1.0}}
    assert readings_of(good | noise) == {"s1": CALM}
    assert readings_of({name: {"r": nan} for name in good}) == {}


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_stage_without_bounds_or_with_narrow_ones_is_not_scaled():
    fixed = spec(least=3, initial=3, most=3)
    assert stage_replicas(fixed, fixed.stages[2]) == {"num_replicas": 3}
    assert stage_replicas(fixed, fixed.stages[1]) == {"num_replicas": 1}
    assert router_replicas(fixed) == {"num_replicas": 1}


def test_a_scaled_stage_starts_with_its_replicas_and_without_delays_of_serve():
    document = spec(least=2, initial=3, most=5)
    config = config_of(stage_replicas(document, document.stages[2]))
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (2, 3, 5)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (0, 0)
    assert (config.get_upscaling_factor(), config.get_downscaling_factor()) == (1, 1)
    assert config.metrics_interval_s <= 2 < config.look_back_period_s
    assert config.policy.policy_kwargs == {
        "min_replicas": 2,
        "max_replicas": 5,
        "up_after_s": 2.0,
        "down_after_s": 6.0,
        "target_utilisation": 0.5,
    }


def test_the_deployment_of_a_stage_carries_its_bounds():
    ladder = fake_ladder(3)
    assert stage_deployment(ladder, 1)._bound_deployment.num_replicas == 1
    deployment = stage_deployment(Ladder(spec(), ladder.root), 2)._bound_deployment
    assert deployment._deployment_config.autoscaling_config.max_replicas == 4


@pytest.mark.parametrize(
    ("stage", "mentions"),
    [
        ({"min_replicas": 1}, ["together", "1", "None"]),
        ({"max_replicas": 2}, ["together", "None", "2"]),
        ({"min_replicas": 0, "max_replicas": 2}, ["stages.0.min_replicas", "got 0"]),
        ({"min_replicas": 2, "max_replicas": 4}, ["replicas 1", "min_replicas 2", "max_replicas 4"]),
        ({"replicas": 5, "min_replicas": 1, "max_replicas": 4}, ["replicas 5", "max_replicas 4"]),
        ({"min_replicas": 1, "max_replicas": 2, "placement": "router"}, ["placement router"]),
    ],
)
def test_wrong_bounds_are_refused_by_name(stage, mentions):
    document = json.loads(json.dumps(spec_document(2)))
    document["stages"][0] |= stage
    with pytest.raises(SpecError) as error:
        parse_spec(document)
    for mention in mentions:
        assert mention in error.value.detail


@pytest.mark.parametrize(
    ("autoscaling", "mentions"),
    [
        ({"up_after_s": 0}, ["autoscaling.up_after_s", "greater than 0"]),
        ({"target_utilisation": 1}, ["autoscaling.target_utilisation", "0.95", "got 1"]),
        ({"up_after_s": 20, "down_after_s": 10}, ["down_after_s 10", "up_after_s 20"]),
        ({"down_after": 10}, ["autoscaling.down_after", "unknown field"]),
    ],
)
def test_wrong_times_are_refused_by_name(autoscaling, mentions):
    with pytest.raises(SpecError) as error:
        parse_spec(spec_document(2, autoscaling=autoscaling))
    for mention in mentions:
        assert mention in error.value.detail
