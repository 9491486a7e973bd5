"""One router takes over from another inside one process: new messages go to the new one, those under way end where they are.

So no message ever meets two versions of anything, and nobody waits. Knows routers; see `cascade.policy.succession` for what
their policies share.
"""

import asyncio
from typing import TYPE_CHECKING

from cascade.policy.succession import take_over as take_policy_over

if TYPE_CHECKING:
    from cascade.serving.router import Router


class Present:
    """How many messages a router has, and the moment in which it has none."""

    def __init__(self) -> None:
        self._count = 0
        self._left = asyncio.Event()

    def come(self) -> None:
        """One more."""
        self._count += 1

    def go(self) -> None:
        """One less."""
        self._count -= 1
        if not self._count:
            self._left.set()

    async def none(self) -> None:
        """Wait until there is none."""
        while self._count:
            self._left.clear()
            await self._left.wait()


def take_over(after: "Router", before: "Router") -> None:
    """Let a router go on where another one stops admitting, with prices for the load that there is.

    Args:
        after: the one that admits from now on, not started yet; over the same stages.
        before: the one to be retired next.
    """
    take_policy_over(after.policy, before.policy)
    after.slow_loop.take_over(before.slow_loop)
    if after.monitor is not None and before.monitor is not None:
        after.monitor.window, after.monitor.journal = before.monitor.window, before.monitor.journal
    if after.audits is not None and before.audits is not None:
        after.audits.counts = before.audits.counts  # what they found is about the answers of one version each
    after.requests, after.durations = before.requests, before.durations
    after.wards = before.wards  # the stages are the same, and so is what they fail on
    after.sharing = before.sharing
    after.sharing.append(after)
    after.set_prices()


async def retire(router: "Router") -> None:
    """Let the messages that a router has end, then close it. One that was on its way to it is answered even later."""
    router.keep_to_itself()
    await router.present.none()
    await router.close()
    router.sharing.remove(router)
    router.sharing = [router]
