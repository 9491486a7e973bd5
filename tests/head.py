"""A Ray head node for tests, as an operator starts one, and the command that deploys to it."""

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cascade.serving.environment import FAST_PATH, free_port

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node that runs.

    Attributes:
        dashboard: address of its dashboard.
        environment: what its commands need.
    """

    dashboard: str
    environment: Mapping[str, str]

    def cascade(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run ``cascade ARGUMENTS --address`` of this head."""
        command = [sys.executable, "-m", "cascade.cli", *arguments, "--address", self.dashboard]
        return subprocess.run(command, cwd=ROOT, env=dict(self.environment), capture_output=True, text=True, check=False)

    def details(self) -> dict[str, Any]:
        """What Serve says of itself."""
        import requests

        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        reply = requests.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30)
        reply.raise_for_status()
        return reply.json()

    def pids(self, application: str) -> dict[str, set[int]]:
        """Processes of an application's running replicas, by deployment."""
        deployments = self.details()["applications"][application]["deployments"]
        return {
            name: {replica["pid"] for replica in each["replicas"] if replica["state"] == "RUNNING"}
            for name, each in deployments.items()
        }


@contextlib.contextmanager
def head_node(folder: Path, cpus: int, **environment: str) -> Iterator[Head]:
    """A head node for as long as the context lasts; without the fast path unless the environment asks for it.

    Args:
        folder: for its log.
        cpus: that it says it has.
        environment: further variables of its processes.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in FAST_PATH}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables = inherited | token | environment
    dashboard = free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"]
    command += [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    command += [f"--object-store-memory={200 << 20}"]
    with (folder / "ray.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Head(f"http://127.0.0.1:{dashboard}", variables)
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            if member.is_running():
                member.kill()
        psutil.wait_procs(family, timeout=30)
        process.wait()
