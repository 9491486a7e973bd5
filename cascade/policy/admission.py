"""The only place that turns a row away, and only before stage 0. Knows the predicted wait, the class and the deadline.

A row is admitted while the predicted wait for stage 0 is at most a share of its time to the deadline. Admitting whatever
could still just finish would spend the whole slack in front of the cheapest stage and leave none to escalate in.
"""

from dataclasses import dataclass
from math import inf, isfinite
from random import Random

from cascade.policy.capacity import StageCapacity
from cascade.policy.commands import Shed
from cascade.policy.under_way import UnderWay

PRIORITY_STEP = 0.25
"""Each class below the first loses this fraction of the share, so that the lowest class is turned away first."""
FAIR_PATIENCE = 2.0
"""A tenant within its fair rate may wait this many times as long: the wait is not of its making, and has an end."""
LONGEST_DRAIN_S = 10.0
"""What a client is told when stage 0 is out and the wait has no end."""
JITTER = 3.0
"""The longest that a client is told to stay away is this many times the shortest, so that clients spread out."""
HOLD_FACTOR = 50.0
"""A refusal is held back for this many times the driver's own lag. Some clients come back at once whatever they are told;
each refusal costs the driver some of its time, and so every batch that it has to move. With n clients that do so and a hold
of h seconds they come n / h times a second."""
LONGEST_HOLD_S = 1.0
"""Most that a refusal is held back."""


@dataclass(slots=True)
class Admission:
    """The door.

    Attributes:
        wait_share: share of a first-class row's time to its deadline that may pass before stage 0 begins.
        random: source of the jitter in ``retry_after_s``; seeded by the driver.
    """

    wait_share: float
    random: Random

    def longest_wait_s(self, remaining_s: float, priority: int, patience: float = 1.0) -> float:
        """The longest predicted wait at which a row may come in, other than an infinite one.

        Args:
            remaining_s: time to its deadline, infinite if it has none.
            priority: its class, 1 is the most important.
            patience: times the usual share that this row may wait.
        """
        if remaining_s <= 0:
            return inf  # too late is not overload: the next dispatch says so
        factor = max(1.0 - PRIORITY_STEP * (priority - 1), PRIORITY_STEP / 2)
        return patience * self.wait_share * factor * remaining_s

    def admits(self, wait_s: float, remaining_s: float, priority: int, patience: float = 1.0) -> bool:
        """Whether a row may come in.

        Args:
            wait_s: predicted wait until its batch begins; infinite when stage 0 is out, and then nothing comes in.
            remaining_s: see `longest_wait_s`.
            priority: see there.
            patience: see there.
        """
        return isfinite(wait_s) and wait_s <= self.longest_wait_s(remaining_s, priority, patience)

    def retry_after_s(self, wait_s: float) -> int:
        """Whole seconds to stay away: the time to drain what waits, at least 1 s, times a jitter from 1 to `JITTER`."""
        return int(max(1.0, min(wait_s, LONGEST_DRAIN_S)) * self.random.uniform(1.0, JITTER))

    def turn_away(self, wait_s: float, lag_s: float = 0.0) -> Shed:
        """The refusal of a message that would have waited for ``wait_s``, by a driver that is ``lag_s`` behind."""
        return Shed(self.retry_after_s(wait_s), wait_s, min(HOLD_FACTOR * lag_s, LONGEST_HOLD_S))


def stage0_wait_s(now: float, stage: StageCapacity, waiting: int, under_way: UnderWay, enough_s: float = -inf) -> float:
    """Seconds until the first row of a new message would begin on stage 0; infinite where that is out.

    Args:
        now: present instant.
        stage: stage 0.
        waiting: rows in its queue.
        under_way: the batches that are with the stages.
        enough_s: a wait at which nobody asks further: one that is known to be no longer need not be exact.
    """
    if not stage.slots:
        return inf
    ahead_s = predicted_wait_s(stage, waiting, 0.0)
    if stage.free:
        return ahead_s
    # Half of it, so that no rounding of a sum makes "no longer" longer.
    return ahead_s + under_way.stage0_next_s(now, stage.service.predict, (enough_s - ahead_s) / 2)


def predicted_wait_s(stage: StageCapacity, waiting: int, first_free_s: float) -> float:
    """Seconds until the first row of a new message would begin on ``stage``.

    Only what is ahead of a message counts: a message that is too large for its own deadline is no sign of overload.

    Args:
        stage: the stage, open.
        waiting: rows in its queue.
        first_free_s: seconds until a slot is free, 0 if one is.
    """
    batches_ahead = waiting // stage.max_batch_size
    return first_free_s + batches_ahead * stage.service.predict(stage.max_batch_size) / stage.slots
