"""`cascade top`: the figures of running ladders in a terminal. Knows HTTP and what ``/status/figures`` says."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Group, RenderableType
from rich.live import Live

from cascade.cli.console import console, key_header, print_json, usage_errors
from cascade.cli.top_view import panel
from cascade.errors import ServerUnreachable

FIGURES = "/status/figures"
ROUTES = "/-/routes"
"""Where Serve's proxy lists its applications by their route prefix."""
LIMIT_S = 5.0

Urls = Annotated[
    list[str] | None,
    typer.Argument(
        help="Where ladders are served; of a Serve proxy, all its ladders.", show_default="http://127.0.0.1:8000"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(top)


def top(
    urls: Urls = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2, max=60)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once and print the figures as JSON.")] = False,
) -> None:
    """Watch running ladders: rate, prices, who answers, what is degraded, queues, replicas. Ctrl-C ends it."""
    with usage_errors():
        watched = asyncio.run(_find([url.rstrip("/") for url in urls or ["http://127.0.0.1:8000"]]))
        if as_json:
            print_json([{"url": each.url, **each.figures} for each in watched])
        elif once:
            console.print(_screen(watched))
        else:
            try:
                asyncio.run(_watch(watched, interval))
            except KeyboardInterrupt:
                console.print("ended")


@dataclass
class Watched:
    """One ladder that is watched.

    Attributes:
        url: where it is served, without the routes.
        figures: the newest that it gave.
        at_s: when that was, by ``time.monotonic``.
        problem: why there is nothing newer; empty if nothing is wrong.
    """

    url: str
    figures: dict[str, Any]
    at_s: float = field(default_factory=time.monotonic)
    problem: str = ""


async def _find(urls: list[str]) -> list[Watched]:
    """The ladders behind some URLs.

    Raises:
        ServerUnreachable: one of them does not answer, or what answers is no cascade.
    """
    async with _session() as session:
        found = await asyncio.gather(*(_ladders_at(session, url if "://" in url else f"http://{url}") for url in urls))
    return [each for ladders in found for each in ladders]


async def _ladders_at(session: aiohttp.ClientSession, url: str) -> list[Watched]:
    try:
        return [Watched(url, await _get(session, url + FIGURES))]
    except _NoSuchThing as missing:
        try:
            routes = await _get(session, url + ROUTES)
        except (ServerUnreachable, _NoSuchThing):
            raise ServerUnreachable(f"{url} is no cascade: {missing}") from None
    # A proxy with several applications, not all of which need be ladders.
    found = []
    for prefix in sorted(routes):
        try:
            found.append(Watched(url + prefix.rstrip("/"), await _get(session, url + prefix.rstrip("/") + FIGURES)))
        except _NoSuchThing:
            continue
    if not found:
        raise ServerUnreachable(f"{url}: none of its applications ({', '.join(routes) or 'it has none'}) is a cascade")
    return found


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with session.get(url) as response:
            if response.status == 503:
                raise ServerUnreachable(f"{url}: the server is starting, its first stage has not been loaded yet")
            if response.status in (401, 403):
                raise ServerUnreachable(f"{url} asks for an operator's key: put one into the environment as CASCADE_KEY")
            if response.status != 200:
                raise _NoSuchThing(f"{url} answers {response.status}")
            document = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ServerUnreachable(f"{url}: {str(error) or 'no answer within ' + format(LIMIT_S, 'g') + ' s'}") from error
    if not isinstance(document, dict):
        raise _NoSuchThing(f"{url} answers something else")
    return document


async def _watch(watched: list[Watched], interval_s: float) -> None:
    async with _session() as session:
        with Live(_screen(watched), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                await asyncio.sleep(interval_s)
                await asyncio.gather(*(_look(session, each) for each in watched))
                live.update(_screen(watched), refresh=True)


async def _look(session: aiohttp.ClientSession, each: Watched) -> None:
    try:
        each.figures, each.at_s, each.problem = await _get(session, each.url + FIGURES), time.monotonic(), ""
    except (ServerUnreachable, _NoSuchThing) as error:
        each.problem = str(error)


def _screen(watched: list[Watched]) -> RenderableType:
    now = time.monotonic()
    return Group(*(panel(each.url, each.figures, each.problem, now - each.at_s) for each in watched))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S), headers=key_header())


class _NoSuchThing(Exception):
    """Somebody answers there, and it is not what was asked for."""
