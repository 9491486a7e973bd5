"""What a ladder's report says: the results of all offline tools on the same test rows, and the files they came from.

Holds values only; knows no page and runs nothing.
"""

from dataclasses import asdict, dataclass
from typing import Any

from cascade.calibration.artefact import Calibration
from cascade.calibration.certificate import Certificate, PathPoint
from cascade.calibration.deployment import Deployment
from cascade.calibration.frontier import Frontier, Point
from cascade.calibration.judged import JudgedTable
from cascade.calibration.plan import Plan
from cascade.errors import ConfigError
from cascade.policy.savings import DAY_S
from cascade.report.anytime import Anytime
from cascade.report.degradation import Degradation
from cascade.report.reliability import StageReliability
from cascade.report.risk import point_at


@dataclass(frozen=True)
class Source:
    """A file that the report was made from."""

    file: str
    """Its name, relative to the ladder."""
    digest: str
    """SHA-256 of what stands in it, hex."""
    role: str
    """What it was used for."""


@dataclass(frozen=True, eq=False)
class Report:
    """Everything on the page; all of it on the same test rows."""

    name: str
    """Of the ladder."""
    version: str
    """Of the ladder."""
    command: str
    """By which the report was made."""
    made_with: str
    """Programs and their versions."""
    sources: tuple[Source, ...]
    """Files."""
    calibration: Calibration
    """By which the rows were judged."""
    deployment: Deployment
    """The machines."""
    routers: int
    """Routers that the spec asks for; one is looked at."""
    frontier: Frontier
    """With the spec's prices as the operating point."""
    certificate: Certificate
    """Along a path through the spec's prices where that is possible."""
    reliability: tuple[StageReliability, ...]
    """Of every stage."""
    plan: Plan
    """By arrival rate."""
    degradation: Degradation
    """Simulated loads."""
    anytime: Anytime | None = None
    """What clients that watch see; None where the table has no probabilities."""

    @property
    def judged(self) -> JudgedTable:
        """The test rows."""
        return self.frontier.judged

    @property
    def own(self) -> Point:
        """The cascade at the spec's prices, nothing loaded."""
        if self.frontier.operating is None:
            raise ConfigError("a report needs a frontier with the spec's prices")
        return self.frontier.operating

    @property
    def own_certified(self) -> PathPoint | None:
        """The same point in the certificate; None where the spec's prices lie on no path."""
        return point_at(self.certificate, self.own.prices)

    @property
    def own_bound(self) -> float:
        """Bound of the loss at the spec's prices, among all points of the path at once."""
        point = self.own_certified
        return self.certificate.bound_at(self.own.prices) if point is None else point.bound

    @property
    def savings(self) -> dict[str, float]:
        """Mean cost of an answer against always using the top stage, and what a day saves where degradation begins.

        Negative where the ladder costs more.
        """
        top, own, rate = self.frontier.main.top_cost, self.own.cost, self.degradation.full_at
        return {
            "cost_top": top,
            "cost_ratio": own / top,
            "rate": rate,
            "cost_saved_per_day": (top - own) * rate * DAY_S,
        }

    def document(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {
            "ladder": self.name,
            "version": self.version,
            "rows": self.judged.rows,
            "calibration_rows": self.calibration.table.rows,
            "sources": [asdict(source) for source in self.sources],
            "savings": self.savings,
            "operating_point": self.own.document() | {"certified_loss": self.own_bound},
            "reliability": [stage.document() for stage in self.reliability],
            "frontier": self.frontier.document(),
            "certificate": self.certificate.model_dump(mode="json"),
            "plan": self.plan.model_dump(mode="json"),
            "degradation": self.degradation.document(),
            "anytime": None if self.anytime is None else self.anytime.document(),
        }
