"""Serve's own way to a replica, with two changes: it says how many replicas there are, and asks all of a small number.

Knows Serve's alpha API for request routers. Serve pushes every change of a deployment's replicas to its handles;
listening there costs no call.
"""

import random

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from cascade.serving.replicas import note

MOST_ASKED = 8
"""Replicas whose queues are compared. Two random ones, Serve's default, leave one idle beside one that has two batches: a
router sends few calls, each a whole batch, so chance does not even out. Beyond this many, some idle one is nearly always
among those drawn."""


class CountingRouter(PowerOfTwoChoicesRequestRouter):
    """The replica with the fewest calls."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has a new list of running replicas."""
        super().update_replicas(replicas)
        note(self._deployment_id.name, len(replicas))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        """Replicas to compare, in random order so that equal ones take turns."""
        count = min(len(candidate_replicas), MOST_ASKED)
        return [random.sample(candidate_replicas, count)] if count else []
