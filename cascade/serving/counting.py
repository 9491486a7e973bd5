"""Serve's own way to a replica, with three changes: it says how many replicas there are, asks all of a small number, and
passes over those that have other weights than the router knows of.

Where a replica keeps what a later call resumes from, a call may name the one that it must reach.

Knows Serve's alpha API for request routers. Serve pushes every change of a deployment's replicas to its handles;
listening there costs no call.
"""

import random
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.request_router import RequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from cascade.serving.replicas import DIGEST, Usable, tag_of

MOST_ASKED = 8
"""Replicas whose queues are compared. Two random ones, Serve's default, leave one idle beside one that has two batches: a
router sends few calls, each a whole batch, so chance does not even out. Beyond this many, some idle one is nearly always
among those drawn."""


class CountingRouter(PowerOfTwoChoicesRequestRouter):
    """The replica with the fewest calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._usable = Usable[ReplicaID, RunningReplica](self._deployment_id.name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has a new list of running replicas."""
        running = {each.replica_id: (each.replica_metadata.get(DIGEST), each) for each in replicas}
        super().update_replicas(self._usable.told(running))

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call found a replica gone."""
        super().on_replica_actor_died(replica_id)
        self._usable.died(replica_id)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        """Replicas to compare, in random order so that equal ones take turns."""
        count = min(len(candidate_replicas), MOST_ASKED)
        return [random.sample(candidate_replicas, count)] if count else []


class AddressedRouter(CountingRouter):
    """The replica whose tag the call names as ``to``, if it is running; for all other calls the one with the fewest."""

    # Serve's default gives a replica that was found for one request to the one that came first; an address is one's own.
    _fulfill_next_pending_request = RequestRouter._fulfill_next_pending_request

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica that is named, alone; see the class."""
        to = None if pending_request is None else pending_request.kwargs.get("to")
        if pending_request is not None and to is not None:
            named = [replica for replica in candidate_replicas if tag_of(replica.replica_id.unique_id) == to]
            if named:
                # If it holds as many calls as it may, ask again after a pause, and not at once without end.
                pending_request.routing_context.should_backoff = True
                return [named]
        return await super().choose_replicas(candidate_replicas, pending_request)
