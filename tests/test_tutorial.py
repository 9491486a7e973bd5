"""The tutorial, followed word by word in an empty folder: its files are written, its commands run, its server serves."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tutorial import Block, blocks

from cascade.serving.environment import HAPROXY_PORTS, free_port

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = blocks(ROOT / "docs" / "tutorial.md")
OFFLINE = TUTORIAL[: next(place for place, block in enumerate(TUTORIAL) if block.kind == "server")]
ONLINE = TUTORIAL[len(OFFLINE) :]
START_LIMIT_S = 180


class Reader:
    """Somebody who follows the tutorial in a folder.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"8000": str(free_port()), "8001": str(free_port())}
        self.environment = {name: value for name, value in os.environ.items() if name not in HAPROXY_PORTS}
        # As in an environment where cascade is installed: its command and this Python are on the path.
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment |= {"LADDER": str(folder), "COLUMNS": "120"}

    def write(self, block: Block) -> None:
        (self.folder / block.name).write_text(self._own_ports(block.text), encoding="utf-8")

    def type(self, block: Block) -> str:
        """Run a block in a shell that stops at the first command that fails; returns what it printed."""
        where = ROOT if block.kind == "checkout" else self.folder
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._setting_up(block)],
            cwd=where,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}"
        return done.stdout

    def serve(self, block: Block, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            script = "exec " + self._setting_up(block).strip()
            return subprocess.Popen(
                ["bash", "-c", script], cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def follow(self, tutorial: list[Block]) -> list[str]:
        """All blocks that are no server; what each shell printed."""
        printed = []
        for block in tutorial:
            if block.kind == "file":
                self.write(block)
            elif block.kind != "server":
                printed.append(self.type(block))
        return printed

    def _setting_up(self, block: Block) -> str:
        self.environment["PYTHONPATH"] = os.pathsep.join([str(self.folder), str(ROOT)])
        # What a shell exports holds in the next block, too; here each block has a shell of its own.
        return self._own_ports(block.text).replace("export PYTHONPATH=$PWD\n", "")

    def _own_ports(self, text: str) -> str:
        for documented, free in self.ports.items():
            text = text.replace(documented, free)
        return text


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    return Reader(tmp_path_factory.mktemp("tutorial"))


@pytest.fixture(scope="module")
def offline(reader) -> list[str]:
    """What the part without a server printed."""
    return reader.follow(OFFLINE)


def test_the_tutorial_has_all_its_parts():
    assert [block.name for block in TUTORIAL if block.kind == "file"] == [
        "models.py",
        "make.py",
        "cascade.yaml",
        "client.py",
    ]
    typed = "".join(block.text for block in TUTORIAL if block.kind != "file")
    for word in ("profile", "calibrate", "check", "frontier", "certify", "plan", "simulate", "serve", "explain"):
        assert f"cascade {word} " in typed
    assert "locust " in typed
    assert [block.kind for block in TUTORIAL].count("server") == 1


@pytest.mark.timeout(600)
def test_three_models_and_a_labelled_file_become_a_ladder_that_is_ready_to_serve(offline, reader):
    made, checked, _, planned = offline
    shares = [float(line.split()[1].rstrip("%")) for line in made.splitlines() if line.endswith("% right")]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] - 5
    assert "calibration belongs to it" in checked
    for name in ("outcomes.npz", "service.json", "calibration.json", "test-outcomes.npz", "certificate.json", "plan.json"):
        assert (reader.folder / "calibration" / name).is_file()
    assert "fine" in planned


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_it_is_served_called_explained_and_put_under_load(offline, reader, tmp_path):
    (server,) = (block for block in ONLINE if block.kind == "server")
    log = tmp_path / "server.log"
    process = reader.serve(server, log)
    try:
        limit, url = time.monotonic() + START_LIMIT_S, f"http://127.0.0.1:{reader.ports['8000']}/v2/health/ready"
        while not answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.2)
        called, printed, loaded = reader.follow(ONLINE)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)
    assert '"cascade_explain":' in called
    assert "first: class" in called
    assert "% right" in printed
    assert '"live"' in printed
    assert (reader.folder / "spike.npz").is_file(), loaded


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
