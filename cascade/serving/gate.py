"""Who is let in at all: keys, and how many requests one client may have under way. Knows the file of keys, and a clock.

It stands before the door: the door turns away what would come too late, the gate those who may not ask or ask too much.
Without `security` in the spec everybody may ask everything, and clients are told apart by their addresses alone.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cascade.errors import ConfigError, TooManyRequests, Unauthorized
from cascade.keys import KeyFile, KeyRing
from cascade.spec import Ladder
from cascade.spec_sections import LimitsSpec
from cascade.wire.access import Access, access_of, allowed, key_in
from cascade.wire.grant import Grant
from cascade.wire.routes import RouteKind

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

RELOAD_S = 1.0
"""The file of keys is looked at this often, at most, and only when somebody asks: a revoked key is refused from then on."""


class Gate:
    """The gate of one router.

    Args:
        limits: what one client may have under way.
        keys: the file of keys; None where no key is asked for.
        classes: name of each class to its priority.
        default_priority: class of keys that name none.
        clock: seconds.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(
        self,
        limits: LimitsSpec,
        keys: Path | None = None,
        classes: Mapping[str, int] | None = None,
        default_priority: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._path = keys
        self._classes = classes or {}
        self._default_priority = default_priority
        self._clock = clock
        self._under_way: dict[str, int] = {}
        self._streams: dict[str, int] = {}
        self._state: tuple[int, ...] = ()
        self._ring: KeyRing | None = None
        self._looked_s = clock()
        if keys is not None:
            self._state = _state_of(keys)
            self._ring = self._read(keys)

    @classmethod
    def of(cls, ladder: Ladder) -> "Gate":
        """The gate that a spec asks for.

        Raises:
            ConfigError: the file of keys cannot be used.
        """
        spec = ladder.spec
        if spec.security is None:
            return cls(spec.limits)
        classes = {each.name: priority for priority, each in enumerate(spec.admission.all_classes, 1)}
        return cls(spec.limits, ladder.path(spec.security.keys), classes, spec.admission.default_priority)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def grant(self, kind: RouteKind, headers: Iterable[tuple[bytes, bytes]]) -> Grant | None:
        """What a request's key gives it.

        Args:
            kind: of the route that it asks for.
            headers: lower-case names and values.

        Returns:
            None where no key is asked for, or on a route that is open.

        Raises:
            Unauthorized: it needs a key and has none that is known.
            Forbidden: its key does not open this.
        """
        if self._ring is None or access_of(kind) is Access.OPEN:
            return None
        self._reload()
        presented = key_in(headers)
        grant = None if presented is None else self._ring.grant(presented)
        if presented is not None and grant is None:
            raise Unauthorized("the key is not known")
        allowed(kind, grant)
        return grant

    def _reload(self) -> None:
        """Read the file again if it has changed; one that cannot be used leaves the keys as they are."""
        now = self._clock()
        if self._path is None or now < self._looked_s + RELOAD_S:
            return
        self._looked_s = now
        try:
            state = _state_of(self._path)
            if state == self._state:
                return
            self._state = state
            self._ring = ring = self._read(self._path)
            logger.info(f"keys {self._path}: read again, {len(ring)} of them")
        except ConfigError as error:
            logger.error(f"the keys stay as they were: {error.detail}")

    def _read(self, path: Path) -> KeyRing:
        return KeyRing(KeyFile.read(path), self._classes, self._default_priority)

    # -- how many ------------------------------------------------------------------------------------------------------

    def enter(self, grant: Grant | None, peer: str, *, stream: bool) -> str:
        """Count a request that begins.

        Args:
            grant: of its key; None for none.
            peer: address of the client, empty where it is not known.
            stream: whether it is answered by a stream.

        Returns:
            The client, for `leave`; empty for one that is not told apart from others.

        Raises:
            TooManyRequests: it has too many under way already.
        """
        client = f"key {grant.name}" if grant is not None else peer
        if not client:
            return client
        most, most_streams = self._limits.max_under_way, self._limits.max_streams
        if grant is not None:
            most, most_streams = grant.max_under_way or most, grant.max_streams or most_streams
        under_way = self._under_way.get(client, 0)
        if most is not None and under_way >= most:
            raise TooManyRequests(f"one client may have {most} requests under way")
        if stream:
            streams = self._streams.get(client, 0)
            if most_streams is not None and streams >= most_streams:
                raise TooManyRequests(f"one client may have {most_streams} streams under way")
            self._streams[client] = streams + 1
        self._under_way[client] = under_way + 1
        return client

    def leave(self, client: str, *, stream: bool) -> None:
        """A request has ended.

        Args:
            client: what `enter` returned.
            stream: what it was told.
        """
        if client:
            _less(self._under_way, client)
            if stream:
                _less(self._streams, client)


def _less(counts: dict[str, int], client: str) -> None:
    """One less, and nothing is kept of a client that has none."""
    left = counts[client] - 1
    if left:
        counts[client] = left
    else:
        del counts[client]


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced, be it by a link elsewhere, as Kubernetes replaces secrets.

    Raises:
        ConfigError: there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"keys {path}: {error.strerror or error}; `cascade key new` makes the file") from error
    return found.st_mtime_ns, found.st_size, found.st_ino
