"""What the state machine of the policy draws from, and its own book of one row."""

from dataclasses import dataclass, field
from math import inf

from hypothesis import strategies as st

from cascade.policy.gain import Judgement
from cascade.policy.request import Request
from cascade.policy.walk import Walk

COST = (1.0, 10.0, 100.0, 1000.0)
CLASSES = (
    None,
    [(1.0, None, "wait"), (0.5, None, "wait")],
    [(1.0, 0.25, "wait"), (0.5, None, "wait"), (0.25, 0.25, "shed")],
    [(0.25, 0.0625, "wait"), (0.125, None, "wait")],
)
"""Weight, cap at every stage, and what happens beyond it, of each class."""
GAIN = st.integers(-4, 16).map(lambda i: i / 16)


@dataclass
class Row:
    """The machine's own book of one row."""

    request: Request
    walk: Walk
    called: list[int] = field(default_factory=list)
    answers: list[tuple[int, Judgement, int]] = field(default_factory=list)
    first_answer_s: float = inf
    protected: bool = False
    waits_for: int = 0
    shown: list[tuple[int, Judgement, int]] = field(default_factory=list)
    outcome: str | None = None

    @property
    def cost(self) -> float:
        return sum(COST[stage] for stage in self.called)
