"""From recorded points to medians, a table for the terminal and one for docs/results.md. Measures nothing, promises nothing.

Everything here reads only the document that ``--out`` writes, so a table can be made again from the file.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.targets import Target, floor, middle, targets, values

BEGIN, END = "<!-- benchmarks/serving.py -->", "<!-- end -->"
METRICS = (
    ("throughput", "requests/s", 0),
    ("p50_ms", "p50, ms", 2),
    ("p99_ms", "p99, ms", 2),
    ("cpu_ms", "CPU-ms a request", 3),
    ("client_share", "client, of a core", 2),
)
QUIET_SHARE = 0.1
"""Of a core; with more CPU than this spent by others, the numbers say less than they should."""
NAMED_SHARE = 0.04
"""Of a system's CPU; groups below it are summed up."""
FULL = 0.9
"""Of what there is; a process or a machine that uses this much has nothing left to give."""


class Sheet(NamedTuple):
    """A table: what it is called, its columns, its rows; numbers stand from column ``numbers`` on."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: int


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """Every table of the document but the targets."""
    found = []
    for ladder in document["ladders"]:
        columns = ("load", "system", *(name for _, name, _ in METRICS))
        found.append(Sheet(caption(ladder), columns, list(_points(document, ladder["title"])), 2))
    found.append(
        Sheet(
            "The bare loop: no server, one process, one torch thread",
            ("ladder", "batch", "rows/s", "a batch p50, ms", "CPU-ms a row", "cores"),
            list(_floors(document)),
            1,
        )
    )
    return [sheet for sheet in found if sheet.rows]


def _points(document: dict[str, Any], ladder: str) -> Iterator[tuple[str, ...]]:
    names = [system["name"] for system in document["systems"]]
    loads = list(dict.fromkeys(point["load"] for point in document["points"] if point["ladder"] == ladder))
    for load in loads:
        for system in names:
            if not values(document, ladder, system, load, "throughput"):
                continue
            cells = [_spread(values(document, ladder, system, load, metric), digits) for metric, _, digits in METRICS]
            yield (load, system, *cells)


def _floors(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for ladder in document["ladders"]:
        title = ladder["title"]
        batches = dict.fromkeys(point["batch"] for point in document["floors"] if point["ladder"] == title)
        for batch in batches:
            cells = [
                _spread(floor(document, title, batch, metric), digits)
                for metric, digits in (("throughput", 0), ("p50_ms", 2), ("cpu_ms", 4), ("cores", 2))
            ]
            yield (title, str(batch), *cells)


def limits(document: dict[str, Any]) -> list[str]:
    """What limits each system, a line each, from its profile and the undisturbed points under the same load."""
    return [f"**{profile['system']}**: {_limit(document, profile)}" for profile in document["profiles"]]


def _limit(document: dict[str, Any], profile: dict[str, Any]) -> str:
    if not profile["shares"]:
        return f"no profile: {profile['missed']}"
    where = (document["points"], profile["ladder"], profile["system"], profile["load"])
    busiest, share, total = _cores(*where)
    cores = document["machine"]["cores"]
    client = middle(document, *where[1:], "client_share") or 0.0
    if total + client >= FULL * cores:
        verdict = f"the machine's CPU, {total:.2f} of {cores} cores beside the client's {client:.2f}"
    elif share >= FULL:
        verdict = f"one process, {busiest}, {share:.2f} of a core; all of them {total:.2f} of {cores}"
    else:
        verdict = f"waiting: its busiest process, {busiest}, takes {share:.2f} of a core, all of them {total:.2f} of {cores}"
    named = [f"{group} {part:.0%}" for group, part in profile["shares"].items() if part >= NAMED_SHARE]
    rest = sum(part for part in profile["shares"].values() if part < NAMED_SHARE)
    named += [f"the rest {rest:.0%}"] if rest >= 0.005 else []
    stacks = f"; no stacks: {profile['missed']}" if profile["missed"] else ""
    return f"limited by {verdict}. Of its CPU {', '.join(named)}; {profile['kernel_share']:.0%} in the kernel{stacks}"


def _cores(points: Sequence[dict[str, Any]], ladder: str, system: str, load: str) -> tuple[str, float, float]:
    """The busiest kind of process, its cores, and those of all, medians of the rounds."""
    own = [point for point in points if (point["ladder"], point["system"], point["load"]) == (ladder, system, load)]
    kinds = {kind for point in own for kind in point["cpu_ms_by_process"]}
    by_kind = {
        kind: median(point["cpu_ms_by_process"].get(kind, 0.0) * point["throughput"] / 1e3 for point in own)
        for kind in kinds
    }
    busiest = max(by_kind, key=lambda kind: by_kind[kind])
    return busiest, by_kind[busiest], median(point["cpu_ms"] * point["throughput"] / 1e3 for point in own)


def show(document: dict[str, Any], console: Console) -> None:
    """Print everything on the terminal."""
    for sheet in sheets(document):
        table = Table(title=sheet.title, title_justify="left")
        for number, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if number >= sheet.numbers else "left")
        for cells, following in zip(sheet.rows, [*sheet.rows[1:], None], strict=True):
            table.add_row(*cells, end_section=following is None or following[0] != cells[0])
        console.print(table)
    for line in [*limits(document), *_missing(document)]:
        console.print(line.replace("**", ""), highlight=False)
    table = Table(title="targets", title_justify="left")
    for column in ("target", "wanted", "measured", ""):
        table.add_column(column)
    for target in targets(document):
        table.add_row(*_cells(target), style="red" if target.met is False else None)
    console.print(table)
    console.print(_other_load(document))


def show_settings(points: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what each setting of each system came to."""
    table = Table(title="settings", title_justify="left")
    for column in ("system", "setting", "load", *(name for _, name, _ in METRICS)):
        table.add_column(column, justify="left" if column in ("system", "setting", "load") else "right")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["system"], point["setting"], point["load"]), []).append(point)
    for names, group in groups.items():
        cells = [_spread([point[metric] for point in group], digits) for metric, _, digits in METRICS]
        table.add_row(*names, *cells)
    console.print(table)


def write_section(document: dict[str, Any], path: Path) -> None:
    """Put the tables between their markers in a Markdown file, which is made if there is none."""
    replace_section(path, BEGIN, END, markdown(document))


def replace_section(path: Path, begin: str, end: str, content: str) -> None:
    """Put text between its markers in a Markdown file: in the place of what stands there, else at the end."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"{begin}\n{content}\n{end}"
    if begin in text:
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


def markdown(document: dict[str, Any]) -> str:
    """The section of docs/results.md."""
    machine = document["machine"]
    lines = [
        "## Serving: cascade beside its peers",
        "",
        f"`{document['command']}`, {document['date']}, {machine['cpu']}, {machine['cores']} cores shared by server and "
        f"load client, Linux, Python {machine['python']}, Ray {machine['ray']}, torch {machine['torch']}. Median of "
        f"{document['rounds']} interleaved rounds of {document['seconds']:g} s a point ({document['whole_rounds']} on the "
        "whole ladder), lowest and highest in brackets. " + _other_load(document),
        "",
        "All run the same networks on the same test rows and stop by the same rule; deadlines are so long that nothing is "
        "degraded. CPU counts every process of a system, those of Ray and HAProxy included, and not the client. A closed "
        "loop keeps so many connections busy; in an open one requests arrive as a Poisson process and latency counts from "
        "when each was due. *Half load* is half of what the system itself did at best in the same round, *common rate* "
        f"{document['common_rate']:g} requests/s for all.",
        "",
    ]
    lines += [f"- *{system['name']}*: {system['what']} ({system['setting']})." for system in document["systems"]]
    lines += [f"- {line}" for line in _missing(document)]
    for sheet in sheets(document):
        lines += ["", f"### {sheet.title}", "", *_table(sheet.columns, sheet.rows, sheet.numbers)]
    if document["profiles"]:
        load, ladder = document["profiles"][0]["load"], document["profiles"][0]["ladder"]
        lines += ["", f"### What limits each, {load}, {ladder}", ""]
        lines += [
            "From one more pass a system with its three busiest Python processes sampled by py-spy, the other threads and "
            "processes by the kernel's counters; cores from the undisturbed rounds.",
            "",
        ]
        lines += [f"- {line}." for line in limits(document)]
    lines += ["", "### Targets", ""]
    lines += _table(("target", "wanted", "measured", ""), [_cells(target) for target in targets(document)], 4)
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> list[str]:
    rule = [":--" if number < numbers else "--:" for number in range(len(columns))]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _missing(document: dict[str, Any]) -> list[str]:
    # A reason may be the end of a log, whose last line says most.
    return [f"*{name}* is missing: {reason.splitlines()[-1]}" for name, reason in document["missing"].items()]


def caption(ladder: dict[str, Any]) -> str:
    """What a reader must know of a ladder; of its answers only if there were some."""
    if ladder["accuracy"] is None:
        return f"{ladder['title']}: {', '.join(ladder['stages'])}"
    return (
        f"{ladder['title']}: {', '.join(ladder['stages'])}; accuracy {ladder['accuracy']:.2%}; {ladder['escalated']:.0%} of "
        "the rows go past the first rung"
    )


def _spread(found: Sequence[float], digits: int) -> str:
    middle_value = f"{median(found):,.{digits}f}"
    return middle_value if len(found) == 1 else f"{middle_value} ({min(found):,.{digits}f}–{max(found):,.{digits}f})"


def _cells(target: Target) -> tuple[str, str, str, str]:
    verdict = {True: "met", False: "MISSED", None: "not measured"}[target.met]
    return target.what, target.wanted, target.measured, verdict


def _other_load(document: dict[str, Any]) -> str:
    if not document["points"]:
        return ""
    other, client = (max(point[share] for point in document["points"]) for share in ("other_share", "client_share"))
    late = [point["late_ms"] for point in document["points"] if point["late_ms"] is not None]
    yardsticks = [point["yardstick_ms"] for point in document["points"]]
    loud = "" if other <= QUIET_SHARE else " The machine was not quiet: these numbers are not for the record."
    punctual = f", in open loops sent 99 of 100 requests at most {max(late):.1f} ms late" if late else ""
    return (
        f"The client took at most {client:.2f} of a core{punctual}, and everything else on the machine {other:.2f}; a fixed "
        f"piece of work took {min(yardsticks):.0f} to {max(yardsticks):.0f} ms in between.{loud}"
    )
