"""The cluster under test: nodes, routers and replicas on this machine, and what may befall them. Knows Ray, processes.

Ray reads its environment when it is imported: `cascade.serving.environment.apply_local` must have run before this is.

No ``from __future__ import annotations`` here, as in `cascade.serving.app`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cascade.assembly import build_policy
from cascade.calibration.artefact import ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.errors import CascadeError
from cascade.policy.policy import Policy
from cascade.serving.address import Address
from cascade.serving.app import application, spec_argument
from cascade.serving.environment import free_port
from cascade.spec import CascadeSpec
from loadtests.faults.clocks import ClockIsShared, clock_ahead
from loadtests.faults.ladder import NAME, REPLICAS, ROOT, ROUTERS, STAGES

WORKER_NODES = 2
PLACES = 4
"""Replicas that a worker node holds: both together hold all, and two more."""
AHEAD_S = (86_400, 8_640_000)
"""Monotonic clocks of worker nodes are ahead of the head's by a day and by a hundred days, in turns."""
WHOLE_LIMIT_S = 120.0
LOOK_S = 0.1
COMPANY_LIMIT_S = 30.0
STARVED_S = (0.02, 0.08)
"""Seconds that a starved process runs, and that it stands still, in turns: the period of the kernel's own quotas."""
CONTROLLER = "ray::ServeController"
GCS = "gcs_server"
"""Processes of the head, by how their command begins: Serve's controller, and Ray's own store of who is where."""
PLANNER = "planner"
"""Name of the hook that lets every round of the slow loop fail."""
SMALL = {"include_dashboard": False, "object_store_memory": 100 << 20}


class ClusterFailed(CascadeError):
    """The cluster did not become what it should be."""


@dataclass(frozen=True)
class Replica:
    """A replica that runs: its deployment, process and node."""

    deployment: str
    pid: int
    node: str


class FaultyCluster:
    """A served ladder on nodes of its own.

    Attributes:
        port: where the routers listen.
        folder: of the ladder, for hooks.
        company: what the last clients that behaved badly did and were told, how often.

    Args:
        cluster: the nodes.
        spec: the ladder.
        port: see above.
    """

    def __init__(self, cluster: Cluster, spec: Path, port: int) -> None:
        self.port = port
        self.folder = spec.parent
        self.company: dict[str, int] = {}
        self._spec = spec
        self._cluster = cluster
        self._company: subprocess.Popen[bytes] | None = None
        self._starving: tuple[threading.Event, threading.Thread] | None = None
        self._workers: list[Any] = []
        self._started = 0
        self._stopped: set[int] = set()

    def replicas(self, deployment: str) -> list[Replica]:
        """The replicas of a deployment that run, as Serve says, and whose process there is."""
        details = _get_global_client().get_serve_details()["applications"][NAME]["deployments"][deployment]["replicas"]
        return [
            Replica(deployment, each["pid"], each["node_id"])
            for each in details
            if each["state"] == "RUNNING" and each["pid"] and psutil.pid_exists(each["pid"])
        ]

    def is_whole(self) -> bool:
        """Whether every replica that should run does."""
        wanted = {"router": ROUTERS, **dict.fromkeys(STAGES, REPLICAS)}
        return all(len(self.replicas(name)) == count for name, count in wanted.items())

    def wait_until(self, what: str, condition: Callable[[], bool], limit_s: float = WHOLE_LIMIT_S) -> float:
        """Wait for something; the seconds that it took.

        Raises:
            ClusterFailed: it did not come to pass.
        """
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() > began_s + limit_s:
                raise ClusterFailed(f"{what}: not within {limit_s:g} s; {serve.status()}")
            time.sleep(LOOK_S)
        return time.monotonic() - began_s

    # -- what can be done to it ----------------------------------------------------------------------------------------

    def kill(self, replica: Replica) -> None:
        """End its process without a word."""
        os.kill(replica.pid, signal.SIGKILL)

    def kill_controller(self) -> None:
        """End Serve's controller; Ray starts another."""
        os.kill(_process_of_head(CONTROLLER), signal.SIGKILL)

    def freeze_gcs(self) -> None:
        """Stop Ray's store on the head where it is: nobody can ask it anything, and it notices nobody."""
        self._freeze(_process_of_head(GCS))

    def freeze(self, replica: Replica) -> None:
        """Stop its process where it is: it answers nothing, pings neither, and its connections stay open."""
        self._freeze(replica.pid)

    def _freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)

    def thaw(self) -> None:
        """Let what was frozen or starved go on."""
        self._feed()
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def hook(self, who: str | int, fault: str) -> None:
        """Tell a replica, by its process id, or a stage, by its name, what to do; see `loadtests.faults.network`."""
        path = self.folder / "hooks" / str(who)
        # Under another name first, so that nobody reads half of it.
        partial = path.with_name(f".{who}")
        partial.write_text(fault, encoding="ascii")
        partial.replace(path)

    def unhook(self) -> None:
        """Take all of that back, and send the company away."""
        self.send_away()
        for path in (self.folder / "hooks").iterdir():
            path.unlink()

    def invite(self, kind: str) -> None:
        """Clients that behave badly, see `loadtests.faults.company`, until `unhook`."""
        command = [sys.executable, "-m", "loadtests.faults.company", kind, str(self._spec), "--port", str(self.port)]
        self._company = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._company.stdout is not None
        if self._company.stdout.readline().strip() != b"begun":
            raise ClusterFailed(f"clients of the kind {kind} did not begin")
        self.company = {}

    def send_away(self) -> None:
        """End them; `company` then holds what they saw."""
        if self._company is not None:
            self._company.terminate()
            told, _ = self._company.communicate(timeout=COMPANY_LIMIT_S)
            self.company, self._company = json.loads(told), None

    def starve(self, replica: Replica) -> None:
        """Let its process run for a fifth of the time, as a quota of CPU does: the kernel stops and starts it, too."""
        over = threading.Event()

        def again() -> None:
            with suppress(ProcessLookupError):
                while not over.wait(STARVED_S[0]):
                    os.kill(replica.pid, signal.SIGSTOP)
                    over.wait(STARVED_S[1])
                    os.kill(replica.pid, signal.SIGCONT)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()
        self._starving = (over, thread)

    def _feed(self) -> None:
        if self._starving is not None:
            over, thread = self._starving
            over.set()
            thread.join()
            self._starving = None

    def lose_node(self, name: str) -> None:
        """End a worker node with all that runs there."""
        (node,) = (each for each in self._workers if each.node_id == name)
        self._workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def add_nodes(self) -> None:
        """Start worker nodes until there are as many as there should be."""
        while len(self._workers) < WORKER_NODES:
            ahead_s = AHEAD_S[self._started % len(AHEAD_S)]
            self._started += 1
            with ExitStack() as stack:
                with suppress(ClockIsShared):
                    stack.enter_context(clock_ahead(ahead_s))
                node = self._cluster.add_node(num_cpus=PLACES, resources={"worker": PLACES}, **SMALL)
            self._workers.append(node)

    def make_whole(self) -> float:
        """Undo every fault and wait until everything runs; the seconds that it took."""
        self.thaw()
        self.unhook()
        self.add_nodes()
        return self.wait_until("whole again", self.is_whole)

    # -- what can be seen of it ----------------------------------------------------------------------------------------

    def rows_run(self, deployment: str, since_unix_s: float, until_unix_s: float) -> dict[int, int]:
        """Rows that came to each process of a stage between two instants, answered or not."""
        found = {}
        for replica in self.replicas(deployment):
            path = self.folder / "ran" / str(replica.pid)
            lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
            passes = [line.split() for line in lines]
            found[replica.pid] = sum(int(rows) for at, rows in passes if since_unix_s <= float(at) <= until_unix_s)
        return found

    def clocks_ahead_s(self) -> list[float]:
        """How far the monotonic clock of each worker node is ahead of this process's; the same if it cannot be set."""
        tell = ray.remote(num_cpus=0)(_monotonic_s)
        found = []
        for node in self._workers:
            there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            found.append(ray.get(tell.options(scheduling_strategy=there).remote()) - time.monotonic())
        return found

    def memory(self) -> dict[str, tuple[int, int]]:
        """Resident bytes and open files of every router and replica, by deployment and process."""
        found = {}
        for name in ("router", *STAGES):
            for replica in self.replicas(name):
                process = psutil.Process(replica.pid)
                found[f"{name}/{replica.pid}"] = process.memory_info().rss, process.num_fds()
        return found


def _monotonic_s() -> float:
    return time.monotonic()


def _process_of_head(command: str) -> int:
    """The process below this one whose command begins so: nobody else's."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if Path((process.cmdline() or [""])[0]).name.startswith(command):
                return process.pid
    raise ClusterFailed(f"no process {command} runs")


@contextmanager
def running(spec: Path) -> Iterator[FaultyCluster]:
    """The ladder, served on a cluster of its own for as long as the context lasts.

    Args:
        spec: the ladder.

    Raises:
        ClusterFailed: it does not come to run.
    """
    cluster = Cluster(
        initialize_head=True,
        # The controller and the routers; it is the others that are lost.
        head_node_args={"num_cpus": ROUTERS, "resources": {"router": ROUTERS}, **SMALL},
    )
    faulty = FaultyCluster(cluster, spec, free_port())
    (spec.parent / "ran").mkdir(exist_ok=True)
    try:
        faulty.add_nodes()
        ray.init(cluster.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        address = Address("127.0.0.1", faulty.port)
        serve.run(application(spec_argument(spec, address), policy_of_faults), name=NAME, route_prefix="/")
        faulty.wait_until("the ladder runs", faulty.is_whole)
        yield faulty
    finally:
        faulty.thaw()
        faulty.unhook()
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def policy_of_faults(spec: CascadeSpec, profile: ServiceProfile, seed: int, certificate: Certificate | None) -> Policy:
    """The usual policy, whose slow loop fails in every round while there is a hook named `PLANNER`."""
    policy = build_policy(spec, profile, seed, certificate)
    hook = Path(spec.stages[0].model.args["folder"]) / "hooks" / PLANNER
    set_prices, base = policy.set_prices, policy.prices

    def fail_or_set(prices: Any, *rest: Any) -> None:
        if hook.exists() and tuple(prices) != base:  # base prices are what a router without a slow loop goes back to
            raise RuntimeError("the fault says so")
        set_prices(prices, *rest)

    policy.set_prices = fail_or_set  # type: ignore[method-assign]
    return policy
