"""Several requests under way on one stream of requests and answers. Knows asyncio, and neither gRPC nor messages.

Answers go out in the order in which they come. One of all of them waits to be sent at a time, and every request holds one
more at the most, so a client that reads slowly costs no memory: requests that show refinements skip those that nobody took
in time.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

Sent = TypeVar("Sent")
Taken = TypeVar("Taken")

logger = logging.getLogger("cascade.ingress")


async def answer_each(
    requests: AsyncIterator[Sent], answer: Callable[[Sent], AsyncGenerator[Taken, None]], most: int
) -> AsyncGenerator[Taken, None]:
    """Answer requests as they come, beside each other. To be closed by whoever stops early, which ends all of them.

    Args:
        requests: from the client.
        answer: answers one of them; it must not raise.
        most: requests under way at a time; further ones are not read.

    Yields:
        Their answers, until there are no more requests and all are answered.
    """
    ready: asyncio.Queue[tuple[Taken, ...]] = asyncio.Queue(1)
    places = asyncio.Semaphore(most)

    async def one(request: Sent) -> None:
        try:
            async with aclosing(answer(request)) as answers:
                async for each in answers:
                    await ready.put((each,))
        finally:
            places.release()

    async def read() -> None:
        try:
            async with asyncio.TaskGroup() as under_way:
                async for request in requests:
                    await places.acquire()
                    under_way.create_task(one(request))
        except Exception:  # of the stream itself: its client has gone, or broke the protocol
            logger.info("a stream of requests broke off", exc_info=True)
        await ready.put(())

    reading = asyncio.create_task(read())
    try:
        while taken := await ready.get():
            yield taken[0]
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
