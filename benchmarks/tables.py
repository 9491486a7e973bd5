"""From recorded points to medians, verdicts, a table for the terminal and one for docs/results.md. Measures nothing.

Everything here reads only the document that ``--out`` writes, so a table can be made again from the file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- benchmarks/serving.py -->", "<!-- end -->"
METRICS = (
    ("throughput", "requests/s", 0),
    ("p50_ms", "latency p50, ms", 2),
    ("p99_ms", "latency p99, ms", 2),
    ("cpu_ms", "CPU-ms a request", 3),
)
LEAK_BYTES = 100
"""More than this kept for each request is a leak; less is an allocator settling."""
QUIET_SHARE = 0.1
"""Of a core; with more CPU than this spent by others, the numbers say less than they should."""


@dataclass(frozen=True)
class Target:
    """One promise: what, what it should be, what it was, and whether that keeps it."""

    what: str
    wanted: str
    measured: str
    met: bool


def values(document: dict[str, Any], ladder: str, system: str, connections: int, metric: str) -> list[float]:
    """One metric of one system, a value a round."""
    return [
        point[metric]
        for point in document["points"]
        if (point["ladder"], point["system"], point["connections"]) == (ladder, system, connections)
    ]


def ratio(document: dict[str, Any], ladder: str, connections: int, metric: str) -> float:
    """Median of cascade over median of the hand-written one."""
    return median(values(document, ladder, "cascade", connections, metric)) / median(
        values(document, ladder, "by hand", connections, metric)
    )


def targets(document: dict[str, Any]) -> list[Target]:
    """Every promise that the document has numbers for."""
    cheapest = document["ladders"][0]["title"]
    found = []
    for connections in (32, 128):
        times = ratio(document, cheapest, connections, "throughput")
        found.append(Target(f"throughput at {connections} connections", "x12 or more", f"x{times:.1f}", times >= 12))
    for connections in (32, 128):
        share = ratio(document, cheapest, connections, "cpu_ms")
        what = f"CPU a request at {connections} connections"
        found.append(Target(what, "1/10 or less", f"1/{1 / share:.1f}", share <= 1 / 10))
    share = ratio(document, cheapest, 1, "p50_ms")
    found.append(Target("p50 at 1 connection", "1/4 or less", f"1/{1 / share:.1f}", share <= 1 / 4))
    for ladder in document["ladders"]:
        same, rows = ladder["same_answers"], ladder["rows"]
        what = f"same label and same rung, {ladder['title']}"
        found.append(Target(what, f"{rows:,} of {rows:,} rows", f"{same:,}", same == rows))
        slowest = max(
            start["seconds"]
            for start in document["starts"]
            if (start["ladder"], start["system"]) == (ladder["title"], "cascade")
        )
        found.append(Target(f"start to first answer, {ladder['title']}", "25 s or less", f"{slowest:.1f} s", slowest <= 25))
    wrong = sum(point["wrong"] for point in document["points"])
    answered = sum(point["answered"] for point in document["points"])
    found.append(Target("failed or different answers under load", "none", f"{wrong:,} of {answered:,}", wrong == 0))
    if document["memory"] is not None:
        kept = document["memory"]["bytes_a_request"]
        what = f"router memory over {document['memory']['requests']:,} requests"
        found.append(Target(what, f"{LEAK_BYTES} bytes a request or less", f"{kept:.0f}", kept <= LEAK_BYTES))
    return found


def show(document: dict[str, Any], console: Console) -> None:
    """Print everything on the terminal."""
    for ladder in document["ladders"]:
        table = Table(title=_caption(ladder), title_justify="left")
        for number, column in enumerate(("connections", "", "by hand", "cascade", "ratio")):
            table.add_column(column, justify="left" if number == 1 else "right")
        for cells in _rows(document, ladder["title"]):
            table.add_row(*cells, end_section=cells[1].startswith("CPU"))
        console.print(table)
    table = Table(title="targets", title_justify="left")
    for column in ("target", "wanted", "measured", ""):
        table.add_column(column)
    for target in targets(document):
        table.add_row(*_cells(target), style=None if target.met else "red")
    console.print(table)
    console.print(_other_load(document))


def show_settings(points: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what each setting of the hand-written cascade came to."""
    table = Table(title="by hand: max_ongoing_requests and batch_wait_timeout_s of its stages", title_justify="left")
    for column in ("setting", "connections", *(name for _, name, _ in METRICS)):
        table.add_column(column, justify="left" if column == "setting" else "right")
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((", ".join(map(str, point["setting"])), point["connections"]), []).append(point)
    for (setting, connections), group in groups.items():
        cells = [_spread([point[metric] for point in group], digits) for metric, _, digits in METRICS]
        table.add_row(setting, str(connections), *cells)
    console.print(table)


def write_section(document: dict[str, Any], path: Path) -> None:
    """Put the tables between their markers in a Markdown file, which is made if there is none."""
    replace_section(path, BEGIN, END, _markdown(document))


def replace_section(path: Path, begin: str, end: str, content: str) -> None:
    """Put text between its markers in a Markdown file: in the place of what stands there, else at the end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{content}\n{end}"
    if begin in text:
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


def _markdown(document: dict[str, Any]) -> str:
    machine = document["machine"]
    lines = [
        "## Serving: cascade and the same cascade by hand",
        "",
        f"`{document['command']}`, {document['date']}, {machine['cpu']}, {machine['cores']} cores shared by server and "
        f"load client, Linux, Python {machine['python']}, Ray {machine['ray']}, torch {machine['torch']}. Median of "
        f"{document['rounds']} interleaved rounds of {document['seconds']:g} s a point, lowest and highest in brackets. "
        + _other_load(document),
        "",
        "*By hand* is benchmarks/handwritten.py: Ray Serve with its defaults, a router deployment that calls one stage "
        f"deployment a rung for each request, `@serve.batch` ({document['by_hand']}). *cascade* is what `cascade serve` "
        "starts. Both run the same networks on the same test rows and stop by the same rule; deadlines are so long that "
        "nothing is degraded. CPU counts every process of a system, those of Ray and HAProxy included, and not the client.",
    ]
    for ladder in document["ladders"]:
        lines += [
            "",
            f"### {_caption(ladder)}",
            "",
            "| connections | | by hand | cascade | ratio |",
            "|--:|:--|--:|--:|--:|",
        ]
        lines += [f"| {' | '.join(cells)} |" for cells in _rows(document, ladder["title"])]
    lines += ["", "### Targets", "", "| target | wanted | measured | |", "|:--|:--|:--|:--|"]
    lines += [f"| {' | '.join(_cells(target))} |" for target in targets(document)]
    return "\n".join(lines)


def _caption(ladder: dict[str, Any]) -> str:
    return (
        f"{ladder['title']}: {', '.join(ladder['stages'])}; accuracy {ladder['accuracy']['by hand']:.2%} by hand, "
        f"{ladder['accuracy']['cascade']:.2%} cascade; {ladder['escalated']:.0%} of the rows go past the first rung"
    )


def _rows(document: dict[str, Any], ladder: str) -> Iterator[tuple[str, ...]]:
    for connections in sorted({point["connections"] for point in document["points"]}):
        for metric, name, digits in METRICS:
            cells = [
                _spread(values(document, ladder, system, connections, metric), digits) for system in ("by hand", "cascade")
            ]
            times = ratio(document, ladder, connections, metric)
            yield str(connections), name, *cells, f"x{times:.1f}" if times >= 1 else f"1/{1 / times:.1f}"


def _spread(found: Sequence[float], digits: int) -> str:
    middle = f"{median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f}–{max(found):,.{digits}f})"


def _cells(target: Target) -> tuple[str, ...]:
    fields = asdict(target)
    met = fields.pop("met")
    return (*fields.values(), "met" if met else "MISSED")


def _other_load(document: dict[str, Any]) -> str:
    other, client = (max(point[share] for point in document["points"]) for share in ("other_share", "client_share"))
    yardsticks = [point["yardstick_ms"] for point in document["points"]]
    loud = "" if other <= QUIET_SHARE else " The machine was not quiet: these numbers are not for the record."
    return (
        f"The client took at most {client:.2f} of a core and everything else on the machine {other:.2f}; a fixed piece of "
        f"work took {min(yardsticks):.0f} to {max(yardsticks):.0f} ms in between.{loud}"
    )
