"""Which replicas of each stage there are, as Serve last said, what they are called in a ticket, and what calls went where.

A registry that handles write and the router reads, and the other way round: which replicas are to be left out. Where Serve's
handles run in a thread of their own, they and the router's loop write different entries, each in one step.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b

_running: dict[str, frozenset[int]] = {}
_left_out: dict[str, frozenset[int]] = {}
_sent: dict[int, int | None] = {}

NOBODY: frozenset[int] = frozenset()


def note(deployment: str, replicas: Iterable[int]) -> None:
    """Take down the running replicas of a deployment; called by the handles' request routers.

    Args:
        deployment: its name.
        replicas: their tags.
    """
    _running[deployment] = frozenset(replicas)


def tags(deployment: str) -> frozenset[int]:
    """Tags of the running replicas of a deployment; none until a handle of this process has heard of it."""
    return _running.get(deployment, NOBODY)


def running(deployment: str) -> int | None:
    """Running replicas of a deployment without those that are left out; None until a handle of this process has heard of it.

    Where nobody else is left, those that are left out count, for calls go to them then.
    """
    known = _running.get(deployment)
    return None if known is None else len(known - left_out(deployment)) or len(known)


def leave_out(deployment: str, replicas: frozenset[int]) -> None:
    """No call goes to these until further notice, but for those that name one of them."""
    _left_out[deployment] = replicas


def left_out(deployment: str) -> frozenset[int]:
    """Tags of the replicas of a deployment that no call should go to."""
    return _left_out.get(deployment, NOBODY)


def follow(call: int) -> None:
    """From now on it is taken down which replica this call is sent to."""
    _sent[call] = None


def note_sent(call: int, replica: int) -> None:
    """A call goes to a replica now; called by the handles."""
    if call in _sent:
        _sent[call] = replica


def sent() -> Mapping[int, int | None]:
    """Of the calls that are followed, the tag of the replica that each was last sent to; None while it waits for one."""
    return _sent


def calls_by_replica() -> Counter[int]:
    """How many of the calls that are followed each replica has, by tag."""
    return Counter(tag for tag in list(_sent.values()) if tag is not None)  # a list first: another thread may write


def ended(call: int) -> int | None:
    """Follow a call no longer; where it was sent."""
    return _sent.pop(call, None)


@lru_cache(maxsize=4096)
def tag_of(replica: str) -> int:
    """A replica's number in tickets, 63 bits, from the unique id that Serve gave it."""
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest()) >> 1
