"""The ``live`` object of ``GET /v2/models/{model}/stats``: how the ladder is doing now. Knows its layout, not its sources.

Every figure is a finite number in a base unit (rows, seconds, shares from 0 to 1, gains as prices), or null where it is not
known: no row was answered in the window, the ladder has no certificate, no audit has ended, a stage is out and has no price.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any]
Figure: TypeAlias = float | None


@dataclass(frozen=True, slots=True)
class StageLive:
    """One stage.

    Attributes:
        price: gain that a visit must promise now.
        share: share of the answered rows that were answered with its output.
        capacity: rows a second that it can run at full batches.
        replicas: replicas that it has.
        queue: rows that wait before it.
        rows_per_s: rows a second that it ran.
        batch_rows: mean rows of a batch.
        run_s: mean seconds of a batch.
        queued_s: mean seconds that a row waited before it.
        joules_per_row: energy of a row that it ran, idle time of its devices included; None where it is not measured.
        idle_energy: share of that energy for time in which its devices had nothing to do.
        depth: mean steps that a row took in a network that chooses its depth; None in any other.
    """

    price: Figure
    share: Figure
    capacity: Figure
    replicas: int
    queue: int
    rows_per_s: Figure = None
    batch_rows: Figure = None
    run_s: Figure = None
    queued_s: Figure = None
    joules_per_row: Figure = None
    idle_energy: Figure = None
    depth: Figure = None


@dataclass(frozen=True, slots=True)
class ClassLive:
    """One class of rows.

    Attributes:
        answered_per_s: rows answered, a second.
        degraded: share of its answered rows that were degraded.
        shed_per_s: rows turned away, a second.
    """

    answered_per_s: Figure
    degraded: Figure
    shed_per_s: Figure


@dataclass(frozen=True, slots=True)
class Audited:
    """A figure that shadow audits estimated; what it means exactly stands in `cascade.policy.audit`.

    Attributes:
        value: the estimate.
        standard_error: of it.
        rows: audits behind it.
    """

    value: float
    standard_error: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStatistics:
    """The live figures of one router. Those of "the window" are of about the last ten seconds.

    Attributes:
        rate: rows a second that come to the door, those that are turned away included.
        stages: by name, cheapest first.
        degraded: share of the window's answered rows that the unloaded rule would have sent on.
        shed_per_s: rows a second turned away at the door, in the window.
        answered_per_s: rows a second that were answered, in the window.
        expired_per_s: rows a second that no stage answered in time, in the window.
        cost: mean cost of the window's answered rows, in the ladder's cost unit.
        cost_top: what a row costs at the top stage alone; these six are of `cascade.policy.savings`.
        cost_ratio: ``cost`` over that.
        cost_saved_per_day: cost units that a day saves at the window's rate, against always using the top stage.
        joules: mean energy of the window's answered rows, of the stages that measure theirs; None if none does.
        joules_top: energy of a row at the top stage alone, idle time left out; None where it is not measured.
        energy_ratio: energy of an answered row, idle time left out, over that; None unless every stage at work measures.
        joules_saved_per_day: joules that a day saves at the window's rate, against always using the top stage.
        window_s: length of the window; less than usual just after the start.
        certified_loss: bound of the loss at the present prices, see `Certificate.bound_at`.
        certified_loss_limit: the same if every row stopped at the first stage.
        predicted_accuracy: mean calibrated probability of being right, of the answers of the last minutes.
        audited_accuracy: the same with what shadow audits found.
        audited_disagreement: share of these answers that the whole ladder would have given differently.
        audit_coverage: share of these answers that the audits speak for.
        lag_s: how late the router's event loop runs.
        plan_age_s: since the prices were last computed.
        classes: by priority, the most important first; empty if the ladder has one class.
    """

    rate: Figure
    stages: Mapping[str, StageLive]
    degraded: Figure
    shed_per_s: Figure
    answered_per_s: Figure = None
    expired_per_s: Figure = None
    cost: Figure = None
    cost_top: Figure = None
    cost_ratio: Figure = None
    cost_saved_per_day: Figure = None
    joules: Figure = None
    joules_top: Figure = None
    energy_ratio: Figure = None
    joules_saved_per_day: Figure = None
    window_s: Figure = None
    certified_loss: Figure = None
    certified_loss_limit: Figure = None
    predicted_accuracy: Figure = None
    audited_accuracy: Audited | None = None
    audited_disagreement: Audited | None = None
    audit_coverage: Figure = None
    lag_s: Figure = None
    plan_age_s: Figure = None
    classes: Mapping[int, ClassLive] = field(default_factory=dict)

    def document(self) -> Document:
        """The JSON object; figures of a stage stand under its name in one object for each kind of figure."""
        stages = self.stages
        return {
            "rate": finite(self.rate),
            "prices": {name: finite(stage.price) for name, stage in stages.items()},
            "shares": {name: finite(stage.share) for name, stage in stages.items()},
            "degraded": finite(self.degraded),
            "certified_loss": finite(self.certified_loss),
            "certified_loss_limit": finite(self.certified_loss_limit),
            "capacity": {name: finite(stage.capacity) for name, stage in stages.items()},
            "replicas": {name: stage.replicas for name, stage in stages.items()},
            "queue": {name: stage.queue for name, stage in stages.items()},
            "rows_per_s": {name: finite(stage.rows_per_s) for name, stage in stages.items()},
            "batch_rows": {name: finite(stage.batch_rows) for name, stage in stages.items()},
            "run_s": {name: finite(stage.run_s) for name, stage in stages.items()},
            "queued_s": {name: finite(stage.queued_s) for name, stage in stages.items()},
            "joules_per_row": {name: finite(stage.joules_per_row) for name, stage in stages.items()},
            "depth": {name: finite(stage.depth) for name, stage in stages.items()},
            "idle_energy": {name: finite(stage.idle_energy) for name, stage in stages.items()},
            "shed_per_s": finite(self.shed_per_s),
            "answered_per_s": finite(self.answered_per_s),
            "expired_per_s": finite(self.expired_per_s),
            "cost": finite(self.cost),
            "cost_top": finite(self.cost_top),
            "cost_ratio": finite(self.cost_ratio),
            "cost_saved_per_day": finite(self.cost_saved_per_day),
            "joules": finite(self.joules),
            "joules_top": finite(self.joules_top),
            "energy_ratio": finite(self.energy_ratio),
            "joules_saved_per_day": finite(self.joules_saved_per_day),
            "window_s": finite(self.window_s),
            "predicted_accuracy": finite(self.predicted_accuracy),
            "audited_accuracy": _audited(self.audited_accuracy),
            "audited_disagreement": _audited(self.audited_disagreement),
            "audit_coverage": finite(self.audit_coverage),
            "lag_s": finite(self.lag_s),
            "plan_age_s": finite(self.plan_age_s),
            "classes": {
                str(priority): {
                    "answered_per_s": finite(entry.answered_per_s),
                    "degraded": finite(entry.degraded),
                    "shed_per_s": finite(entry.shed_per_s),
                }
                for priority, entry in self.classes.items()
            },
        }


def finite(value: Figure) -> Figure:
    """The value, None for one that JSON has no word for."""
    return float(value) if value is not None and isfinite(value) else None


def _audited(value: Audited | None) -> Document | None:
    if value is None or not isfinite(value.value) or not isfinite(value.standard_error):
        return None
    return {"value": float(value.value), "standard_error": float(value.standard_error), "rows": value.rows}
