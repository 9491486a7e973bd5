"""Which replicas of each stage there are, as Serve last said, what they are called in a ticket, and what calls went where.

A registry that handles write and the router reads, and the other way round: which replicas are to be left out. Where Serve's
handles run in a thread of their own, they and the router's loop write different entries, each in one step.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, TypeVar

Id = TypeVar("Id", bound=Hashable)
Replica = TypeVar("Replica")

DIGEST = "digest"
"""Under which a replica's metadata holds what its answers depend on, see `Ladder.stage_digest`."""

_running: dict[str, frozenset[int]] = {}
_left_out: dict[str, frozenset[int]] = {}
_sent: dict[int, int | None] = {}
_digests: dict[str, str] = {}
_strangers: set[str] = set()

NOBODY: frozenset[int] = frozenset()


def note(deployment: str, replicas: Iterable[int], *, strangers: bool = False) -> None:
    """Take down the replicas of a deployment; called by the handles' request routers.

    Args:
        deployment: its name.
        replicas: tags of those that may be called here.
        strangers: whether others run beside them.
    """
    _running[deployment] = frozenset(replicas)
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


class Usable(Generic[Id, Replica]):
    """Which replicas of one deployment may be called here, as Serve says what runs.

    Those with other weights than the router's tables are about may not. While there are such the deployment is being
    replaced, and a replica that Serve has begun to stop is called for as long as it lives: see `cascade.serving.staying`.

    Args:
        deployment: its name.
        name: the unique id that Serve gave a replica.
    """

    def __init__(self, deployment: str, name: Callable[[Id], str] = str) -> None:
        self._deployment = deployment
        self._name = name
        self._usable: dict[Id, Replica] = {}

    def told(self, running: Mapping[Id, tuple[str | None, Replica]]) -> list[Replica]:
        """Those that may be called, now that these run.

        Args:
            running: digest of each replica, None if it says none, and the replica itself.
        """
        usable = {each: replica for each, (digest, replica) in running.items() if fits(self._deployment, digest)}
        strangers = len(usable) < len(running)
        self._usable = self._usable | usable if strangers else usable
        self._note(strangers)
        return list(self._usable.values())

    def died(self, replica: Id) -> None:
        """A replica was found gone, of which Serve may have no word any more."""
        self._usable.pop(replica, None)
        self._note(has_strangers(self._deployment))

    def _note(self, strangers: bool) -> None:
        note(self._deployment, [tag_of(self._name(each)) for each in self._usable], strangers=strangers)


@lru_cache(maxsize=4096)
def tag_of(replica: str) -> int:
    """A replica's number in tickets, 63 bits, from the unique id that Serve gave it."""
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest()) >> 1
