"""Serve's own way to a replica, with changes: it says which replicas there are, and which one a call went to; it spreads a
router's own calls evenly, asks all of a small number, and leaves out those that are ejected.

Where a replica keeps what a later call resumes from, a call may name the one that it must reach.

Knows Serve's alpha API for request routers. Serve pushes every change of a deployment's replicas to its handles;
listening there costs no call.
"""

import random

from ray.serve._private.common import ReplicaID, RequestMetadata, RunningReplicaInfo
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.request_router import RequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from cascade.serving.replicas import calls_by_replica, left_out, note, note_sent, tag_of

MOST_ASKED = 8
"""Replicas whose queues are compared. Two random ones, Serve's default, leave one idle beside one that has two batches: a
router sends few calls, each a whole batch, so chance does not even out. Beyond this many, some idle one is nearly always
among those drawn."""


class NotingReplica(RunningReplica):
    """A replica as handles see it, which takes down the calls that it is sent."""

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> ReplicaResult:
        """Send a call, which the replica may refuse."""
        _take_down(pr, self)
        return super().try_send_request(pr, with_rejection)


class CountingRouter(PowerOfTwoChoicesRequestRouter):
    """Of the replicas that are not left out and hold the fewest calls of this router, the one with the fewest calls of all.

    A router's calls are as many as there are places for it in all replicas. With all of them on one replica, because the
    others seemed busier, nothing would go on for this router while that one stalls, nor would it see that the others answer.
    """

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """How a replica is sent calls."""
        return NotingReplica(replica_info)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has a new list of running replicas."""
        super().update_replicas(replicas)
        self._note()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call has found that a replica is no more, before Serve has."""
        super().on_replica_actor_died(replica_id)
        self._note()

    def _note(self) -> None:
        note(self._deployment_id.name, [tag_of(replica.unique_id) for replica in self._replicas])

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas to compare, in random order so that equal ones take turns."""
        if pending_request is not None:
            # If all hold as many calls as they may, ask again after a pause, and not at once without end.
            pending_request.routing_context.should_backoff = True
        out = left_out(self._deployment_id.name)
        # Where nobody else is left, those that are left out are better than nobody.
        candidates = [replica for replica in candidate_replicas if _tag(replica) not in out] if out else []
        candidates = candidates or candidate_replicas
        own = calls_by_replica()
        fewest = min((own[_tag(replica)] for replica in candidates), default=0)
        candidates = [replica for replica in candidates if own[_tag(replica)] == fewest]
        count = min(len(candidates), MOST_ASKED)
        return [random.sample(candidates, count)] if count else []


class AddressedRouter(CountingRouter):
    """The replica whose tag the call names as ``to``, if it is running; for all other calls the one with the fewest."""

    def _fulfill_next_pending_request(
        self, replica: RunningReplica, request_metadata: RequestMetadata | None = None
    ) -> None:
        # Serve's default gives a replica that was found for one request to the one that came first; an address is one's own.
        # A request is found by its internal id, so calls that wait beside each other must not share one: they are made in
        # the context of no client's request (`Router`), else Serve would give all of them that request's id.
        waiting = self._get_pending_request_matching_internal_request_id(request_metadata)
        if waiting is not None:
            _take_down(waiting, replica)  # it is sent a little later, and others choose meanwhile
        RequestRouter._fulfill_next_pending_request(self, replica, request_metadata)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica that is named, alone; see the class."""
        to = None if pending_request is None else pending_request.kwargs.get("to")
        if pending_request is not None and to is not None:
            named = [replica for replica in candidate_replicas if _tag(replica) == to]
            if named:
                pending_request.routing_context.should_backoff = True
                return [named]
        return await super().choose_replicas(candidate_replicas, pending_request)


def _take_down(call: PendingRequest, replica: RunningReplica) -> None:
    number = call.kwargs.get("call")
    if number is not None:
        note_sent(number, _tag(replica))


def _tag(replica: RunningReplica) -> int:
    return tag_of(replica.replica_id.unique_id)
