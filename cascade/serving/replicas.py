"""How many replicas of each stage are healthy, as Serve last said, and what they are called in a ticket.

A registry that handles write and the router reads.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

from collections.abc import Hashable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, TypeVar

Id = TypeVar("Id", bound=Hashable)
Replica = TypeVar("Replica")

DIGEST = "digest"
"""Under which a replica's metadata holds what its answers depend on, see `Ladder.stage_digest`."""

_running: dict[str, int] = {}
_digests: dict[str, str] = {}
_strangers: set[str] = set()


def note(deployment: str, replicas: int, *, strangers: bool = False) -> None:
    """Take down the replicas of a deployment; called by the handles' request routers.

    Args:
        deployment: its name.
        replicas: how many may be called here.
        strangers: whether others run beside them.
    """
    _running[deployment] = replicas
    (_strangers.add if strangers else _strangers.discard)(deployment)


def has_strangers(deployment: str) -> bool:
    """Whether a deployment has replicas that may not be called here: it is being replaced."""
    return deployment in _strangers


def expect(deployment: str, digest: str) -> None:
    """From now on only replicas with this digest count, or are called; those that say none are taken for any.

    Said by a router before its first call. While Serve replaces the replicas of a stage by others with new weights, and the
    routers beside them, either kind of router knows the replicas that its tables are about.
    """
    _digests[deployment] = digest


def fits(deployment: str, digest: str | None) -> bool:
    """Whether a replica of a deployment that says it has this digest may be called here."""
    return digest is None or digest == _digests.get(deployment, digest)


def running(deployment: str) -> int | None:
    """Running replicas of a deployment; None until a handle of this process has heard of it."""
    return _running.get(deployment)


class Usable(Generic[Id, Replica]):
    """Which replicas of one deployment may be called here, as Serve says what runs.

    Those with other weights than the router's tables are about may not. While there are such the deployment is being
    replaced, and a replica that Serve has begun to stop is called for as long as it lives: see `cascade.serving.staying`.

    Args:
        deployment: its name.
    """

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._usable: dict[Id, Replica] = {}

    def told(self, running: Mapping[Id, tuple[str | None, Replica]]) -> list[Replica]:
        """Those that may be called, now that these run.

        Args:
            running: digest of each replica, None if it says none, and the replica itself.
        """
        usable = {each: replica for each, (digest, replica) in running.items() if fits(self._deployment, digest)}
        strangers = len(usable) < len(running)
        self._usable = self._usable | usable if strangers else usable
        note(self._deployment, len(self._usable), strangers=strangers)
        return list(self._usable.values())

    def died(self, replica: Id) -> None:
        """A replica was found gone, of which Serve may have no word any more."""
        self._usable.pop(replica, None)
        note(self._deployment, len(self._usable), strangers=has_strangers(self._deployment))


@lru_cache(maxsize=4096)
def tag_of(replica: str) -> int:
    """A replica's number in tickets, 63 bits, from the unique id that Serve gave it."""
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest()) >> 1
