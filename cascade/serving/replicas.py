"""How many replicas of each stage are healthy, as Serve last said, and what they are called in a ticket.

A registry that handles write and the router reads.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

from functools import lru_cache
from hashlib import blake2b

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


@lru_cache(maxsize=4096)
def tag_of(replica: str) -> int:
    """A replica's number in tickets, 63 bits, from the unique id that Serve gave it."""
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest()) >> 1
