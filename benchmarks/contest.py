"""Runs the systems one after the other, each in processes of its own, and collects what is measured. Decides nothing of it.

Knows the roster, how a system is measured and where its environment is; not how many rounds there are, nor what is promised.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import orjson
from rich.console import Console

from benchmarks.hotspots import Sampler
from benchmarks.ladders import Bench
from benchmarks.load import LoadError
from benchmarks.measure import Given, Load, Point, check, measure, router_memory
from benchmarks.peers.environment import Missing, interpreter, is_ready
from benchmarks.roster import COMPUTE_FLOOR, ROOT, Contender, Setting, Start
from benchmarks.systems import System, SystemFailed
from benchmarks.targets import OURS

CLOSED = tuple(Load(f"{count} connection{'s' * (count > 1)}", connections=count) for count in (1, 32, 128))
HALF, COMMON = "half load", "common rate"
MANY = Load("32-row requests", connections=32, rows=32)
"""A message is answered when the last of its rows is, so it takes many to keep both stages at work."""
BATCHES = (1, 32, 128)
PROFILED = CLOSED[1]
MEMORY_REQUESTS = 50_000
MEMORY_WARM = 10_000
"""Requests after which the router's buffers and pools have their size."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each system in a round.

    Attributes:
        closed: closed loops.
        common_rate: requests a second of an open loop that is the same for all; None for none.
        half: whether an open loop offers half of the system's own throughput.
        many: whether cascade gets requests of many rows as well.
        warm_s: seconds of load before each window.
        seconds: length of each window.
    """

    closed: tuple[Load, ...]
    common_rate: float | None
    half: bool
    many: bool
    warm_s: float
    seconds: float


class Contest:
    """The systems and what was measured of them.

    Args:
        folder: for logs.
        port: the first of the ports to use, one for each system.
        environments: where the peers' environments are kept.
        console: for progress.

    Attributes:
        points: what was measured, with ladder, system, setting and round.
        starts: seconds to each first answer.
        floors: what the bare loop came to, with ladder and round.
        profiles: where the CPU went, by ladder and system.
        found: each system's answers to all rows, by ladder and system.
        missing: why a system is not, or no longer, measured.
    """

    def __init__(self, folder: Path, port: int, environments: Path, console: Console) -> None:
        self._folder = folder
        self._port = port
        self._environments = environments
        self._console = console
        self.points: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []
        self.floors: list[dict[str, Any]] = []
        self.profiles: list[dict[str, Any]] = []
        self.found: dict[tuple[str, str], list[Given | None]] = {}
        self.missing: dict[str, str] = {}

    def prepare(self, contenders: Sequence[Contender]) -> None:
        """Make the environments that are not there yet."""
        for contender in contenders:
            if contender.peer is None:
                continue
            new = not is_ready(self._environments, contender.peer)
            with self._console.status(f"installing {contender.name} (once, about a minute)" if new else contender.name):
                try:
                    interpreter(self._environments, contender.peer)
                except Missing as error:
                    self._give_up(contender, f"not installed: {error}")

    def round(
        self,
        bench: Bench,
        contender: Contender,
        plan: Plan,
        number: int,
        *,
        setting: Setting | None = None,
        profiled: bool = False,
    ) -> None:
        """All measurements of one system on one ladder, once.

        Args:
            bench: the ladder.
            contender: the system; nothing happens if it is missing.
            plan: what to measure.
            number: of the round.
            setting: how to start it; as on the roster by default.
            profiled: whether one more pass follows, in which its busiest processes are sampled.
        """
        if contender.name in self.missing:
            return
        setting = setting or contender.settings[0]
        requests = bench.messages[contender.form]
        facts = {"ladder": bench.title, "system": contender.name, "setting": setting.name, "round": number}
        stages = [stage.name for stage in bench.ladder.spec.stages]
        with self._or_without(contender), self.running(bench, contender, setting) as system:
            found = check(system, requests, stages)
            if None in found:
                raise SystemFailed(f"{found.count(None)} of {len(found)} rows of {bench.title} got no answer")
            self.found[bench.title, contender.name] = found

            def under(load: Load, requests: Sequence[bytes] = requests, found: Sequence[Given | None] = found) -> Point:
                point = measure(system, requests, found, stages, load, warm_s=plan.warm_s, seconds=plan.seconds, seed=number)
                self.points.append(facts | asdict(point))
                self._say(bench, contender, point)
                return point

            throughput = max(under(load).throughput for load in plan.closed)
            if contender.answers and plan.half:
                under(Load(HALF, rate=throughput / 2))
            if contender.answers and plan.common_rate is not None:
                under(Load(COMMON, rate=plan.common_rate))
            if plan.many and contender.name == OURS:
                many = bench.messages["many"]
                under(MANY, many, self._expected_of_many(found, check(system, many, stages)))
            if profiled:
                sampler = Sampler(system, self._folder / "stacks", plan.seconds)
                window = {"warm_s": plan.warm_s, "seconds": plan.seconds + sampler.overhead_s}
                measure(system, requests, found, stages, PROFILED, **window, at_edge=sampler.at_edge)
                which = {"ladder": bench.title, "system": contender.name, "load": PROFILED.name}
                self.profiles.append(which | asdict(sampler.profile()))

    def floor(self, bench: Bench, plan: Plan, number: int) -> None:
        """The bare loop over batches."""
        command = [sys.executable, "-m", "benchmarks.peers.compute_floor", str(bench.spec), "--rows", str(len(bench.labels))]
        command += ["--warm-s", str(plan.warm_s), "--seconds", str(plan.seconds), "--batches", *map(str, BATCHES)]
        environ = os.environ | _environ(Start(command, {}))
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemFailed(f"the bare loop failed: {done.stderr[-2000:]}")
        document = orjson.loads(done.stdout)
        names = [stage.name for stage in bench.ladder.spec.stages]
        answers = zip(document["labels"], document["stages"], strict=True)
        self.found[bench.title, COMPUTE_FLOOR] = [Given((label,), names[stage]) for label, stage in answers]
        for point in document["points"]:
            self.floors.append({"ladder": bench.title, "round": number, **point})
            self._console.print(
                f"{bench.title}, bare loop, batches of {point['batch']}: {point['throughput']:,.0f} rows/s on "
                f"{point['cores']:.2f} cores"
            )

    def memory(self, bench: Bench, contender: Contender) -> dict[str, Any]:
        """Resident memory of the router of cascade over many requests, and what each request adds."""
        every = MEMORY_WARM // 2
        with self.running(bench, contender, contender.settings[0]) as system:
            samples = router_memory(system, bench.messages[contender.form], MEMORY_REQUESTS, every)
        settled = [sample for sample in samples if sample[0] >= MEMORY_WARM]
        slope = float(np.polyfit([sent for sent, _ in settled], [size for _, size in settled], 1)[0])
        self._console.print(f"router memory: {[round(size / 2**20, 1) for _, size in samples]} MiB, each {every:,} requests")
        return {"requests": MEMORY_REQUESTS, "bytes_a_request": slope, "samples": samples}

    @contextmanager
    def running(self, bench: Bench, contender: Contender, setting: Setting) -> Iterator[System]:
        """One system, started, answering and settled."""
        python = sys.executable
        if contender.peer is not None:
            python = interpreter(self._environments, contender.peer)
        self._port += 1  # the last one's may still be held by connections that are closing
        start = contender.start(python, bench, self._port, setting)
        log = self._folder / f"{contender.name}.log"
        system = System(start.command, self._port, log, _environ(start))
        try:
            seconds = system.wait_for_answer(bench.messages[contender.form][0])
            self.starts.append({"ladder": bench.title, "system": contender.name, "seconds": seconds})
            self._console.print(f"{bench.title}, {contender.name}: first answer after {seconds:.1f} s")
            sleep(contender.settle_s)
            yield system
        finally:
            if not system.stop():
                self._console.print(f"[red]{contender.name} did not stop by itself; its processes were killed[/red]")

    def _expected_of_many(self, rows: Sequence[Given | None], many: Sequence[Given | None]) -> list[Given | None]:
        """What requests of many rows must be answered: the labels of their rows; of the rung, what the check came to."""
        expected: list[Given | None] = []
        for number, answer in enumerate(many):
            own = rows[number * MANY.rows : (number + 1) * MANY.rows]
            labels = tuple(row.labels[0] for row in own if row is not None)
            if answer is None or answer.labels != labels:
                raise SystemFailed("a request of many rows was not answered as its rows are one by one")
            expected.append(answer)
        return expected

    @contextmanager
    def _or_without(self, contender: Contender) -> Iterator[None]:
        """A peer that fails is left out from then on; without cascade there is nothing to compare."""
        try:
            yield
        except (SystemFailed, LoadError, Missing) as error:
            if contender.name == OURS:
                raise
            self._give_up(contender, str(error))

    def _give_up(self, contender: Contender, reason: str) -> None:
        self.missing[contender.name] = reason
        self._console.print(f"[red]{contender.name} is left out: {reason}[/red]")

    def _say(self, bench: Bench, contender: Contender, point: Point) -> None:
        self._console.print(
            f"{bench.title}, {contender.name}, {point.load}: {point.throughput:,.0f} requests/s, p50 {point.p50_ms:.2f} ms, "
            f"p99 {point.p99_ms:.2f} ms, {point.cpu_ms:.3f} CPU-ms a request; client {point.client_share:.2f} and others "
            f"{point.other_share:.2f} of a core{f'; {point.wrong} wrong' if point.wrong else ''}"
        )


def _environ(start: Start) -> dict[str, str]:
    """The environment of a process that finds this project in whichever Python it runs."""
    path = os.environ.get("PYTHONPATH")
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep + path if path else ''}", **start.environ}
