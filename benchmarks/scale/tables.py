"""From what was found to a section of Markdown. Reads only the document that ``--out`` writes; measures nothing."""

from collections.abc import Callable, Sequence
from math import log, sqrt
from statistics import median
from typing import Any, NamedTuple

import numpy as np

COMPARED = 8
"""Replicas that the server compares for a call."""
Entry = dict[str, Any]


class Fit(NamedTuple):
    """A line through costs, and how much of their variance it explains."""

    intercept: float
    slope: float
    explained: float


def fit(sizes: Sequence[float], costs: Sequence[float], scale: Callable[[float], float]) -> Fit:
    """Least squares of costs against a function of the size."""
    x, y = np.array([scale(size) for size in sizes]), np.array(costs)
    slope, intercept = np.polyfit(x, y, 1)
    left = float(((y - intercept - slope * x) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    return Fit(float(intercept), float(slope), 1.0 - left / total if total > 0 else 1.0)


def within_log(sizes: Sequence[float], costs: Sequence[float]) -> bool:
    """Whether no cost exceeds that of the smallest size by more than the ratio of the logarithms."""
    return all(cost <= costs[0] * log(size) / log(sizes[0]) for size, cost in zip(sizes, costs, strict=True))


def section(document: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    machine = document["machine"]
    lines = [
        f"Made by `python -m benchmarks.scale`, {document['date']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}. Synthetic ladder of `benchmarks/laws`: three stages of 32, 16 and 8 rows a batch, deadline "
        "0.4 s, the same number of replicas of every stage, one batch at a time each; loads are multiples of what the top "
        "stage can do, so that offered requests a second grow with the replicas.",
    ]
    if "cost" in document:
        lines += _cost(document["cost"], document.get("before"))
    if "quality" in document:
        lines += _quality(document["quality"])
    if "solve" in document:
        lines += _solve(document["solve"])
    return "\n".join(lines)


def per_row_us(entry: Entry, key: str = "cpu_s") -> list[float]:
    """CPU microseconds a row, a value a round."""
    return [1e6 * seconds / entry["rows"] for seconds in entry[key]]


def spread(found: Sequence[float], digits: int = 1) -> str:
    """The median, with the lowest and the highest."""
    middle = f"{median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f}–{max(found):,.{digits}f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|:--{'|--:' * (len(head) - 1)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _cost(entries: Sequence[Entry], before: str | None) -> list[str]:
    alone = [entry for entry in entries if entry["routers"] == 1]
    sizes = sorted({entry["replicas"] for entry in alone})
    loads = sorted({entry["load"] for entry in alone})
    at = {(entry["load"], entry["replicas"]): entry for entry in alone}
    lines = [
        "",
        "### CPU of the policy",
        "",
        "CPU µs a row of one router before all replicas, median of the rounds (lowest–highest).",
        "",
    ]
    rows, fits = [], []
    for load in loads:
        costs = [median(per_row_us(at[load, size])) for size in sizes]
        rows.append([f"x{load:g}", *(spread(per_row_us(at[load, size])) for size in sizes)])
        by_log, by_size = fit(sizes, costs, log), fit(sizes, costs, float)
        fits.append(
            [
                f"x{load:g}",
                f"x{costs[-1] / costs[0]:.2f}",
                f"x{log(sizes[-1]) / log(sizes[0]):.2f}",
                f"{by_log.intercept:.0f} + {by_log.slope:.1f} ln n ({by_log.explained:.2f})",
                f"{by_size.intercept:.0f} + {by_size.slope:.3f} n ({by_size.explained:.2f})",
                "met" if within_log(sizes, costs) else "MISSED",
            ]
        )
    lines += _table(("load", *(f"{size:,} replicas" for size in sizes)), rows)
    decisions = [
        [
            f"x{load:g}",
            *(f"{1e6 / median(per_row_us(at[load, size])):,.0f} / {_events_per_s(at[load, size]):,.0f}" for size in sizes),
        ]
        for load in loads
    ]
    lines += ["Rows a second / events a second of one policy on one core.", ""]
    lines += _table(("load", *(f"{size:,}" for size in sizes)), decisions)
    lines += [
        f"Growth from {sizes[0]} to {sizes[-1]:,} replicas; wanted: not faster than log n. In brackets: share explained.",
        "",
    ]
    lines += _table(("load", "measured", "log n", "against ln n, µs", "against n, µs", ""), fits)
    compared = [entry for entry in alone if "before_cpu_s" in entry]
    if compared:
        lines += [f"The same events played to the policy of {before}, which decided the same in each of these:", ""]
        lines += _table(
            ("load", "replicas", "before, µs a row", "now", "before / now"),
            [
                [
                    f"x{entry['load']:g}",
                    f"{entry['replicas']:,}",
                    spread(per_row_us(entry, "before_cpu_s")),
                    spread(per_row_us(entry)),
                    f"x{median(entry['before_cpu_s']) / median(entry['cpu_s']):.2f}",
                ]
                for entry in compared
            ],
        )
    many = [entry for entry in entries if entry["routers"] > 1]
    if many:
        lines += ["One router of several:", ""]
        lines += _table(
            ("routers", "replicas", "load", "CPU µs a row", "rows under way", "batches under way"),
            [
                [
                    str(e["routers"]),
                    f"{e['replicas']:,}",
                    f"x{e['load']:g}",
                    spread(per_row_us(e)),
                    str(e["live"]),
                    str(e["running"]),
                ]
                for e in many
            ],
        )
    lines += [
        "### Memory of the policy",
        "",
        "Bytes of a policy and all it refers to, rows and their evidence included.",
        "",
    ]
    lines += _table(
        ("load", "replicas", "rows under way", "in queues", "batches", "MiB", "bytes a row", "empty"),
        [
            [
                f"x{e['load']:g}",
                f"{e['replicas']:,}",
                f"{e['live']:,}",
                f"{e['waiting']:,}",
                f"{e['running']:,}",
                f"{e['bytes'] / 2**20:.2f}",
                f"{(e['bytes'] - e['idle_bytes']) / max(1, e['live']):,.0f}",
                f"{e['idle_bytes']:,}",
            ]
            for e in alone
        ],
    )
    return lines


def _events_per_s(entry: Entry) -> float:
    return entry["events"] / median(entry["cpu_s"])


def _quality(entries: Sequence[Entry]) -> list[str]:
    routers = sorted({entry["routers"] for entry in entries})
    lines = [
        "### Quality lost by several routers",
        "",
        "Points of right and timely answers by requests offered that one router with one global queue has and several have "
        "not, on the same requests; ± standard error, from the differences row by row. Simulated. A call goes to the least "
        "busy of 8 replicas drawn at random.",
        "",
    ]
    usual = [e for e in entries if e["compared"] == COMPARED and e["calls"] == "server"]
    for load in sorted({e["load"] for e in usual}):
        rows = []
        for size in sorted({e["replicas"] for e in usual}):
            here = [e for e in usual if (e["load"], e["replicas"]) == (load, size)]
            if here:
                seeds = len({e["seed"] for e in here})
                one = [e["right"] for e in here if e["routers"] == 1]
                cells = [lost([e for e in here if e["routers"] == count]) for count in routers if count > 1]
                rows.append([f"{size:,} ({seeds})", f"{sum(one) / len(one):.2f} %", *cells])
        lines += [
            f"Load x{load:g}; replicas of each stage, seeds in brackets; then what one router reaches, then points lost.",
            "",
        ]
        lines += _table(("replicas", "1 router", *(str(count) for count in routers if count > 1)), rows)
    lines += ["Calls of all stages a request, rows in a pass of the top stage, p99 in ms, at the highest load:", ""]
    top = max(e["load"] for e in usual)
    rows = []
    for size in sorted({e["replicas"] for e in usual}):
        here = [e for e in usual if (e["load"], e["replicas"]) == (top, size)]
        if here:
            rows.append([f"{size:,}", *(_traits([e for e in here if e["routers"] == count]) for count in routers)])
    lines += _table(("replicas", *(str(count) for count in routers)), rows)
    kinds = sorted({(e["calls"], -e["compared"]) for e in entries if e["load"] == top and e not in usual})
    if kinds:
        lines += ["Other arrangements at the highest load: points lost · calls a request.", ""]
        head = [f"{calls}, {-fewer} compared" for calls, fewer in kinds]
        rows = []
        for size, count in sorted({(e["replicas"], e["routers"]) for e in entries if e not in usual}):
            here = [e for e in entries if (e["replicas"], e["routers"], e["load"]) == (size, count, top)]
            cells = [_with_calls([e for e in here if (e["calls"], -e["compared"]) == kind]) for kind in kinds]
            if any(cells):
                rows.append([f"{size:,}", str(count), *cells])
        lines += _table(("replicas", "routers", *head), rows)
    return lines


def lost(entries: Sequence[Entry]) -> str:
    """Points lost over the seeds, and their standard error."""
    if not entries:
        return "not run"
    mean = sum(e["lost"] for e in entries) / len(entries)
    return f"{mean:+.2f} ± {sqrt(sum(e['error'] ** 2 for e in entries)) / len(entries):.2f}"


def _mean(entries: Sequence[Entry], key: str) -> float:
    return float(sum(e[key] for e in entries) / len(entries))


def _traits(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    return f"{_mean(entries, 'calls_per_row'):.2f} / {_mean(entries, 'top_rows'):.1f} / {_mean(entries, 'p99_ms'):.0f}"


def _with_calls(entries: Sequence[Entry]) -> str:
    return f"{lost(entries)} · {_mean(entries, 'calls_per_row'):.2f}" if entries else ""


def _solve(entries: Sequence[Entry]) -> list[str]:
    lines = [
        "### Solve times",
        "",
        "CPU time, median of the rounds (lowest–highest); 2,000 rows in the market, 5,000 in the plan's table.",
        "",
    ]
    rows = []
    for stages, classes in sorted({(e["stages"], e["classes"]) for e in entries}):
        here = [e for e in entries if (e["stages"], e["classes"]) == (stages, classes)]
        plan = spread([e["plan_s"] for e in here]) if here[0]["plan_rates"] else "as with one"
        rates = str(here[0]["plan_rates"]) if here[0]["plan_rates"] else ""
        rows.append(
            [
                f"{stages} x {classes}",
                spread([e["market_ms"] for e in here], 2),
                spread([e["slow_loop_ms"] for e in here], 2),
                plan,
                rates,
            ]
        )
    return lines + _table(
        ("stages x classes", "market, ms", "round of the slow loop, ms", "offline plan, s", "rates in it"), rows
    )
