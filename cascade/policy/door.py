"""Whether a message may come in. Knows the queues, who sends how much, and the classes; reads nothing of the message."""

from collections.abc import Sequence

from cascade.policy.admission import FAIR_PATIENCE, Admission, stage0_wait_s
from cascade.policy.capacity import StageCapacity
from cascade.policy.classes import Classes
from cascade.policy.commands import Shed
from cascade.policy.fairness import FairShare, Tenants
from cascade.policy.queue import StageQueue
from cascade.policy.under_way import UnderWay

FLOOR_SHARE = 0.5
"""Part of the time before a stage that protected rows may fill: rows let in that are not there yet need the rest."""


class Door:
    """The door of one router: a message is turned away when it would wait for too long before stage 0.

    A tenant within its fair share of stage 0 may wait longer, so that one that floods is turned away first. A class that is
    to be shed beyond its floor is also turned away while protected rows fill a part of the time that a stage may take.

    Args:
        admission: how long a row may wait.
        classes: the classes of rows.
        tenants: how much each tenant sends.
        capacities: of the stages.
        queues: of the stages.
        queue_shares: share of a deadline for which rows may wait before each stage.
        under_way: the batches that are with the stages.
    """

    __slots__ = ("_admission", "_capacities", "_classes", "_queue_shares", "_queues", "_share", "_under_way")

    def __init__(
        self,
        admission: Admission,
        classes: Classes,
        tenants: Tenants,
        capacities: Sequence[StageCapacity],
        queues: Sequence[StageQueue],
        queue_shares: Sequence[float],
        under_way: UnderWay,
    ) -> None:
        self._admission = admission
        self._classes = classes
        self._share = FairShare(tenants)
        self._capacities = capacities
        self._queues = queues
        self._queue_shares = queue_shares
        self._under_way = under_way

    def refusal(self, now: float, remaining_s: float, priority: int, lag_s: float, tenant: str) -> Shed | None:
        """The refusal of a message, None if it may come in.

        Args:
            now: present instant.
            remaining_s: time to its deadline.
            priority: its class.
            lag_s: by how much the driver is behind, added to the predicted wait.
            tenant: who sent it.
        """
        stage0, admits = self._capacities[0], self._admission.admits
        enough_s = self._admission.longest_wait_s(remaining_s, priority) - lag_s
        wait_s = lag_s + stage0_wait_s(now, stage0, len(self._queues[0]), self._under_way, enough_s)
        if not admits(wait_s, remaining_s, priority) and not (
            admits(wait_s, remaining_s, priority, FAIR_PATIENCE) and self._share.holds(now, tenant, stage0.rows_per_s)
        ):
            return self._admission.turn_away(wait_s, lag_s)
        if remaining_s > 0 and self._classes.sheds(priority):
            for capacity, queue, share in zip(self._capacities, self._queues, self._queue_shares, strict=True):
                # What waits, then its own call; a batch may always wait, or a tight deadline would shut the door for good.
                waiting, call_s = queue.protected, capacity.service.predict(capacity.max_batch_size)
                if waiting > capacity.max_batch_size:
                    wait_s = waiting / capacity.rows_per_s + call_s
                    if wait_s > FLOOR_SHARE * share * remaining_s:
                        return self._admission.turn_away(wait_s, lag_s)
        return None
