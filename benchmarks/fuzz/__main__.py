"""`python -m benchmarks.fuzz --inputs 200000`: how many inputs were tried, what came back, and what is wrong with it.

Every tenth of the inputs goes to a server that asks for keys. Ends with 1 if an input was answered by a 500, hung, made a
server log an unexpected error, or left something behind, or if memory grew. `--only NUMBER` sends one input again.
"""

import asyncio
import gc
import os
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.fuzz.inputs import make
from benchmarks.fuzz.target import running
from benchmarks.fuzz.trying import Found, try_all

console = Console()
PARTS = 10
GROWN_BYTES = 32 << 20
"""Growth of the process from the third tenth of the inputs to the last beyond which something is kept. Before that, caches
and the allocator's arenas fill."""


def main(
    inputs: Annotated[int, typer.Option(help="Inputs to try.", min=PARTS)] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 1,
    beside: Annotated[int, typer.Option(help="Inputs at a time.", min=1)] = 32,
    only: Annotated[int | None, typer.Option(help="Send this one alone, and show it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write what was found here, as Markdown.")] = None,
) -> None:
    """Fuzz a router's own HTTP and gRPC servers."""
    if only is not None:
        sent = make(seed, only)
        console.print(sent, markup=False)
    numbers = range(inputs) if only is None else range(only, only + 1)
    started = time.perf_counter()
    found, memory, left = asyncio.run(_run(seed, numbers, beside))
    seconds = time.perf_counter() - started
    grown = memory[-1] - memory[min(2, len(memory) - 1)]
    lines = [
        f"{sum(found.tried.values()):,} inputs in {seconds:.0f} s, seed {seed}, {beside} at a time: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.tried.items())),
        "came back: " + ", ".join(f"{count:,} {what}" for what, count in sorted(found.outcomes.items())),
        "memory of the process, MiB, after each tenth: " + ", ".join(f"{size / (1 << 20):.0f}" for size in memory),
        f"left behind: {left or 'nothing'}",
        f"wrong: {found.outcomes['wrong']:,}",
        *(f"  input {number}: {what}" for number, what in found.wrong),
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        out.write_text("\n".join(f"- {line}" for line in lines) + "\n")
    if found.outcomes["wrong"] or left or grown > GROWN_BYTES:
        raise typer.Exit(1)


async def _run(seed: int, numbers: range, beside: int) -> tuple[Found, list[int], str]:
    found, memory, left = Found(), [], ""
    process = psutil.Process(os.getpid())
    size = max(1, len(numbers) // PARTS)
    async with running() as open_target, running(keys=True) as keyed:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("fuzz", total=len(numbers))
            for part in range(0, len(numbers), size):
                some = numbers[part : part + size]
                border = some[max(1, len(some) - len(some) // 10) - 1] + 1
                for target, own in ((open_target, range(some.start, border)), (keyed, range(border, some.stop))):
                    await try_all(target, seed, own, found, beside=beside, tick=lambda: bar.advance(task))
                gc.collect()
                memory.append(process.memory_info().rss)
        await asyncio.sleep(2.5)  # a deadline, and more
        left = "; ".join(each for target in (open_target, keyed) if (each := target.left))
    return found, memory, left


if __name__ == "__main__":
    typer.run(main)
