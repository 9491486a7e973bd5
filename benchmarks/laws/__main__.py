"""python -m benchmarks.laws: how far laws of load control stay from the optimum on a synthetic ladder."""

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks.laws import tune
from benchmarks.laws.ablations import ablations
from benchmarks.laws.compare import MOST_PROCESSES, compare
from benchmarks.laws.laws import BY_NAME as LAW
from benchmarks.laws.laws import LAWS
from benchmarks.laws.scenarios import BY_NAME as SCENARIO
from benchmarks.laws.tables import Grid, by_scenario, gaps_markdown, markdown, terminal

HERE = Path(__file__).parent
QUICK_SCENARIOS = ("x4", "x10", "step")
TARGET = 0.5
"""Points that our mean gap may be, at most."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, show, keep. Returns 1 if our mean gap is above the target over all scenarios."""
    chosen = _parse(arguments)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:

        def follow(title: str) -> Any:
            task = bar.add_task(title, total=1.0)
            return lambda share: bar.update(task, completed=share)

        if chosen.tune:
            scenarios = [SCENARIO[name] for name in tune.SCENARIOS]
            Console().print(terminal(Grid(compare(scenarios, tune.variants(), tune.SEEDS, progress=follow("tuning")))))
            return 0
        laws = [LAW[name] for name in chosen.laws]
        scenarios = [SCENARIO[name] for name in chosen.scenarios]
        seeds = range(chosen.seeds)
        outcomes = compare(scenarios, laws, seeds, processes=chosen.processes, progress=follow("laws"))
        document = {"command": chosen.command, "machine": _machine(), "outcomes": [asdict(outcome) for outcome in outcomes]}
        extra = ""
        if chosen.whole:
            document["ablations"], extra = ablations(seeds, follow("ablations"))
    grid = Grid(outcomes)
    Console().print(by_scenario(grid), terminal(grid))
    if chosen.json or chosen.whole:
        (chosen.json or HERE / "results.json").write_bytes(_lines(document))
    if chosen.whole:
        (HERE / "results.md").write_text(_page(chosen.command, len(seeds), grid, extra))
    return int(chosen.whole and any(grid.mean(name).mean > TARGET for name in ("ours", "ours+plan")))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laws", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="runs of each, with seeds 0 to N - 1")
    parser.add_argument("--scenarios", type=_names(SCENARIO), metavar="A,B", help=f"of {', '.join(SCENARIO)}")
    parser.add_argument("--laws", type=_names(LAW), metavar="A,B", help=f"of {', '.join(LAW)}")
    parser.add_argument("--quick", action="store_true", help=f"one seed, {', '.join(QUICK_SCENARIOS)}; keeps nothing")
    parser.add_argument("--tune", action="store_true", help="try the grids that parameters were chosen from; keeps nothing")
    parser.add_argument("--processes", type=int, choices=range(1, MOST_PROCESSES + 1), default=MOST_PROCESSES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the outcomes go")
    chosen = parser.parse_args(arguments)
    chosen.command = " ".join(["python -m benchmarks.laws", *(sys.argv[1:] if arguments is None else arguments)])
    # Only a run of everything is kept beside the code.
    chosen.whole = not (chosen.quick or chosen.scenarios or chosen.laws)
    if chosen.quick:
        chosen.seeds = 1
    chosen.scenarios = chosen.scenarios or (QUICK_SCENARIOS if chosen.quick else tuple(SCENARIO))
    chosen.laws = chosen.laws or tuple(LAW)
    if chosen.seeds < 1:
        parser.error("--seeds must be at least 1")
    return chosen


def _names(known: dict[str, Any]) -> Any:
    def names(text: str) -> tuple[str, ...]:
        wanted = tuple(text.split(","))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return wanted

    return names


def _lines(document: dict[str, Any]) -> bytes:
    """JSON with an outcome a line, so that a new run can be compared with the last one line by line."""
    rest = orjson.dumps(
        {key: value for key, value in document.items() if key != "outcomes"}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    outcomes = b",\n".join(orjson.dumps(outcome) for outcome in document["outcomes"])
    return rest[:-1] + b',"outcomes":[\n' + outcomes + b"\n]}\n"


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"


def _page(command: str, seeds: int, grid: Grid, extra: str) -> str:
    laws = markdown(
        ["law", "what it is", "mean gap", "worst", "in", "answered on time", "mean latency"],
        [
            [
                law.name,
                law.title,
                str(grid.mean(law.name)),
                str(grid.worst(law.name)[1]),
                grid.worst(law.name)[0],
                f"{grid.on_time(law.name):.1%}",
                f"{grid.latency_ms(law.name):.0f} ms",
            ]
            for law in LAWS
        ],
    )
    return f"""# Laws of load control: results

Made by `{command}`: {_machine()}; simulated time, so the machine's speed does not matter. {seeds} seeds,
± is the standard error over them. [README.md](README.md) says what was run and how the gap is defined.

## Mean over {len(grid.scenarios)} scenarios

Gap to the fluid optimum, in points of correct-and-on-time answers per offered request.

{laws}
## By scenario

{gaps_markdown(grid)}
A gap below 0 is no error: the optimum is taken phase by phase and may not carry work over into the next one.

## Ablations

{extra}"""


if __name__ == "__main__":
    sys.exit(main())
