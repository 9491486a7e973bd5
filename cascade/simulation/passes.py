"""What a simulated replica holds: calls, and the passes that it makes of them. Knows no stage and moves no time."""

from collections import deque
from dataclasses import dataclass, field
from math import inf

from cascade.policy.commands import Batch


@dataclass(eq=False, slots=True)
class Pass:
    """Calls that a replica runs together.

    Attributes:
        stage: index of the stage.
        factor: noise on its service time.
        before: the pass before it at its replica; None if that was none, or once this one has come back.
        calls: those that have not come back, in the order in which they were sent.
        size: calls that it had or has.
        returned: those that came when the pass before was done.
        rows: rows of all of them.
        start_s: when the replica begins.
        finish_s: when it is done, infinite if an outage comes first.
    """

    stage: int
    factor: float
    before: "Pass | None"
    calls: list["Call"] = field(default_factory=list)
    size: int = 0
    returned: int = 0
    rows: int = 0
    start_s: float = inf
    finish_s: float = inf


@dataclass(eq=False, slots=True)
class Call:
    """A batch that is with a stage.

    Attributes:
        batch: the batch.
        replica: which replica has it, None if the stage was out, or if it was taken out.
        work: the pass that it is part of; one that is empty and never begins, if no replica took it.
        back_s: when its result, or its failure, is known where it was sent from; infinite if it never will be.
        given_up: whether nobody waits for it any more.
    """

    batch: Batch
    replica: int | None
    work: Pass
    back_s: float
    given_up: bool = False

    @property
    def run_s(self) -> float:
        """Its share of the seconds of its pass, by rows."""
        return (self.work.finish_s - self.work.start_s) * self.batch.rows / self.work.rows


NOWHERE = Pass(-1, 1.0, None)
"""The pass of a call that no replica has."""


@dataclass(eq=False, slots=True)
class Replica:
    """Passes that have not come back, and the last one there was."""

    passes: deque[Pass] = field(default_factory=deque)
    last: Pass | None = None

    @property
    def calls(self) -> int:
        """Calls that it holds."""
        return sum(len(work.calls) for work in self.passes)
