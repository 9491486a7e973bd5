"""What ``GET /status/figures`` says: the live figures of all routers of a ladder as one. Pure: readings in, a document out.

A router decides by its own figures alone; here they are only put together for people. Each figure by what it counts: what
happens in every router adds up, a share is that of all the rows together, and of bounds and delays the worst is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from cascade.wire.live import Audited, ClassLive, Document, Figure, LiveStatistics, StageLive, finite


@dataclass(frozen=True, slots=True)
class RouterReading:
    """What one router says of itself.

    Attributes:
        router: its id.
        version: what it decides by, see `cascade.assembly.Artefacts.version`; empty where nobody said.
        live: its figures.
        problem: why it has not taken a newer version up; empty if nothing is wrong.
    """

    router: str
    version: str
    live: LiveStatistics
    problem: str = ""


def status_document(
    readings: Sequence[RouterReading], *, model: str, version: str, server: str, cost_unit: str, routers: int
) -> Document:
    """The document.

    Args:
        readings: one of each router that answered, at least one.
        model: name of the ladder.
        version: the version that clients see.
        server: the server's own version.
        cost_unit: unit of ``cost``.
        routers: how many routers there should be.
    """
    ordered = sorted(readings, key=lambda each: each.router)
    return {
        "model": model,
        "version": version,
        "server": server,
        "cost_unit": cost_unit,
        "routers": {
            "expected": routers,
            "answered": len(ordered),
            "each": [
                {
                    "id": each.router,
                    "version": each.version,
                    "problem": each.problem or None,
                    **{name: finite(getattr(each.live, name)) for name in ("rate", "answered_per_s", "degraded", "lag_s")},
                }
                for each in ordered
            ],
        },
        "live": together([each.live for each in ordered]).document(),
    }


def together(each: Sequence[LiveStatistics]) -> LiveStatistics:
    """The figures of several routers as if they were one.

    Rates, queues and capacities add up. Shares, costs and accuracies are means over the rows that were answered, prices and
    the arrival side over the rows that came. Replicas are seen by all routers alike; the fewest are shown, for a router
    that has not heard of one cannot use it. The certified loss is the largest bound: it holds for the rows of every router.

    Args:
        each: of one router each, at least one, all of one ladder.
    """
    if len(each) == 1:
        return each[0]
    answered = [live.answered_per_s or 0.0 for live in each]

    def mean(read: Callable[[LiveStatistics], Figure]) -> Figure:
        return _mean([read(live) for live in each], answered)

    def total(read: Callable[[LiveStatistics], Figure]) -> Figure:
        return _sum([read(live) for live in each])

    def worst(read: Callable[[LiveStatistics], Figure]) -> Figure:
        return max((value for live in each if (value := read(live)) is not None), default=None)

    bounds = [live.certified_loss for live in each]
    return LiveStatistics(
        rate=total(lambda live: live.rate),
        stages={name: _stage([live.stages[name] for live in each], each, answered) for name in each[0].stages},
        degraded=mean(lambda live: live.degraded),
        shed_per_s=total(lambda live: live.shed_per_s),
        answered_per_s=total(lambda live: live.answered_per_s),
        expired_per_s=total(lambda live: live.expired_per_s),
        cost=mean(lambda live: live.cost),
        cost_top=mean(lambda live: live.cost_top),
        cost_ratio=mean(lambda live: live.cost_ratio),
        cost_saved_per_day=total(lambda live: live.cost_saved_per_day),
        joules=mean(lambda live: live.joules),
        joules_top=mean(lambda live: live.joules_top),
        energy_ratio=mean(lambda live: live.energy_ratio),
        joules_saved_per_day=total(lambda live: live.joules_saved_per_day),
        window_s=min((live.window_s for live in each if live.window_s is not None), default=None),
        # No bound of one router holds for another's rows, so one that has none leaves all without.
        certified_loss=None if None in bounds else worst(lambda live: live.certified_loss),
        certified_loss_limit=worst(lambda live: live.certified_loss_limit),
        predicted_accuracy=mean(lambda live: live.predicted_accuracy),
        audited_accuracy=_audited([live.audited_accuracy for live in each], answered),
        audited_disagreement=_audited([live.audited_disagreement for live in each], answered),
        audit_coverage=mean(lambda live: live.audit_coverage),
        lag_s=worst(lambda live: live.lag_s),
        plan_age_s=worst(lambda live: live.plan_age_s),
        classes={priority: _class([live.classes[priority] for live in each]) for priority in each[0].classes},
    )


def _stage(stages: Sequence[StageLive], each: Sequence[LiveStatistics], answered: Sequence[float]) -> StageLive:
    """One stage as all routers see it."""
    rates, ran = [live.rate or 0.0 for live in each], [stage.rows_per_s or 0.0 for stage in stages]
    batches = [rows / (stage.batch_rows or 1.0) for rows, stage in zip(ran, stages, strict=True)]
    prices = [stage.price for stage in stages]
    return StageLive(
        price=None if None in prices else _mean(prices, rates),
        share=_mean([stage.share for stage in stages], answered),
        capacity=_sum([stage.capacity for stage in stages]),
        replicas=min(stage.replicas for stage in stages),
        queue=sum(stage.queue for stage in stages),
        rows_per_s=_sum([stage.rows_per_s for stage in stages]),
        batch_rows=_mean([stage.batch_rows for stage in stages], batches),
        run_s=_mean([stage.run_s for stage in stages], batches),
        queued_s=_mean([stage.queued_s for stage in stages], ran),
        joules_per_row=_mean([stage.joules_per_row for stage in stages], ran),
        idle_energy=_mean([stage.idle_energy for stage in stages], ran),
        depth=_mean([stage.depth for stage in stages], ran),
    )


def _class(each: Sequence[ClassLive]) -> ClassLive:
    answered = [one.answered_per_s or 0.0 for one in each]
    return ClassLive(
        _sum([one.answered_per_s for one in each]),
        _mean([one.degraded for one in each], answered),
        _sum([one.shed_per_s for one in each]),
    )


def _audited(each: Sequence[Audited | None], weights: Sequence[float]) -> Audited | None:
    """Estimates of independent routers, weighted: the variance of a sum with weights w is that of each times w^2."""
    known = [(one, weight) for one, weight in zip(each, weights, strict=True) if one is not None]
    if not known:
        return None
    whole = sum(weight for _, weight in known)
    shares = [weight / whole if whole > 0 else 1 / len(known) for _, weight in known]
    return Audited(
        sum(one.value * share for (one, _), share in zip(known, shares, strict=True)),
        sqrt(sum((one.standard_error * share) ** 2 for (one, _), share in zip(known, shares, strict=True))),
        sum(one.rows for one, _ in known),
    )


def _sum(values: Sequence[Figure]) -> Figure:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Sequence[Figure], weights: Sequence[float]) -> Figure:
    """Mean of what is known; without any weight, all that is known counts alike."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    if not known:
        return None
    whole = sum(weight for _, weight in known)
    if whole <= 0:
        return sum(value for value, _ in known) / len(known)
    return sum(value * weight for value, weight in known) / whole
