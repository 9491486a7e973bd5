"""The status page of a router that asks for keys, in a real browser that a test types into: who is shown the figures."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import chromium
import numpy as np
import yaml

from cascade.assembly import Artefacts
from cascade.keys import ApiKey, KeyFile, hash_of, new_key
from cascade.serving.address import Address
from cascade.serving.app import build_router
from cascade.serving.environment import free_port
from cascade.serving.fakes import FakeStage
from cascade.serving.http_listener import HttpListener
from cascade.serving.ingress import Ingress
from cascade.serving.service import Service
from cascade.spec import Ladder, parse_spec

pytestmark = chromium.needed
FASHION = Path(__file__).parents[2] / "deployments" / "fashion"
KEYS = {"user": new_key(), "operator": new_key()}


@asynccontextmanager
async def asking_for_keys(folder: Path) -> AsyncIterator[str]:
    """A router of the shipped ladder, whose stages nobody calls, behind its own listener and keys; its address."""
    entries = [ApiKey(name=name, sha256=hash_of(key), admin=name == "operator") for name, key in KEYS.items()]
    KeyFile(keys=tuple(entries)).write(folder / "keys.json")
    document = yaml.safe_load((FASHION / "cascade.yaml").read_text())
    ladder = Ladder(parse_spec(document | {"security": {"keys": str(folder / "keys.json")}}), FASHION)
    artefacts = Artefacts.read(ladder)
    stages = [FakeStage(lambda _: np.zeros((1, 10), np.float32)) for _ in ladder.spec.stages]
    service = Service(ladder, lambda: build_router(ladder, artefacts, stages))
    listener = HttpListener(Ingress(service), Address("127.0.0.1", port := free_port()), 1.0)
    service.start()
    await listener.open()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await listener.close()
        await service.close()


class Tab:
    """A tab of a browser, told what to do by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._number:
                return answer["result"]

    async def evaluate(self, script: str) -> Any:
        return (await self.do("Runtime.evaluate", expression=script))["result"].get("value")

    async def reads(self, words: str) -> None:
        """Wait until the page says so; the test's own time limit is the only one."""
        while words not in re.sub(r"\s+", " ", await self.evaluate("document.body.innerText") or ""):
            await asyncio.sleep(0.05)

    async def enter(self, key: str) -> None:
        """Type a key as a person does, and press Enter."""
        await self.evaluate("document.getElementById('key').focus()")
        await self.do("Input.insertText", text=key)
        for kind in ("keyDown", "keyUp"):
            await self.do(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )


@asynccontextmanager
async def browsing(url: str, folder: Path) -> AsyncIterator[Tab]:
    command = chromium.headless(folder, "--remote-debugging-port=0", "about:blank")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while not (found := re.search(rb"DevTools listening on ws://([^/]+)/", line := await process.stderr.readline())):
            assert line, "the browser has ended"
        drained = asyncio.create_task(process.stderr.read())  # a full pipe would stop it
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found[1].decode()}/json/list") as response:
                target = next(each for each in json.loads(await response.read()) if each["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"]) as socket:
                tab = Tab(socket)
                await tab.do("Page.navigate", url=url)
                yield tab
    finally:
        process.kill()
        await process.wait()
    await drained


async def test_the_figures_are_shown_to_whoever_enters_an_operators_key(tmp_path: Path) -> None:
    async with asking_for_keys(tmp_path) as url, browsing(f"{url}/status", tmp_path) as tab:
        await tab.reads("This server shows its figures to operators.")
        assert "fashion" not in await tab.evaluate("document.documentElement.outerHTML")
        await tab.enter("csk_nobody-has-this-one")
        await tab.reads("This server does not know that key.")
        await tab.enter(KEYS["user"])
        await tab.reads("That key is not an operator's")
        await tab.enter(KEYS["operator"])
        await tab.reads("Routers: 1 of 1 answered")
        assert await tab.evaluate("document.getElementById('keyform').hidden") is True
        # It is kept for the tab, and nowhere else.
        await tab.do("Page.reload")
        await tab.reads("Routers: 1 of 1 answered")
        assert await tab.evaluate("localStorage.length + document.cookie.length") == 0
