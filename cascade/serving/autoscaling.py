"""Replicas follow a need that stays: Serve's autoscaling policies of the router and of the stages, and their settings.

The way of a signal: a router replica answers Serve's ``record_autoscaling_stats`` with `autoscaling_stats`; Serve takes it
to its controller within about 2 s; there `RouterPolicy` posts it, and a stage's `StagePolicy` asks its `Scaler` what to do.
Serve has delays and factors of its own for this, which are all switched off here: one hysteresis is enough, and only ours
knows prices.

A policy for the whole application, which Serve has as well, would need no board. But only applications that are deployed
from a file can have one, not those of ``serve.run``.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cascade.policy.scaling import Reading, Scaler, combine
from cascade.serving.signals import post, read
from cascade.spec import CascadeSpec, StageSpec

PUSH_INTERVAL_S = 1.0
"""How often a router's statistics travel to the controller."""
LOOK_BACK_S = 5.0
"""How long a router's last statistics count when it gives no more; a fifth of it, at most, is between two of them."""

_FIELDS = ("surcharge", "demand", "rate")


def autoscaling_stats(readings: Mapping[str, Reading]) -> dict[str, float]:
    """What a router's ``record_autoscaling_stats`` returns: a flat mapping of plain floats, the only form that Serve takes.

    Args:
        readings: what this router knows, by stage name; empty while it knows nothing yet.
    """
    # Serve switches the statistics of a replica off for good when the first of them is not a Python number.
    return {f"{stage}.{field}": float(getattr(reading, field)) for stage, reading in readings.items() for field in _FIELDS}


def readings_of(stats: Mapping[str, Mapping[Any, float]]) -> dict[str, Reading]:
    """The reading of each stage, all routers together.

    Args:
        stats: of each name in `autoscaling_stats` the newest value of each router replica; other names are passed over, and
            so is a stage for a router that does not give all of its fields.
    """
    routers: dict[str, dict[Any, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, values in stats.items():
        stage, _, field = name.rpartition(".")
        if field in _FIELDS:
            for router, value in values.items():
                routers[stage][router][field] = value
    readings = {}
    for stage, given in routers.items():
        reading = combine([Reading(**fields) for fields in given.values() if len(fields) == len(_FIELDS)])
        if reading is not None:
            readings[stage] = reading
    return readings


class RouterPolicy:
    """Policy of the router deployment: leaves its replicas as they are, and posts what they say about the stages."""

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """See `ray.serve.config.AutoscalingConfig`."""
        series = context.raw_metrics or {}
        newest = {
            name: {router: points[-1].value for router, points in each.items() if points} for name, each in series.items()
        }
        post(context.app_name or "", readings_of(newest))
        return context.target_num_replicas, {}


class StagePolicy:
    """Policy of one stage's deployment: a `Scaler` that is fed with what the routers say about this stage.

    Serve makes one for each version of the deployment. After a restart of the controller, or without word from any router,
    it keeps the replicas that there are.

    Args:
        settings: of the `Scaler`.
    """

    def __init__(self, **settings: Any) -> None:
        self._scaler = Scaler(**settings)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """See `ray.serve.config.AutoscalingConfig`."""
        reading = read(context.app_name or "", context.deployment_name)
        target = context.target_num_replicas
        if reading is None or context.current_time is None:
            return target, {}
        running = context.current_num_replicas
        return self._scaler.update(context.current_time, reading, target=target, running=running), {}


def stage_replicas(spec: CascadeSpec, stage: StageSpec) -> dict[str, Any]:
    """Options of a stage's deployment that say how many replicas it has."""
    if not stage.scales or stage.min_replicas is None or stage.max_replicas is None:
        return {"num_replicas": stage.replicas}
    settings = {
        "min_replicas": stage.min_replicas,
        "max_replicas": stage.max_replicas,
        **spec.autoscaling.model_dump(),
    }
    return _scaled(StagePolicy, stage.min_replicas, stage.replicas, stage.max_replicas, settings)


def router_replicas(spec: CascadeSpec) -> dict[str, Any]:
    """Options of the router deployment that say how many replicas it has; they are heard only where a stage scales."""
    replicas = spec.router.replicas
    if not any(stage.scales for stage in spec.stages):
        return {"num_replicas": replicas}
    return _scaled(RouterPolicy, replicas, replicas, replicas, {})


def _scaled(kind: type, least: int, initial: int, most: int, settings: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Serve 2.60 calls the interval deprecated in favour of environment variables that nothing in it reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=f"{__name__}:{kind.__name__}", policy_kwargs=settings
        )
        config = AutoscalingConfig(
            min_replicas=least,
            initial_replicas=initial,
            max_replicas=most,
            metrics_interval_s=PUSH_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=policy,
        )
    return {"autoscaling_config": config}
