"""During a rolling update a router asks the replicas that it can use to stay until it goes itself. Decides nothing.

Serve replaces the replicas of all deployments at the same time and knows of no version. A stage whose new replica is ready
before the new router is would have none left that the old router may call: its rows would stop early, for as long as a
router takes to start. But Serve lets a replica end what it has begun before it stops it, so the old router always has a call
there that does nothing, as long as it sees replicas with other weights beside its own.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle

from cascade.serving import replicas

logger = logging.getLogger("ray.serve")  # Serve's own, so that it lands in the replica's log

LOOK_S = 0.1
"""How often a router looks for replicas of another version. Reading a dictionary costs nothing."""
STAY_S = 2.0
"""How long a replica stays for one request; asked for twice in that time."""
DRAIN_LOOP_S = 1.0
"""Serve looks this often whether a replica that it stops has work left, the first time after so long: a router has to have
heard of the new replica and asked the old one to stay by then."""
LONGEST_S = 90.0
"""Times the number of routers, which are replaced one after the other: how long a replica stays at most. A router takes some
seconds to start, longer where it waits for large networks, and Serve lets one that is behind HAProxy drain for 30 s."""

AskAll = Callable[[float], Coroutine[Any, Any, object]]
"""Asks all replicas of a deployment that may be called, also those that Serve stops, to stay for so many seconds."""


def ask_over(handle: DeploymentHandle[Any]) -> AskAll:
    """How to ask the replicas behind a handle."""

    async def ask(seconds: float) -> object:
        return await handle.broadcast("stay", seconds).results_async(return_exceptions=True)

    return ask


class Staying:
    """Keeps the replicas of its version while there are others, from `open` to `close`.

    Args:
        deployments: how to ask the replicas of each deployment, by name.
        strangers: whether a deployment has replicas of another version.
    """

    def __init__(self, deployments: Mapping[str, AskAll], strangers: Callable[[str], bool] = replicas.has_strangers) -> None:
        self._deployments = dict(deployments)
        self._strangers = strangers
        self._looking: asyncio.Task[None] | None = None
        self._asked: dict[str, tuple[float, asyncio.Task[object]]] = {}

    async def open(self) -> None:
        """Begin to look."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Ask no more; replicas go when what they were asked last has ended."""
        tasks = [task for _, task in self._asked.values()] + ([self._looking] if self._looking is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for name, ask in self._deployments.items():
                asked_s, _ = self._asked.get(name, (-STAY_S, None))
                if self._strangers(name) and loop.time() >= asked_s + STAY_S / 2:
                    if name not in self._asked:
                        logger.info(f"{name} is being replaced; its replicas of this router's version are asked to stay")
                    self._asked[name] = loop.time(), loop.create_task(self._ask(ask))
            await asyncio.sleep(LOOK_S)

    async def _ask(self, ask: AskAll) -> None:
        with suppress(Exception):  # of replicas that are gone; the router goes past the stage then
            await ask(STAY_S)
