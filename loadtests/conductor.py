"""One run over one or several processes: who sends what, when all begin, and where the results meet. Sends nothing itself.

Every process derives the same plan from the same options. The master gives each worker its share, says "go" at one instant
when all are ready, and joins what they send back; without workers the same object does both halves. Nothing of this depends
on Locust's reports, which come every few seconds and may be lost when a test ends.
"""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from gevent.event import Event
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from cascade.errors import CascadeError
from loadtests.client_side import Reading
from loadtests.generator import OpenLoop, Share
from loadtests.plan import Plan, read_plan
from loadtests.progress import Progress
from loadtests.record import ANSWERED, Recording, merge

logger = logging.getLogger("loadtests")

Question = tuple[str, bytes, dict[str, str]]
"""Path, body, headers."""
Ask = Callable[[Question, float, int, Sequence[str]], Reading]
"""(question, scheduled instant, attempt, names of the stages) to what came back."""

SHARE, READY, GO, SHARD, FAILED = (f"cascade_{word}" for word in ("share", "ready", "go", "shard", "failed"))
"""Messages between the processes."""
HEAD_START_S = 0.3
"""From "go" to the beginning: long enough for the word to reach every process."""


class State(Enum):
    """Where a run is."""

    IDLE = "no run was started"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Conductor:
    """The part of a load test that one process plays: alone, as the master, or as a worker.

    Attributes:
        state: where the latest run is; of no meaning in a worker.
        recording: of the latest run, if it is done.
        fault: why the latest run failed.
    """

    def __init__(self) -> None:
        self.state = State.IDLE
        self.recording: Recording | None = None
        self.fault = ""
        self._environment: Environment | None = None
        self._plan: Plan | None = None
        self._progress: Progress | None = None
        self._workers: list[str] = []
        self._ready: set[str] = set()
        self._shards: dict[str, Recording] = {}
        self._share = Share()
        self._go = Event()
        self._zero_unix_s = 0.0

    def join(self, environment: Environment) -> None:
        """Learn which part to play."""
        self._environment = environment
        runner = environment.runner
        if isinstance(runner, MasterRunner):
            runner.register_message(READY, self._on_ready)
            runner.register_message(SHARD, self._on_shard)
            runner.register_message(FAILED, self._on_failed)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(SHARE, self._on_share)
            runner.register_message(GO, self._on_go)

    # -- alone, or as the master ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """A run is about to start; does nothing while one is on."""
        if self.state is not State.RUNNING:
            self.state = State.IDLE

    def tick(self) -> int | None:
        """Called about once a second: how many users there should be, None when the run is over."""
        if self.state is State.IDLE:
            self._begin()
        elif self.state is State.RUNNING:
            runner = self._environment.runner
            if isinstance(runner, MasterRunner) and runner.worker_count < len(self._workers):
                self._fail("a generator process was lost")
            elif self._progress is not None:
                self._progress.update(runner.stats.total)
        return max(len(self._workers), 1) if self.state is State.RUNNING else None

    def stopped(self) -> None:
        """The test has ended, for whatever reason."""
        if self.state is State.RUNNING:
            self._fail("it was stopped before its end")

    def _begin(self) -> None:
        environment = self._environment
        self.recording, self.fault = None, ""
        self._ready, self._shards = set(), {}
        try:
            self._plan = read_plan(environment.parsed_options, environment.host)
        except CascadeError as error:
            self._fail(error.detail)
            return
        self.state = State.RUNNING
        runner = environment.runner
        if isinstance(runner, MasterRunner):
            self._workers = [client.id for client in (*runner.clients.ready, *runner.clients.running)]
            for place, worker in enumerate(self._workers):
                runner.send_message(SHARE, {"place": place, "of": len(self._workers)}, worker)
        run = self._plan.run
        logger.info(
            "Scenario %s: %d requests in %.1f s, %s", run.scenario.name, len(run.row), run.arrivals.seconds, run.workload
        )
        options = environment.parsed_options
        self._progress = Progress(run) if options.headless and options.only_summary else None

    def _on_ready(self, msg: Message, **_: Any) -> None:
        self._ready.add(msg.node_id)
        if self.state is State.RUNNING and self._ready.issuperset(self._workers):
            for worker in self._workers:
                self._environment.runner.send_message(GO, {"zero_unix_s": time.time() + HEAD_START_S}, worker)

    def _on_shard(self, msg: Message, **_: Any) -> None:
        self._collect(msg.node_id, Recording.from_bytes(msg.data["recording"]))

    def _on_failed(self, msg: Message, **_: Any) -> None:
        self._fail(msg.data["fault"])

    def _collect(self, sender: str, shard: Recording) -> None:
        if self.state is not State.RUNNING:
            return
        self._shards[sender] = shard
        if len(self._shards) < max(len(self._workers), 1):
            return
        self._close_progress()
        try:
            self.recording = self._finish(list(self._shards.values()))
        except CascadeError as error:
            self._fail(error.detail)
            return
        self.state = State.DONE
        status = self.recording.status
        # 429 is how some servers turn away what they cannot serve, all else below 500 is the client's own mistake.
        if ((status < 500) & (status != ANSWERED) & (status != 429)).all():
            self._fail("not one request got an answer: is there a server, and of this ladder?")

    def _finish(self, shards: list[Recording]) -> Recording:
        merged = merge(shards)
        generators = [shard.meta["generator"] for shard in shards]
        faults: dict[str, int] = {}
        for generator in generators:
            for fault, count in generator["faults"].items():
                faults[fault] = faults.get(fault, 0) + count
        lag_p99_s = float(np.quantile(merged.lag_s, 0.99))
        generator = {
            "processes": len(shards),
            "gc": generators[0]["gc"],
            "cpu_share": [share for generator in generators for share in generator["cpu_share"]],
            "lag_p99_s": lag_p99_s,
            "lag_limit_s": self._plan.lag_limit_s,
            "valid": lag_p99_s <= self._plan.lag_limit_s,
            "faults": faults,
        }
        recording = replace(merged, meta={**self._plan.meta, "generator": generator})
        path = self._environment.parsed_options.record
        if path:
            recording.save(Path(path))
            logger.info("Recording written to %s", path)
        return recording

    def _fail(self, fault: str) -> None:
        self._close_progress()
        self.state, self.fault = State.FAILED, fault
        logger.error("The load test failed: %s", fault)

    def _close_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    # -- alone, or as a worker -----------------------------------------------------------------------------------------

    def _on_share(self, msg: Message, **_: Any) -> None:
        self._share = Share(msg.data["place"], msg.data["of"])
        self._go.clear()

    def _on_go(self, msg: Message, **_: Any) -> None:
        self._zero_unix_s = msg.data["zero_unix_s"]
        self._go.set()

    def perform(self, host: str, ask: Ask) -> None:
        """Send this process's share of the run, and hand in what happened; returns when that is done.

        Args:
            host: URL of the server.
            ask: sends one request.
        """
        runner = self._environment.runner
        worker = isinstance(runner, WorkerRunner)
        try:
            shard = self._send(host, ask)
        except Exception as error:
            # Locust would log it and start over.
            logger.error("%s", traceback.format_exc())
            fault = f"{type(error).__name__}: {error}"
            if worker:
                runner.send_message(FAILED, {"fault": fault})
            else:
                self._fail(fault)
            return
        if worker:
            runner.send_message(SHARD, {"recording": shard.to_bytes()})
        else:
            self._collect("alone", shard)

    def _send(self, host: str, ask: Ask) -> Recording:
        runner = self._environment.runner
        worker = isinstance(runner, WorkerRunner)
        plan = self._plan or read_plan(self._environment.parsed_options, host)
        run, sheet = plan.run, plan.sheet
        questions = plan.questions(self._share.indices(len(run.row)).tolist())
        rows: list[int] = run.row.tolist()
        askers: list[int] = run.asker.tolist()
        path = sheet.path

        def ask_one(request: int, scheduled: float, attempt: int) -> Reading:
            body, headers = questions[rows[request], askers[request]]
            return ask((path, body, headers), scheduled, attempt, sheet.stages)

        loop = OpenLoop(run, sheet, self._share, ask_one)
        if worker:
            runner.send_message(READY)
            self._go.wait()
            starts_in_s = self._zero_unix_s - time.time()
        else:
            starts_in_s = HEAD_START_S
        loop.go(time.perf_counter() + starts_in_s)
        return loop.recording(plan.meta)
