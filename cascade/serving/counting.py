"""Serve's own way to a replica, with changes: it says which replicas there are, and which one a call went to; it spreads a
router's own calls evenly, asks all of a small number, leaves out those that are ejected, and passes over those that have
other weights than the router knows of.

Where a replica keeps what a later call resumes from, a call may name the one that it must reach.

Knows Serve's alpha API for request routers. Serve pushes every change of a deployment's replicas to its handles;
listening there costs no call.
"""

import random
from math import inf
from typing import Any

from ray.serve._private.common import ReplicaID, RequestMetadata, RunningReplicaInfo
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve._private.request_router.request_router import RequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from cascade.serving.replicas import DIGEST, Usable, calls_by_replica, left_out, note_sent, tag_of

MOST_ASKED = 8
"""Replicas whose queues are compared. Two random ones, Serve's default, leave one idle beside one that has two batches: a
router sends few calls, each a whole batch, so chance does not even out. Beyond this many, some idle one is nearly always
among those drawn."""
UNAVAILABLE_S = 1.0
"""No call goes for so long to a replica that one did not reach, where there are others: until Ray has declared a lost node
dead, for up to ten seconds, its replicas would seem idle, and every call would ask them first."""


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._usable = Usable[ReplicaID, RunningReplica](self._deployment_id.name, lambda replica: replica.unique_id)
        self._unavailable_s: dict[ReplicaID, float] = {}

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """How a replica is sent calls."""
        return NotingReplica(replica_info)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve has a new list of running replicas."""
        running = {each.replica_id: (each.replica_metadata.get(DIGEST), each) for each in replicas}
        super().update_replicas(self._usable.told(running))

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """A call did not get through to a replica; Ray has not said that it is dead."""
        super().on_replica_actor_unavailable(replica_id)
        self._unavailable_s[replica_id] = self._get_curr_time_s()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call has found that a replica is no more, before Serve has."""
        super().on_replica_actor_died(replica_id)
        self._usable.died(replica_id)
        self._unavailable_s.pop(replica_id, None)

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
        candidates = [replica for replica in candidates if self._answers(replica.replica_id)] or candidates
        own = calls_by_replica()
        fewest = min((own[_tag(replica)] for replica in candidates), default=0)
        even = [replica for replica in candidates if own[_tag(replica)] == fewest]
        # Any of them where none of those takes the call, or says at once how many it has.
        ranks = [even] if len(even) == len(candidates) else [even, candidates]
        return [random.sample(rank, min(len(rank), MOST_ASKED)) for rank in ranks if rank]

    def _answers(self, replica: ReplicaID) -> bool:
        return self._get_curr_time_s() >= self._unavailable_s.get(replica, -inf) + UNAVAILABLE_S


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
