"""Updates of a ladder that serves: under open load a new calibration restarts nobody, new weights replace replicas one after
the other, no request fails, and none is answered by parts of two versions.

The second set of weights calls every class by the next one's name. So for a row on which all stages agree, an answer says by
its label whose weights it came from, and by ``cascade_version`` whose tables: the two must always belong together.
"""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
import yaml
from head import Head, head_node
from ladders import CLASSES, write_ladder
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cascade.cli import app
from cascade.loading import load_network
from cascade.rows import read_rows
from cascade.serving.environment import CALLS, free_port
from cascade.spec import Ladder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

RATE = 30.0
"""Requests a second. The load is open: a request is sent when its time has come, whatever became of those before."""
START_LIMIT_S = 180


def prepared(folder: Path, turn: int) -> Path:
    """A calibrated ladder whose classes are called by the name that comes so many places later."""
    spec = write_ladder(folder)
    for path in sorted((folder / "weights").iterdir()):
        save_file({name: torch.roll(each, turn, 0).contiguous() for name, each in load_file(path).items()}, path)
    for path in sorted((folder / "data").iterdir()):
        with np.load(path) as data:
            x, labels = data["x"], data["labels"]
        np.savez(path, x=x, labels=(labels + turn) % len(CLASSES))
    document = yaml.safe_load(spec.read_text())
    document["deadline"] = {"default_s": 10.0}  # a busy test machine is slow, and nothing here is about deadlines
    document["router"] = {"replicas": 2, "num_cpus": 0.2}
    del document["stages"][0]["placement"]  # without a replica of the first stage, a request would fail
    spec.write_text(yaml.safe_dump(document))
    for command in ("profile", "calibrate"):
        result = CliRunner().invoke(app, [command, str(spec)])
        assert result.exit_code == 0, result.output
    return spec


@dataclass
class Seen:
    """What clients saw.

    Attributes:
        failures: everything but an answer.
        answers: by version, and by the turn of the weights that the label tells of.
        stages: answers by version and stage.
        reasons: answers by version and exit reason.
    """

    failures: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)


class Load:
    """Open load from this process's event loop, one row a request, half of it through Serve and half to the routers.

    Args:
        urls: where to send, in turns.
        rows: rows on which all stages agree.
        labels: what the first weights call them.
    """

    def __init__(self, urls: list[str], rows: np.ndarray, labels: np.ndarray) -> None:
        self.seen = Seen()
        self._urls, self._rows, self._labels = urls, rows, labels
        self._stop = asyncio.Event()

    async def __aenter__(self) -> "Load":
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        self._sending = asyncio.get_running_loop().create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._sending
        await self._session.close()

    async def until(self, condition, limit_s: float = 60.0) -> None:
        """Wait until what was seen meets a condition."""
        async with asyncio.timeout(limit_s):
            while not condition(self.seen):
                await asyncio.sleep(0.05)

    async def _send(self) -> None:
        random = np.random.default_rng(1)
        requests: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        number = 0
        while not self._stop.is_set():
            due += random.exponential(1 / RATE)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            request = asyncio.create_task(self._ask(self._urls[number % len(self._urls)], number % len(self._rows)))
            requests.add(request)
            request.add_done_callback(requests.discard)
            number += 1
        await asyncio.gather(*requests)

    async def _ask(self, url: str, row: int) -> None:
        data = self._rows[row].tolist()
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(data)], "data": data}]}
        try:
            async with self._session.post(f"{url}/v2/models/colours/infer", json=body) as response:
                text = await response.text()
                if response.status != 200:
                    self.seen.failures.append(f"{url}: {response.status} {text[:200]}")
                    return
        except (aiohttp.ClientError, TimeoutError) as error:
            self.seen.failures.append(f"{url}: {error!r}")
            return
        answer = json.loads(text)
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        version = answer["parameters"]["cascade_version"]
        self.seen.answers[version, (outputs["label"][0] - int(self._labels[row])) % len(CLASSES)] += 1
        self.seen.stages[version, answer["parameters"]["cascade_stage"]] += 1
        self.seen.reasons[version, answer["parameters"]["cascade_exit_reason"]] += 1


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    tests = str(Path(__file__).resolve().parents[1])
    with head_node(
        tmp_path_factory.mktemp("updates-head"), 4, PYTHONPATH=f"{tests}:{Path(tests).parent}", **CALLS
    ) as running:
        yield running


@pytest.fixture(scope="module")
def ladders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two ladders that differ in their weights and what follows from them."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    return prepared(first, 0).parent, prepared(second, 1).parent


def agreed(spec: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test rows on which all stages say the same, and what."""
    ladder = Ladder.read(spec)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    answers = [load_network(ladder, stage).run(inputs).logits.argmax(axis=1) for stage in ladder.spec.stages]
    same = np.all([each == answers[0] for each in answers], axis=0)
    return inputs["x"][same], answers[0][same]


def deploy(head: Head, file: Path) -> str:
    """Deploy, once the head's dashboard answers; what the command prints."""
    limit = time.monotonic() + START_LIMIT_S
    while True:
        done = head.cascade("deploy", str(file))
        if done.returncode == 0:
            return " ".join(done.stdout.split())
        assert "Not reachable" in done.stderr, done.stdout + done.stderr
        assert time.monotonic() < limit, done.stderr


def version_of(spec: Path) -> str:
    result = CliRunner().invoke(app, ["check", str(spec), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)["version"]


async def test_updates_under_load(head: Head, ladders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "ladder"
    shutil.copytree(ladders[0], folder)
    spec, serve_file = folder / "cascade.yaml", tmp_path / "serve.yaml"
    http, own = free_port(), free_port()
    serve_file.write_text(
        yaml.safe_dump(
            {
                "http_options": {"host": "127.0.0.1", "port": http},
                "applications": [
                    {
                        "name": "colours",
                        "route_prefix": "/",
                        "import_path": "cascade.serving.app:build",
                        "args": {"spec": str(spec), "listen": f"127.0.0.1:{own}"},
                    }
                ],
            }
        )
    )
    first = version_of(spec)
    told = await asyncio.to_thread(deploy, head, serve_file)
    assert "colours" in told
    assert "is new" in told
    assert f"2 router(s) decide by version {first}" in told
    started = head.pids("colours")
    urls = [f"http://127.0.0.1:{http}", f"http://127.0.0.1:{own}"]
    async with Load(urls, *agreed(spec)) as load:
        await load.until(lambda seen: seen.answers[first, 0] > 50)

        # Another calibration and other prices: taken up while it runs.
        document = yaml.safe_load(spec.read_text())
        document["stages"][2]["base_price"] = 0.001
        spec.write_text(yaml.safe_dump(document))
        result = await asyncio.to_thread(CliRunner().invoke, app, ["calibrate", str(spec), "--replace"])
        assert result.exit_code == 0, result.output
        second = version_of(spec)
        told = await asyncio.to_thread(deploy, head, serve_file)
        assert "no replica restarts" in told
        assert f"2 router(s) decide by version {second}" in told
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["top", *urls, "--json"])
        assert shown.exit_code == 0, shown.output
        for figures in json.loads(shown.output):
            assert figures["routers"]["answered"] == 2
            assert figures["live"]["replicas"] == {"rough": 1, "fair": 1, "fine": 1}
            assert figures["live"]["rate"] > 0
        await load.until(lambda seen: seen.answers[second, 0] > 50)
        assert head.pids("colours") == started
        before = Counter(load.seen.answers)
        await load.until(lambda seen: seen.answers[second, 0] > before[second, 0] + 20)
        assert load.seen.answers[first, 0] == before[first, 0], "once the routers have it, nothing is decided by the old one"

        # Other weights, and what belongs to them: a rolling update.
        for name in ("weights", "data", "calibration"):
            shutil.rmtree(folder / name)
            shutil.copytree(ladders[1] / name, folder / name)
        third = version_of(spec)
        told = await asyncio.to_thread(deploy, head, serve_file)
        assert "replicas are replaced, one after the other" in told
        await load.until(lambda seen: seen.answers[third, 1] > 50)
        replaced = head.pids("colours")
    print(load.seen)  # shown if any of what follows fails
    assert load.seen.failures == []
    assert set(load.seen.answers) == {(first, 0), (second, 0), (third, 1)}, load.seen.answers
    assert all(not replaced[name] & started[name] for name in started), "every replica is another one"
    assert {stage for version, stage in load.seen.stages if version == third} >= {"rough", "fair"}
