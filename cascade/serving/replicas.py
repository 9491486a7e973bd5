"""How many replicas of each stage are healthy, as Serve last said, and what they are called in a ticket.

A registry that handles write and the router reads.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

from functools import lru_cache
from hashlib import blake2b

_running: dict[str, int] = {}


def note(deployment: str, replicas: int) -> None:
    """Take down the number of running replicas of a deployment; called by the handles' request routers."""
    _running[deployment] = replicas


def running(deployment: str) -> int | None:
    """Running replicas of a deployment; None until a handle of this process has heard of it."""
    return _running.get(deployment)


@lru_cache(maxsize=4096)
def tag_of(replica: str) -> int:
    """A replica's number in tickets, 63 bits, from the unique id that Serve gave it."""
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest()) >> 1
