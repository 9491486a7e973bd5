"""The file that certifying leaves behind: certificate.json, what may be lost at which prices, and with what confidence.

What stands in it, and the lookup by which a load controller knows the bound of the prices it has just set. Plain values;
knows nothing of how the bounds were computed, and needs no scipy, because a server's router reads it.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from cascade.calibration.artefact import Calibration, Share, TableSource, Text, _File, _Part
from cascade.errors import CalibrationMismatch, ConfigError
from cascade.policy.routing import Routing

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Level = Annotated[float, Field(gt=0, lt=1)]
Cost = Annotated[float, Field(gt=0)]


class PathPoint(_Part):
    """One price vector of the path, and what the counted rows say of it."""

    prices: tuple[float, ...]
    """[S] price of a visit to each stage; the first is not used."""
    accuracy: Share
    """Share of the rows served right."""
    cost: Cost
    """Mean cost of a row."""
    losses: Count
    """Rows about which the whole ladder would have been right, and that were served wrong."""
    loss: Share
    """The same as a share: empirical, it promises nothing."""
    bound: Share
    """Upper bound of the risk at exactly these prices; see `Certificate`, statement 2."""
    bound_below: Share
    """Upper bound of the risk at all prices componentwise at most these; see `Certificate`, statement 3."""
    certified: bool
    """Whether the test along the path certifies ``max_loss`` here; see `Certificate`, statement 1."""
    bounds_stopping: tuple[Share, ...] = ()
    """[S] upper bound of the risk where every row stops at this stage at the latest, at all prices componentwise at most
    these; see `Certificate`, statement 7. Empty in files from before there were any."""


class GroupBound(_Part):
    """One slice of the rows at the chosen point."""

    name: str
    """The slice."""
    rows: Positive
    """Rows counted in it."""
    accuracy: Share
    """Share of them served right."""
    losses: Count
    """Rows among them that lost."""
    loss: Share
    """The same as a share."""
    bound: Share
    """Upper bound of the slice's risk; see `Certificate`, statement 6."""
    certified: bool
    """Whether the test along the path certifies ``max_loss`` for this slice alone; see `Certificate`, statement 6."""


class ParetoChoice(_Part):
    """The cheapest certified setting where every stage may have its own price."""

    prices: tuple[float, ...]
    """[S] price of a visit to each stage; the first is not used."""
    tried: Positive
    """Price vectors that were tried on the first half of the rows."""
    front: Positive
    """Those of them that no other beat in both loss and cost, hence were tested on the second half."""
    rows: Positive
    """Rows of the second half; all that follows is counted among them."""
    accuracy: Share
    """Share of them served right."""
    cost: Cost
    """Their mean cost."""
    losses: Count
    """Rows among them that lost."""
    loss: Share
    """The same as a share."""


class Certificate(_File):
    """certificate.json: bounds on the risk, the probability that the whole ladder is right and the served answer wrong.

    The whole ladder is what is served on stopping at the last stage; the accuracy lost against it is at most the risk. With
    d for ``delta``, each of these statements is true with probability at least 1 - d over the draw of the counted rows, on
    its own:

    1. *Path*: no point marked ``certified`` has a risk above ``max_loss``; the chosen point is the boldest of them.
    2. *Points*: every ``bound`` is at least the risk at its prices, at all points at once (each has d / G). A server
       that switches between the points without regard to how hard the present row is has a long-run risk of at most the
       bounds' mean, weighted with the share of rows served at each. If load comes with harder rows, this fails.
    3. *Below*: every ``bound_below`` is at least the risk at all prices componentwise at most its own, at all points at
       once (each has d / G). It is a bound row by row, so it holds however prices move below, even with the row. Hence
       the bound at the last point, where every row stops at the first stage, covers every way to leave early. Where rows
       may skip stages it counts those at which a row would stop if it came there, see `cascade.calibration.risk`.
    4. *Cap*: as long as prices stay componentwise at or below those of the point ``price_cap``, however they move, the
       risk is at most ``max_loss``.
    5. *Pareto*: the risk at the Pareto choice is at most ``max_loss``.
    6. *Groups*: every group's ``bound`` is at least its risk at the chosen point (d is shared out over the groups and over
       the G points that could have been chosen); and, on its own, no group marked ``certified`` has a risk above
       ``max_loss`` there (d is shared out over the groups).
    7. *Stopping*: every ``bounds_stopping[k]`` is at least the risk at all prices componentwise at most its point's where,
       besides, no row goes beyond stage k, at all points and stages at once (each has d / (G (S - 2)); at the first stage
       that is the last point's ``bound_below``, and at the last one, where nobody is stopped, the point's own). So it
       bounds what is lost by taking the preliminary answer of stage k for the answer.

    All of it is about rows exchangeable with the counted ones, which visit the stages in order: rows that leave earlier
    than prices say, because of a full queue or a deadline, are covered only by the last point's ``bound_below``, and rows
    that skip a failed stage by none where stages are combined.
    """

    format_version: Literal[1]
    """Version of this file format."""
    created_by: Text
    """Program and version that wrote the file."""
    table: TableSource | None
    """The rows that were counted; None where they came from no file."""
    calibration: str | None
    """Digest of the calibration by which the rows walked, see `digest_of`; None where they came from no file."""
    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names, cheapest first."""
    routing: Routing = "cascade"
    """Whether the rows could skip stages."""
    cost_unit: Text
    """What costs count."""
    rows: Positive
    """Rows counted, n."""
    max_loss: Level
    """The risk that may not be exceeded."""
    delta: Level
    """1 - confidence."""
    seed: int
    """Of the division into halves for the Pareto choice."""
    smallest_max_loss: Share
    """The smallest ``max_loss`` for which these rows would certify anything along the path."""
    path: Annotated[tuple[PathPoint, ...], Field(min_length=1)]
    """From the safest prices to those at which every row stops at the first stage; no price falls along it."""
    chosen: Count | None
    """Index of the boldest certified point; None where none is."""
    price_cap: Count | None
    """Index of the boldest point below which prices may move at will; None where there is none."""
    pareto: ParetoChoice | None
    """None where no setting passed, or half of the rows are too few."""
    groups: tuple[GroupBound, ...]
    """By name; empty where the table has no groups, or nothing is certified."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for index, point in enumerate(self.path):
            if len(point.prices) != len(self.stages):
                raise ValueError(f"path.{index}.prices: expected {len(self.stages)} prices, got {len(point.prices)}")
            if len(point.bounds_stopping) not in (0, len(self.stages)):
                raise ValueError(
                    f"path.{index}.bounds_stopping: expected {len(self.stages)} bounds, got {len(point.bounds_stopping)}"
                )
        for before, after in pairwise(self.path):
            if not _below(before.prices, after.prices):
                raise ValueError("path: no price may fall from one point to the next")
        for name, index_or_none in (("chosen", self.chosen), ("price_cap", self.price_cap)):
            if index_or_none is not None and index_or_none >= len(self.path):
                raise ValueError(f"{name}: {index_or_none} is none of {len(self.path)} points")
        return self

    def bound_at(self, prices: Sequence[float]) -> float:
        """Bound of the risk at any prices: the smallest ``bound_below`` of the points that no price exceeds.

        Where some price exceeds every point's, the last point's bound: no prices do worse than to stop every row at once.

        Args:
            prices: [S] present price of a visit to each stage; the first is not used.

        Returns:
            A bound that is part of statement 3: it holds with probability 1 - ``delta`` for all prices at once.

        Raises:
            ConfigError: not one price for each stage.
        """
        if len(prices) != len(self.stages):
            raise ConfigError(f"prices: expected one for each of {len(self.stages)} stages, got {len(prices)}")
        return min(
            (point.bound_below for point in self.path if _below(prices, point.prices)), default=self.path[-1].bound_below
        )

    def bound_stopping(self, prices: Sequence[float], stage: int) -> float:
        """Bound of the risk where every row stops at ``stage`` at the latest, at any prices; see `bound_at`.

        Args:
            prices: [S] present price of a visit to each stage; the first is not used.
            stage: index of the stage.

        Returns:
            A bound that is part of statement 7; in a file that has none, the bound of stopping at the first stage, which no
            way to stop exceeds.
        """
        return min(
            (point.bounds_stopping[stage] for point in self.path if point.bounds_stopping and _below(prices, point.prices)),
            default=self.path[-1].bound_below,
        )

    def cap_for(self, max_loss: float) -> tuple[float, ...] | None:
        """The highest prices of the path below which nothing loses more than ``max_loss``, however prices move there.

        Args:
            max_loss: risk that may not be exceeded.

        Returns:
            [S] price of a visit to each stage, of the boldest point whose ``bound_below`` is at most that; None if there is
            none. Several such caps hold at once, see statement 3.
        """
        within = [point.prices for point in self.path if point.bound_below <= max_loss]
        return within[-1] if within else None

    def check_belongs(self, calibration: Calibration, routing: Routing = "cascade") -> None:
        """Refuse to vouch for rows that walk by another calibration, or by another rule.

        Args:
            calibration: by which the rows will be judged.
            routing: by which they will walk.

        Raises:
            CalibrationMismatch: the certificate was made with another one.
        """
        if self.routing != routing:
            raise CalibrationMismatch(
                f"the certificate was made for routing {self.routing}, the spec says {routing}; run `cascade certify` again"
            )
        if self.calibration != digest_of(calibration):
            raise CalibrationMismatch(
                f"the certificate was made with the calibration {self.calibration}, the ladder now has "
                f"{digest_of(calibration)}; run `cascade certify` again"
            )


def digest_of(file: BaseModel) -> str:
    """SHA-256 (hex) of what stands in an artefact or a spec, however its file is laid out."""
    return hashlib.sha256(file.model_dump_json().encode()).hexdigest()


def _below(prices: Sequence[float], other: Sequence[float]) -> bool:
    """Whether no price exceeds the other's; the first is not used."""
    return all(price <= limit for price, limit in zip(prices[1:], other[1:], strict=True))
