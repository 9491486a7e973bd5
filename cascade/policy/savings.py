"""What a ladder saves against sending every row to its top stage. Knows the window's figures and one cost; measures nothing.

Cost follows from the spec, so it is known wherever rows are answered. Energy is known only where devices measure it: what a
row takes at the top stage is that of the rows that were run there, without the time in which the device had nothing to do,
since more rows would fill that; and the ladder's own energy is set beside it only where every stage that ran rows measures.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cascade.policy.meter import Recent, RecentStage

DAY_S = 86_400.0


class Savings(NamedTuple):
    """Figures of a window; None where one is not known.

    Attributes:
        cost_top: what a row costs that is run to the top stage's answer alone, in the ladder's cost unit.
        cost_ratio: mean cost of an answered row, over that.
        cost_saved_per_day: cost units that a day saves at the window's rate of answers; negative where it costs more.
        joules_top: energy of a row that is run to the top stage's answer alone, joules, idle time left out.
        energy_ratio: mean energy of an answered row, idle time left out, over that.
        joules_saved_per_day: joules that a day saves at the window's rate of answers.
    """

    cost_top: float
    cost_ratio: float | None = None
    cost_saved_per_day: float | None = None
    joules_top: float | None = None
    energy_ratio: float | None = None
    joules_saved_per_day: float | None = None


def savings(recent: Recent, cost_top: float, resumes: Sequence[bool]) -> Savings:
    """What the answers of a window saved.

    Args:
        recent: the window.
        cost_top: see `Savings`.
        resumes: whether each stage goes on from the one before: then the top stage's answer takes that one too.
    """
    found = Savings(cost_top)
    answered_per_day = recent.answered_per_s * DAY_S
    if recent.cost is not None:
        found = found._replace(
            cost_ratio=recent.cost / cost_top, cost_saved_per_day=(cost_top - recent.cost) * answered_per_day
        )
    first = len(resumes) - 1
    while resumes[first]:
        first -= 1
    top = _total([_at_work(stage) for stage in recent.stages[first:]])
    if top is None:
        return found
    found = found._replace(joules_top=top)
    spent = _total([_per_s(stage) for stage in recent.stages if stage.rows_per_s])
    if spent is None or not recent.answered_per_s or not top:
        return found
    each = spent / recent.answered_per_s
    return found._replace(energy_ratio=each / top, joules_saved_per_day=(top - each) * answered_per_day)


def _at_work(stage: RecentStage) -> float | None:
    """Joules of a row that a stage ran, without its device's idle time."""
    return None if stage.joules_per_row is None else stage.joules_per_row * (1.0 - (stage.idle_energy or 0.0))


def _per_s(stage: RecentStage) -> float | None:
    joules = _at_work(stage)
    return None if joules is None else joules * stage.rows_per_s


def _total(parts: Sequence[float | None]) -> float | None:
    """The sum, None if a part of it is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
