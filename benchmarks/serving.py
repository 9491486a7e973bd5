"""The shipped server beside its peers: one command, one machine, the same models, rows, thresholds and answers.

    python -m benchmarks.serving

Measures throughput, latency and CPU of every system of `roster`, and the floors of compute and of HTTP, on the two cheapest
rungs (where serving is compared, not arithmetic) and on the whole ladder; samples what limits each; prints the tables, and
writes them into docs/results.md.
"""

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from rich.console import Console

from benchmarks.contest import CLOSED, Contest, Plan
from benchmarks.ladders import Bench, derive
from benchmarks.measure import Given, accuracy
from benchmarks.peers.environment import default_folder
from benchmarks.roster import COMPUTE_FLOOR, ROOT, ROSTER, Contender
from benchmarks.tables import show, show_settings, write_section
from benchmarks.targets import OURS, targets

SHIPPED = ROOT / "deployments" / "fashion" / "cascade.yaml"
RESULTS = ROOT / "docs" / "results.md"
WHOLE_ROUNDS = 2
"""Rounds on the whole ladder, at most: it compares arithmetic more than serving."""
COMMON_RATE = 60.0
"""Requests a second that every system sustains on the two cheapest rungs, the hand-written one with Serve's defaults too."""
NAMES = (*(contender.name for contender in ROSTER), COMPUTE_FLOOR)

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
result_console = Console(width=None if sys.stdout.isatty() else 160)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round, for trying it out; docs are left alone.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, every system runs.")] = 3,
    only: Annotated[str, typer.Option(help=f"Systems, comma-separated: {', '.join(NAMES)}.", show_default="all")] = "",
    memory: Annotated[bool, typer.Option("--memory", help="Also the router's memory over 50,000 requests.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for everything that was measured.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Only compare the settings of the systems.")] = False,
    docs: Annotated[
        Path, typer.Option(help="Markdown file whose section is replaced.", show_default="docs/results.md")
    ] = RESULTS,
    spec: Annotated[
        Path, typer.Option(help="Ladder to derive from; its input is called image.", show_default="the shipped one")
    ] = SHIPPED,
    port: Annotated[int, typer.Option(help="First of the free ports to use.")] = 8200,
    peers: Annotated[
        Path | None, typer.Option(help="Folder of the peers' environments.", show_default="in the user's cache")
    ] = None,
) -> None:
    """Measure the server beside its peers and the floors."""
    # Ending it by SIGTERM must stop the server under measurement as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = chosen(only)
    contenders = [contender for contender in ROSTER if contender.name in names]
    rounds = 1 if quick else rounds
    warm_s, seconds = (0.5, 2.0) if quick else (1.0, 3.5)
    cheap = Plan(CLOSED, COMMON_RATE, half=True, many=True, warm_s=warm_s, seconds=seconds)
    whole = Plan(CLOSED[1:2], None, half=True, many=False, warm_s=warm_s, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="cascade-benchmark-") as name:
        folder = Path(name)
        benches = []
        for title, rungs in (("two cheapest rungs", 2), ("whole ladder", None)):
            (folder / title).mkdir()
            benches.append(derive(spec.resolve(), folder / title, rungs, 320 if quick else 1024, title))
        contest = Contest(folder, port, peers or default_folder(), console)
        contest.prepare(contenders)
        if tune:
            tuned(contest, benches[0], contenders, cheap, rounds)
            if out is not None:
                out.write_bytes(orjson.dumps(contest.points, option=orjson.OPT_INDENT_2))
            show_settings(contest.points, result_console)
            return
        for number in range(rounds):
            bare_loop = COMPUTE_FLOOR in names
            play(contest, benches[0], contenders, cheap, number, bare_loop, profiled=number == rounds - 1)
            if number < WHOLE_ROUNDS:
                entered = [contender for contender in contenders if contender.whole_ladder]
                play(contest, benches[1], entered, whole, number, bare_loop)
        ours = next((contender for contender in contenders if contender.name == OURS), None)
        kept = contest.memory(benches[0], ours) if memory and ours is not None else None
    arguments = ["--quick"] if quick else ["--rounds", str(rounds)]
    arguments += [*(["--only", only] if only else []), *(["--memory"] if memory else [])]
    document = {
        "command": " ".join(["python -m benchmarks.serving", *arguments]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "rounds": rounds,
        "whole_rounds": min(rounds, WHOLE_ROUNDS),
        "seconds": seconds,
        "common_rate": COMMON_RATE,
        "systems": [
            {"name": contender.name, "what": contender.what, "setting": contender.settings[0].name}
            for contender in contenders
        ],
        "missing": contest.missing,
        "ladders": [facts(bench, contest.found, contenders) for bench in benches],
        "starts": contest.starts,
        "points": contest.points,
        "floors": contest.floors,
        "profiles": contest.profiles,
        "memory": kept,
    }
    document["targets"] = [asdict(target) for target in targets(document)]
    if out is not None:
        out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    if not quick:
        write_section(document, docs)
    show(document, result_console)


def chosen(only: str) -> set[str]:
    """The systems that were asked for, all if none was.

    Raises:
        typer.BadParameter: one of them does not exist.
    """
    names = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := names - set(NAMES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}", param_hint="--only")
    return names or set(NAMES)


def play(
    contest: Contest,
    bench: Bench,
    contenders: Sequence[Contender],
    plan: Plan,
    number: int,
    bare_loop: bool,
    profiled: bool = False,
) -> None:
    """One round on one ladder, every other time from the last system to the first, so that a slow drift favours nobody."""
    if bare_loop:
        contest.floor(bench, plan, number)
    for contender in contenders if number % 2 == 0 else reversed(contenders):
        contest.round(bench, contender, plan, number, profiled=profiled)


def tuned(contest: Contest, bench: Bench, contenders: Sequence[Contender], plan: Plan, rounds: int) -> None:
    """Closed loops with every setting of every system."""
    closed = Plan(plan.closed, None, half=False, many=False, warm_s=plan.warm_s, seconds=plan.seconds)
    for number in range(rounds):
        for contender in contenders:
            for setting in contender.settings:
                contest.round(bench, contender, closed, number, setting=setting)
                contest.missing.pop(contender.name, None)  # a setting that fails says nothing of the next one


def facts(bench: Bench, found: dict[tuple[str, str], list[Given | None]], contenders: Sequence[Contender]) -> dict[str, Any]:
    """What a reader must know of a ladder to trust its numbers: the bare loop's answers, and who gave the same."""
    spec = bench.ladder.spec
    names = [COMPUTE_FLOOR, *(contender.name for contender in contenders if contender.answers)]
    answers = {name: found[bench.title, name] for name in names if (bench.title, name) in found}
    truth = next(iter(answers.values()), [])
    escalated = [answer is not None and answer.stage != spec.stages[0].name for answer in truth]
    return {
        "title": bench.title,
        "stages": [stage.name for stage in spec.stages],
        "base_prices": spec.base_prices,
        "rows": len(truth),
        "accuracy": accuracy(truth, bench.labels) if truth else None,
        "escalated": float(np.mean(escalated)) if truth else None,
        "same_answers": {
            name: sum(theirs == mine for theirs, mine in zip(own, truth, strict=True)) for name, own in answers.items()
        },
    }


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = {package: version(package) for package in ("ray", "torch", "numpy")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    typer.run(main)
