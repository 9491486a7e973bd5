"""What is promised of the server beside its peers, and whether the numbers keep it. Reads the document, measures nothing.

Every promise is about the medians of a run: a run on another machine has other numbers and the same promises.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

LEAK_BYTES = 100
"""More than this kept for each request is a leak; less is an allocator settling."""
OURS = "cascade"
TIMES = {"by-hand": 25.0, "by-hand-tuned": 4.0, "litserve": 1.0, "bentoml": 1.0, "mosec": 1.0}
"""How many times the throughput of each other system ours is to have; 1 is ahead."""
BUSY = ("32 connections", "128 connections")
ALONE = "1 connection"
HALF = "half load"
MANY, MANY_ROWS = "32-row requests", 32
FIRST_STAGE_MS = 1.0
"""What an answer of the first stage may take beyond a bare HTTP server's, both alone."""
OF_COMPUTE = 0.9
"""Share of the bare loop's rows a second that requests of many rows are to reach."""
TAIL = 2.0
"""p99 over p50, at half load."""
START_S = 25.0


@dataclass(frozen=True)
class Target:
    """One promise: what, what it should be, what it was, and whether that keeps it; None where nothing was measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None


def values(document: dict[str, Any], ladder: str, system: str, load: str, metric: str) -> list[float]:
    """One metric of one system under one load, a value a round."""
    return [
        point[metric]
        for point in document["points"]
        if (point["ladder"], point["system"], point["load"]) == (ladder, system, load) and point[metric] is not None
    ]


def middle(document: dict[str, Any], ladder: str, system: str, load: str, metric: str) -> float | None:
    """The median of the rounds, None if there is none."""
    found = values(document, ladder, system, load, metric)
    return median(found) if found else None


def floor(document: dict[str, Any], ladder: str, batch: int, metric: str = "throughput") -> list[float]:
    """One metric of the bare loop, a value a round."""
    return [point[metric] for point in document["floors"] if (point["ladder"], point["batch"]) == (ladder, batch)]


def targets(document: dict[str, Any]) -> list[Target]:
    """Every promise, in the order of the table."""
    cheapest = document["ladders"][0]["title"]
    found = [_ahead(document, cheapest, other, load) for other in TIMES for load in BUSY]
    found += [_first_stage(document, cheapest), _many_rows(document, cheapest)]
    for ladder in document["ladders"]:
        found.append(_tail(document, ladder["title"]))
    for ladder in document["ladders"]:
        found += _same_answers(ladder)
        found += _start(document, ladder["title"])
    wrong = sum(point["wrong"] for point in document["points"])
    answered = sum(point["answered"] for point in document["points"])
    found.append(Target("failed or different answers under load", "none", f"{wrong:,} of {answered:,}", wrong == 0))
    if document["memory"] is not None:
        kept = document["memory"]["bytes_a_request"]
        what = f"router memory over {document['memory']['requests']:,} requests"
        found.append(Target(what, f"{LEAK_BYTES} bytes a request or less", f"{kept:.0f}", kept <= LEAK_BYTES))
    return found


def _ahead(document: dict[str, Any], ladder: str, other: str, load: str) -> Target:
    wanted = TIMES[other]
    what = f"throughput over {other}, {load}"
    said = f"x{wanted:g} or more" if wanted > 1 else "more than it"
    mine, theirs = (middle(document, ladder, system, load, "throughput") for system in (OURS, other))
    if mine is None or theirs is None:
        return _unmeasured(what, said)
    times = mine / theirs
    return Target(what, said, f"x{times:.1f}", times >= wanted if wanted > 1 else times > 1)


def _first_stage(document: dict[str, Any], ladder: str) -> Target:
    what, said = "first-stage answers alone, p50 beyond the bare HTTP server's", f"{FIRST_STAGE_MS:g} ms or less"
    mine = middle(document, ladder, OURS, ALONE, "first_p50_ms")
    bare = middle(document, ladder, "http-floor", ALONE, "p50_ms")
    if mine is None or bare is None:
        return _unmeasured(what, said)
    return Target(what, said, f"{mine - bare:.2f} ms ({mine:.2f} less {bare:.2f})", mine - bare <= FIRST_STAGE_MS)


def _many_rows(document: dict[str, Any], ladder: str) -> Target:
    what, said = f"rows a second in {MANY}, of the bare loop's in such batches", f"{OF_COMPUTE:.0%} or more"
    mine, bare = middle(document, ladder, OURS, MANY, "throughput"), floor(document, ladder, MANY_ROWS)
    if mine is None or not bare:
        return _unmeasured(what, said)
    rows, most = mine * MANY_ROWS, median(bare)
    return Target(what, said, f"{rows / most:.0%} ({rows:,.0f} of {most:,.0f})", rows / most >= OF_COMPUTE)


def _tail(document: dict[str, Any], ladder: str) -> Target:
    what, said = f"p99 at half load, {ladder}", f"{TAIL:g} x p50 or less"
    p50, p99 = (middle(document, ladder, OURS, HALF, metric) for metric in ("p50_ms", "p99_ms"))
    if p50 is None or p99 is None:
        return _unmeasured(what, said)
    return Target(what, said, f"x{p99 / p50:.1f} ({p99:.2f} of {p50:.2f} ms)", p99 / p50 <= TAIL)


def _same_answers(ladder: dict[str, Any]) -> list[Target]:
    rows = ladder["rows"]
    what, said = f"same label and same rung from every system, {ladder['title']}", f"{rows:,} of {rows:,} rows"
    different = {name: same for name, same in ladder["same_answers"].items() if same != rows}
    measured = ", ".join(f"{name} {same:,}" for name, same in different.items()) or f"{rows:,}"
    return [Target(what, said, measured, not different)]


def _start(document: dict[str, Any], ladder: str) -> list[Target]:
    took = [start["seconds"] for start in document["starts"] if (start["ladder"], start["system"]) == (ladder, OURS)]
    if not took:
        return []
    slowest = max(took)
    return [Target(f"start to first answer, {ladder}", f"{START_S:g} s or less", f"{slowest:.1f} s", slowest <= START_S)]


def _unmeasured(what: str, wanted: str) -> Target:
    return Target(what, wanted, "not measured", None)
