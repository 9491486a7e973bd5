"""What a row costs the router's process, by rows a message: everything between ASGI and the stages, nothing of the network.

    python benchmarks/router_cpu.py [--against TREE] [--rows 1 32] [--rounds 5]

One process drives the ingress as its server would: closed loops of ASGI messages on the two cheapest rungs, a fifth of the
rows escalating. Stage 0 runs inside the router as shipped; stage 1 answers after some turns of the event loop at no cost. So
CPU time is the router's own, and does not depend on what else the machine does, but for its speed. With ``--against``, the
same loops run alternately on another working tree, whose package is measured with this file's driver.

On a machine that is busy with other things CPU time differs by a tenth from one run to the next of the same code. With
``--opcodes`` the instructions of the Python interpreter are counted instead, which hardly differ; time spent in C is not
in them. That is slow, so take few rows: ``--opcodes --rounds 1 --total-rows 12000``.
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SPEC = Path("deployments") / "fashion" / "cascade.yaml"
IN_FLIGHT_ROWS = 1024
"""Rows of all messages that are under way together: 32 connections of 32 rows."""
MOST_CONNECTIONS = 128
TURNS = 12
"""Turns of the event loop that the second stage takes: a few batches of the first, as in the served system."""
WARM_SHARE = 0.25


class Remote:
    """The second stage: logits made beforehand, after some turns of the loop."""

    def __init__(self, classes: int) -> None:
        self._logits = np.random.default_rng(0).normal(size=(4096, classes)).astype(np.float32)

    async def run(self, inputs: Any) -> Any:
        """Answer a batch."""
        from cascade.models.stage import StageResult

        for _ in range(TURNS):
            await asyncio.sleep(0)
        return StageResult(self._logits[: len(next(iter(inputs.values())))], 1e-4)


class Opcodes:
    """Counts instructions of the Python interpreter, in functions that are called or go on while it is enabled."""

    def __init__(self) -> None:
        self.count = 0

    def enable(self) -> None:
        """Begin."""
        sys.settrace(self._called)

    def disable(self) -> None:
        """End."""
        sys.settrace(None)

    def _called(self, frame: Any, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._ran

    def _ran(self, _frame: Any, event: str, _argument: Any) -> Any:
        self.count += event == "opcode"
        return self._ran


def asgi(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """An HTTP message as ASGI has it: the scope, and the body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    method, target, _ = first.decode().split(" ")
    headers = [tuple(part.strip() for part in field.split(b":", 1)) for field in fields]
    scope = {"type": "http", "method": method, "path": target, "raw_path": target.encode(), "headers": headers}
    return scope, body


async def measure(
    bench: Any, form: str, rows: int, messages: int, profile: bool, opcodes: Opcodes | None
) -> dict[str, float]:
    """CPU of some messages, closed loop."""
    from cascade.assembly import Artefacts
    from cascade.serving.app import build_router
    from cascade.serving.ingress import Ingress
    from cascade.serving.placing import place_here
    from cascade.serving.service import Service

    ladder = bench.ladder
    artefacts = Artefacts.read(ladder)
    stages = [*place_here(ladder, 0, artefacts.profile), Remote(len(ladder.spec.labels))]
    ingress = Ingress(service := Service(ladder, lambda: build_router(ladder, artefacts, stages)))
    service.start()
    requests = [asgi(raw) for raw in bench.messages[form]]
    statuses: dict[int, int] = {}
    sent = 0

    async def connection(until: int) -> None:
        nonlocal sent
        while sent < until:
            scope, body = requests[sent % len(requests)]
            sent += 1

            async def receive(body: bytes = body) -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses[message["status"]] = statuses.get(message["status"], 0) + 1

            await ingress(dict(scope), receive, send)

    connections = max(1, min(MOST_CONNECTIONS, IN_FLIGHT_ROWS // rows))
    warm = int(WARM_SHARE * messages)
    await asyncio.gather(*(connection(warm) for _ in range(connections)))
    profiler = cProfile.Profile()
    stage = service.router.policy.counts.stages
    before = sent, stage[0].batches, stage[1].batches, stage[1].rows
    started = time.process_time()
    if profile:
        profiler.enable()
    if opcodes is not None:
        opcodes.enable()
    await asyncio.gather(*(connection(sent + messages) for _ in range(connections)))
    profiler.disable()
    if opcodes is not None:
        opcodes.disable()
    cpu_s = time.process_time() - started
    done = sent - before[0]
    assert set(statuses) == {200}, statuses
    calls, escalated = stage[1].batches - before[2], stage[1].rows - before[3]
    await service.close()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(45)
    return {
        "cost_a_row": (1e6 * cpu_s if opcodes is None else opcodes.count) / (done * rows),
        "rows_a_batch": done * rows / (stage[0].batches - before[1]),
        "rows_a_call": escalated / max(calls, 1),
        "escalated": escalated / (done * rows),
    }


def child(rows: Sequence[int], total_rows: int, profile: bool, opcodes: bool) -> None:
    """Measure this tree once; prints JSON."""
    import uvloop

    from benchmarks.ladders import derive

    with tempfile.TemporaryDirectory(prefix="cascade-router-cpu-") as folder:
        bench = derive(Path.cwd() / SPEC, Path(folder), 2, 1024, "two cheapest rungs")
        found = {}
        for count in rows:
            form = "protocol" if count == 1 else f"many {count}"
            if count > 1:
                bench.messages[form] = together(bench.messages["protocol"], count, bench.ladder)
            messages = total_rows // count if count > 1 else total_rows // 8
            found[count] = uvloop.run(measure(bench, form, count, messages, profile, Opcodes() if opcodes else None))
    print(json.dumps(found))


def together(singles: Sequence[bytes], rows: int, ladder: Any) -> list[bytes]:
    """Messages of so many rows, of the same images."""
    from cascade.wire.client import encode_request

    tensor = ladder.spec.inputs[0].tensor
    size = int(np.prod(tensor.shape))
    images = np.stack([np.frombuffer(raw[-size:], np.uint8).reshape(tensor.shape) for raw in singles])
    found = []
    for first in range(0, len(images) - rows + 1, rows):
        body, headers = encode_request([(tensor, images[first : first + rows])], outputs=["label"])
        fields = {**headers, "content-length": str(len(body))}
        head = f"POST /v2/models/{ladder.spec.name}/infer HTTP/1.1\r\n"
        found.append((head + "".join(f"{name}: {value}\r\n" for name, value in fields.items())).encode() + b"\r\n" + body)
    return found


def run(tree: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One measurement of a tree, in a process of its own."""
    command = [sys.executable, __file__, "--child", "--total-rows", str(arguments.total_rows)]
    command += ["--rows", *map(str, arguments.rows), *(["--profile"] if arguments.profile else [])]
    command += ["--opcodes"] if arguments.opcodes else []
    environ = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, alternately if there is something to compare with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another working tree to measure beside this one")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="rows a message")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each tree; the median counts")
    parser.add_argument("--total-rows", type=int, default=100_000, help="rows of each measurement; an eighth with one row")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    parser.add_argument("--opcodes", action="store_true", help="count the interpreter's instructions instead of CPU time")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.rows, arguments.total_rows, arguments.profile, arguments.opcodes)
        return
    trees = {"this tree": ROOT} | ({"other tree": arguments.against.resolve()} if arguments.against else {})
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
    for number in range(arguments.rounds):
        for name, tree in trees.items() if number % 2 == 0 else reversed(trees.items()):
            found[name].append(run(tree, arguments))
            print(f"round {number + 1}/{arguments.rounds}, {name}", file=sys.stderr)
    cost = "opcodes" if arguments.opcodes else "CPU µs"
    print(f"| rows a message | tree | {cost} a row (lowest–highest) | rows a batch | rows a call of stage 1 | escalated |")
    print("|--:|:--|--:|--:|--:|--:|")
    for rows in map(str, arguments.rows):
        for name, each in found.items():
            costs = [one[rows]["cost_a_row"] for one in each]
            shape = [median(one[rows][key] for one in each) for key in ("rows_a_batch", "rows_a_call")]
            share = median(one[rows]["escalated"] for one in each)
            print(
                f"| {rows} | {name} | {median(costs):.1f} ({min(costs):.1f}–{max(costs):.1f}) | {shape[0]:.1f} | "
                f"{shape[1]:.1f} | {share:.0%} |"
            )
        if arguments.against:
            mine, other = ([one[rows]["cost_a_row"] for one in found[name]] for name in trees)
            ratios = [b / a for a, b in zip(mine, other, strict=True)]
            print(f"\n{rows} rows: the other tree takes x{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})\n")


if __name__ == "__main__":
    main()
