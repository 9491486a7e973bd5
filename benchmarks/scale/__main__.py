"""What grows with replicas and routers, and what breaks first: measures it and writes its section of docs/scale.md.

    python -m benchmarks.scale                        # all of it, about an hour on one core
    python -m benchmarks.scale --part cost --folder recordings --before v0.1.0

The parts may be run one by one; what they find is gathered in the file of ``--out``, and what that holds already is not
run again. *record* simulates and takes down events, *cost* replays them and is best run alone on the machine, *quality*
simulates several routers, *solve* times the slow loop and the plan.
"""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.scale.cost import ROOT, Case, kept, record, replayed, revision
from benchmarks.scale.quality import Run, compare_all, planned_runs
from benchmarks.scale.settings import LOADS, REPLICAS, ROUTERS
from benchmarks.scale.solve import CLASSES, STAGES, solve
from benchmarks.scale.tables import section
from benchmarks.tables import replace_section

BEGIN, END = "<!-- benchmarks/scale -->", "<!-- end -->"
PAGE = ROOT / "docs" / "scale.md"
MEASURED_ROWS, MEASURED_ROWS_OF_MANY = 20_000, 4_000
"""Rows of one router in the part of a recording that is measured; fewer of one among many, since all are simulated."""
ROUNDS, LIMIT_S = 5, 60.0
SOLVE_ROUNDS = 5


class Part(StrEnum):
    """A part of the benchmark."""

    RECORD = "record"
    COST = "cost"
    QUALITY = "quality"
    SOLVE = "solve"


def cost_cases() -> list[Case]:
    """The settings that are recorded: all loads with one router, and many routers before many replicas."""
    alone = [Case(replicas, 1, load) for load in LOADS for replicas in REPLICAS]
    return alone + [Case(REPLICAS[-1], routers, LOADS[-1]) for routers in (8, ROUTERS[-1])]


def recording(case: Case, folder: Path) -> Path:
    """The file of a recording, which is made if there is none."""
    path = folder / f"{case.replicas}-{case.routers}-{case.load:g}.pickle"
    if not path.exists():
        rows = MEASURED_ROWS if case.routers == 1 else MEASURED_ROWS_OF_MANY
        kept(record(case, rows), path)
    return path


def costs(known: list[dict[str, Any]], folder: Path, before: str | None, console: Console) -> Iterator[dict[str, Any]]:
    """Figures of the recordings that are not known yet, and those of the policy at a revision on the same events.

    Args:
        known: what was found before.
        folder: of the recordings.
        before: the revision, None for none.
        console: for progress.
    """
    done = {tuple(entry[field] for field in Case._fields) for entry in known}
    cases = [case for case in cost_cases() if case not in done]
    with revision(before) if before else nullcontext(None) as old:
        for case in track(cases, "replaying", console=console):
            path = recording(case, folder)
            found = replayed(path, ROUNDS, LIMIT_S)
            entry: dict[str, Any] = {**case._asdict(), **found._asdict()}
            if old is not None and case.replicas in (REPLICAS[0], 64, REPLICAS[-1]) and case.routers == 1:
                former = replayed(path, 1 if case.replicas > 64 else 3, LIMIT_S, old)
                if former.decisions != found.decisions:
                    raise RuntimeError(f"{case}: the policy of {before} decided otherwise")
                entry["before_cpu_s"] = former.cpu_s
            yield entry


def qualities(known: list[dict[str, Any]], processes: int, console: Console) -> Iterator[dict[str, Any]]:
    """What several routers lose, of the runs that are not known yet."""
    done = {tuple(run[field] for field in Run._fields) for run in known}
    groups = [runs for runs in planned_runs() if not done.issuperset(runs)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        results = pool.map(compare_all, groups)
        for runs in track(groups, "simulating", console=console):
            for run, loss in zip(runs, next(results), strict=True):
                yield {**run._asdict(), **loss._asdict()}


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def main(
    part: Annotated[
        list[Part] | None, typer.Option(help="what to run, several times if wanted; all of it by default")
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file with everything that was found")] = ROOT / "runs" / "scale.json",
    folder: Annotated[Path, typer.Option(help="where recordings are kept")] = ROOT / "runs" / "scale",
    before: Annotated[str | None, typer.Option(help="revision whose policy is replayed beside this one")] = None,
    processes: Annotated[int, typer.Option(min=1, help="quality: simulations at a time")] = 1,
    page: Annotated[Path, typer.Option(help="Markdown file whose section is written")] = PAGE,
) -> None:
    """Measure what grows with replicas and routers."""
    console = Console()
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for each in part or Part:
        if each is Part.RECORD:
            for case in track(cost_cases(), "recording", console=console):
                recording(case, folder)
            continue
        entries: Iterable[dict[str, Any]]
        if each is Part.COST:
            if document.get("before") != before:
                document |= {"cost": [], "before": before}
            entries = costs(document.setdefault("cost", []), folder, before, console)
        elif each is Part.QUALITY:
            entries = qualities(document.setdefault("quality", []), processes, console)
        else:
            document["solve"] = []
            settings = [(stages, classes) for stages in STAGES for classes in CLASSES] * SOLVE_ROUNDS
            entries = (solve(*setting)._asdict() for setting in track(settings, "solving", console=console))
        for entry in entries:  # written one by one: a long run that was cut off goes on where it was
            document[each.value].append(entry)
            document |= {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if "machine" not in document:
        return
    text = section(document)
    console.print(text, markup=False, highlight=False)
    replace_section(page, BEGIN, END, text)


if __name__ == "__main__":
    typer.run(main)
