"""A real server for tests: the very command that a user types, in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cascade.serving.environment import HAPROXY_PORTS, free_port

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 180
STOP_LIMIT_S = 90


class ServerProcess:
    """``cascade serve SPEC OPTIONS``, on a free port unless one is given.

    Attributes:
        port: where it listens.
        url: the same as a URL.
        grpc_address: where it listens for gRPC; None if it does not.
        process: the command.
    """

    def __init__(
        self, spec: Path, log: Path, port: int | None = None, *, grpc: bool = False, options: Sequence[str] = ()
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{free_port()}" if grpc else None
        self._log = log
        command = [sys.executable, "-m", "cascade.cli", "serve", str(spec), "--port", str(self.port), *options]
        if self.grpc_address is not None:
            command += ["--grpc-port", self.grpc_address.rpartition(":")[2]]
        with log.open("wb") as output:
            # As from a fresh shell: each server chooses HAProxy's ports for itself.
            environment = {name: value for name, value in os.environ.items() if name not in HAPROXY_PORTS}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def wait_until_ready(self) -> None:
        """Return once the server says that it is ready."""
        limit = time.monotonic() + START_LIMIT_S
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.output()}")
            if self._answers():
                return
            time.sleep(0.2)
        raise AssertionError(f"not ready after {START_LIMIT_S} s:\n{self.output()}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as response:
                return bool(response.status == 200) and (self.grpc_address is None or grpc_answers(self.grpc_address))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def output(self) -> str:
        """What the command printed."""
        return self._log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The command and everything that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The replica processes of a deployment that live now."""
        title = f"ray::ServeReplica:cascade:{deployment}"
        return [process for process in self.family() if _title(process).startswith(title)]

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            for process in self.family():
                process.kill()
            raise


def _title(process: psutil.Process) -> str:
    """What a process calls itself; empty once it has ended, reaped by its parent or not."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.NoSuchProcess:  # a zombie too
        return ""


def grpc_answers(address: str) -> bool:
    """Whether a server says over gRPC that it is ready."""
    try:
        with triton.InferenceServerClient(address) as client:
            return bool(client.is_server_ready(client_timeout=5))
    except InferenceServerException:
        return False


@contextlib.contextmanager
def served(spec: Path, log: Path, options: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """A server, HTTP and gRPC, for as long as the context lasts."""
    server = ServerProcess(spec, log, grpc=True, options=options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
