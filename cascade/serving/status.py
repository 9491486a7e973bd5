"""The status page and its figures: what a person, or ``cascade top``, is shown of a ladder. Read-only; decides nothing.

The page is one file without anything from outside; its script polls the figures. Those are of all routers: whichever is
asked asks the others, at most once for every `FRESH_S`, so that many watchers cost no more than one.
"""

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files

from cascade import __version__
from cascade.serving.service import Service
from cascade.wire.http import Headers
from cascade.wire.live import Document
from cascade.wire.status import RouterReading, status_document

logger = logging.getLogger("cascade.ingress")

FRESH_S = 0.5
"""Readings of the other routers are asked for again after this; figures of the last ten seconds are no finer."""
LIMIT_S = 2.0
"""Routers that have not answered by then are left out, and the page says so."""

AskAll = Callable[[], Awaitable[Sequence[RouterReading]]]
"""Asks every router of the ladder for its reading, itself among them."""


class Status:
    """What one router shows of the whole ladder.

    Attributes:
        ask_all: how to ask all routers; None where this one is alone.

    Args:
        service: the router's service.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.ask_all: AskAll | None = None
        self._asked: asyncio.Task[Sequence[RouterReading]] | None = None
        self._asked_at_s = 0.0

    async def figures(self) -> Document:
        """The document of ``GET /status/figures``.

        Raises:
            NotReady: this router has not started yet.
        """
        own, spec = self._service.reading(), self._service.spec
        readings = {own.router: own} if self.ask_all is None else {each.router: each for each in await self._all()}
        readings[own.router] = own  # there, and newer than what it said with the others
        return status_document(
            list(readings.values()),
            model=spec.name,
            version=spec.version,
            server=__version__,
            cost_unit=spec.cost_unit,
            routers=spec.router.replicas,
        )

    async def _all(self) -> Sequence[RouterReading]:
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now >= self._asked_at_s + FRESH_S):
            self._asked_at_s = now
            self._asked = asyncio.get_running_loop().create_task(self._ask())
        # Shielded: a watcher who leaves takes the answer from nobody else.
        return await asyncio.shield(self._asked)

    async def _ask(self) -> Sequence[RouterReading]:
        assert self.ask_all is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self.ask_all()
        except Exception as error:  # the figures of this one router are better than none, and they say how many are missing
            logger.warning("the other routers could not be asked for their figures: %s", str(error) or type(error).__name__)
            return ()


@cache
def page() -> tuple[Headers, bytes]:
    """Headers and body of the status page."""
    body = files("cascade.serving").joinpath("status.html").read_bytes()
    policy = (
        f"default-src 'none'; script-src {_hash(body, b'script')}; style-src {_hash(body, b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
    return headers, body


def _hash(body: bytes, element: bytes) -> str:
    """The source by which a policy allows the page's only inline element of a kind (CSP level 2, section 4.2.5)."""
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (element, element), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
