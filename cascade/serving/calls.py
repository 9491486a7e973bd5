"""One router's calls to the replicas of a deployment: timed, addressed where they must be, and ended where nobody answers.

Who lags behind is judged in `cascade.policy.stragglers`; here are the clock and the waiting. Knows handles; decides nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from itertools import count
from typing import Any

from cascade.policy.stragglers import Stragglers
from cascade.serving import replicas

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

LOOK_EVERY_S = 0.1
"""How often replicas are compared while any call is under way."""

_numbers = count(1)
"""Of calls; one sequence for a process, because so is the registry of where they go."""


class ReplicaSilent(Exception):
    """The replica that a call went to answers others' calls no better than this one: it should be made again elsewhere."""


class Calls:
    """The calls of one router to one deployment.

    Args:
        deployment: its name.
        clock: seconds, monotonic.
    """

    def __init__(self, deployment: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._deployment = deployment
        self._clock = clock
        self._stragglers = Stragglers()
        self._waiting: dict[int, asyncio.Timeout] = {}
        self._look: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None

    async def make(
        self,
        method: Callable[..., Awaitable[Any]],
        kind: Hashable,
        *args: Any,
        to: int | None = None,
        discard: Callable[[Any], None] | None = None,
    ) -> Any:
        """Make one call, and wait for its answer. If a replica is to be probed now, it gets the same call beside.

        A copy, so that no row waits for a replica that may not be well yet, nor for the place that it would take there.

        Args:
            method: the remote method.
            kind: calls of a kind take about equally long.
            args: its arguments.
            to: tag of the replica that must run it; None for any. Only calls that may go to any are copied for probes.
            discard: told the answer to a probe, which nobody wants; None where nothing has to be given back.

        Raises:
            ReplicaSilent: that replica is left out, or it does not answer while others do.
            Exception: what the call raised.
        """
        if to is not None and to in self._stragglers.ejected:
            raise ReplicaSilent(f"a replica of {self._deployment!r} that holds rows is left out")
        if to is None and self._probing is None and (ejected := self._stragglers.probe(self._clock())) is not None:
            self._probing = asyncio.get_running_loop().create_task(self._probe(method, kind, args, ejected, discard))
        return await self._call(method, kind, args, to)

    async def _probe(
        self,
        method: Callable[..., Awaitable[Any]],
        kind: Hashable,
        args: tuple[Any, ...],
        ejected: int,
        discard: Callable[[Any], None] | None,
    ) -> None:
        try:
            answer = await self._call(method, kind, args, ejected)
            if discard is not None:
                discard(answer)
        except Exception as error:  # the stragglers know by now
            logger.debug("a probe failed", exc_info=error)
        finally:
            self._probing = None

    async def _call(
        self, method: Callable[..., Awaitable[Any]], kind: Hashable, args: tuple[Any, ...], to: int | None
    ) -> Any:
        now, number = self._clock(), next(_numbers)
        named: dict[str, int] = {"call": number} if to is None else {"call": number, "to": to}
        replicas.follow(number)
        self._stragglers.begun(now, number, kind, to)
        self._watch()
        ended = self._stragglers.left  # unless something comes back
        try:
            async with asyncio.timeout(None) as patience:
                self._waiting[number] = patience
                answer = await method(*args, **named)
            ended = self._stragglers.answered
        except TimeoutError as error:
            if patience.expired():
                raise ReplicaSilent(f"a replica of {self._deployment!r} does not answer") from error
            ended = self._stragglers.failed
            raise
        except Exception:
            ended = self._stragglers.failed
            raise
        finally:
            del self._waiting[number]
            ended(self._clock(), number, replicas.ended(number))
        return answer

    def _watch(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._compare)

    def _tell(self) -> None:
        """Let the handles know who is left out, if that has changed."""
        before, out = replicas.left_out(self._deployment), self._stragglers.ejected
        if out == before:
            return
        replicas.leave_out(self._deployment, out)
        for tag in out - before:
            logger.warning(f"a replica of {self._deployment!r} lags behind the others and is left out (tag {tag})")
        for tag in before - out:
            logger.warning(f"a replica of {self._deployment!r} is no longer left out, or gone (tag {tag})")

    def _compare(self) -> None:
        """Look who lags behind, and end the calls to those that do not answer."""
        self._look = None
        hopeless = self._stragglers.look(self._clock(), replicas.tags(self._deployment), replicas.sent())
        self._tell()
        now_s = asyncio.get_running_loop().time()
        for number in hopeless:
            if not self._waiting[number].expired():
                self._waiting[number].reschedule(now_s)
        if self._stragglers.calls:
            self._watch()
