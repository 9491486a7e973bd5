"""Models to choose a ladder from, by accuracy and cost. Reads no file; what is chosen is up to `cascade.calibration.ladder`.

Models may be exits of one network. A cascade that goes from one of them to a deeper one pays what lies between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cascade.calibration.outcome_arrays import alone_of
from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import ConfigError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Model(BaseModel):
    """One line of a zoo."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str = Field(min_length=1)
    accuracy: float = Field(ge=0, le=1)
    cost: float = Field(gt=0, allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Zoo:
    """Models to choose from, by rising cost."""

    names: tuple[str, ...]
    accuracy: Floats
    """[n] share of rows that each is right about."""
    cost: Floats
    """[n] positive."""
    cost_unit: str = ""
    right: Bools | None = None
    """[N, n] whether each model is right about each row, where that is known."""
    network: NDArray[np.intp] | None = None
    """[n] the network that each is an exit of, a number; None where no two models are exits of the same."""

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], cost_unit: str = "") -> Self:
        """Build a zoo from lines with ``model``, ``accuracy`` (a share) and ``cost``.

        Raises:
            ConfigError: no line, a name twice, or a line that is not such; the message names line and field.
        """
        models: list[Model] = []
        for number, line in enumerate(lines, start=1):
            try:
                models.append(Model.model_validate(line))
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "line"
                given = "" if first["type"] == "missing" else f", got {first['input']!r}"
                raise ConfigError(f"model {number}: {field}: {first['msg']}{given}") from error
        if not models:
            raise ConfigError("the zoo has no models")
        names = [model.model for model in models]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"model {twice[0]!r} is there twice")
        models.sort(key=lambda model: (model.cost, -model.accuracy))
        return cls(
            tuple(model.model for model in models),
            np.array([model.accuracy for model in models]),
            np.array([model.cost for model in models]),
            cost_unit,
        )

    @classmethod
    def of_table(cls, table: OutcomeTable, cost: Mapping[str, float] | None = None, cost_unit: str = "") -> Self:
        """Read the zoo off an outcome table, whose stages need not be a sensible ladder.

        Args:
            table: outcomes.
            cost: of a visit to each stage by name, above 0; the table's own where left out.
            cost_unit: what these costs count.

        Raises:
            ConfigError: a stage has no cost.
        """
        alone = table.alone
        if cost is None:
            cost_unit = table.cost_unit
        else:
            if missing := [stage for stage in table.stages if stage not in cost]:
                raise ConfigError(f"no cost for stage {missing[0]!r}")
            alone = alone_of(np.array([cost[stage] for stage in table.stages]), table.resumes)
        order = np.argsort(alone, kind="stable")
        right = np.column_stack([table.correct(stage) for stage in table.stages])[:, order]
        network = np.cumsum(~table.resumes, dtype=np.intp)[order] if table.resumes.any() else None
        names = tuple(table.stages[index] for index in order)
        return cls(names, right.mean(axis=0), alone[order], cost_unit, right, network)

    def network_of(self, models: Sequence[int] | NDArray[np.intp]) -> NDArray[np.intp] | None:
        """`network` of some models."""
        return None if self.network is None else self.network[list(models)]


def visits(cost: Floats, network: NDArray[np.intp] | None = None) -> Floats:
    """[n + 1, n] what a cascade pays for model j after model i, at [i + 1, j]; at [0, j] for j as its first rung.

    Args:
        cost: [n] of each alone, rising.
        network: [n] see `Zoo.network`.
    """
    models = len(cost)
    paid = np.broadcast_to(cost, (models + 1, models)).copy()
    if network is not None:
        paid[1:] -= np.where(network[:, None] == network, cost[:, None], 0.0)
    return paid
