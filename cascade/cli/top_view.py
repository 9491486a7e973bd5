"""How `cascade top` shows one ladder: the document of ``/status/figures`` as text. Knows nothing of where it comes from."""

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Figure = float | None

SHADES = ("bright_blue", "blue", "cyan", "magenta", "bright_magenta", "red")
"""Colours of the stages in the bar, cheapest first; they begin again where there are more."""
BAR_CELLS = 60


def panel(url: str, figures: dict[str, Any], problem: str, age_s: float) -> Panel:
    """One ladder.

    Args:
        url: where it is served.
        figures: the document.
        problem: why it is not newer; empty if it is.
        age_s: how old it is.
    """
    live, routers = figures["live"], figures["routers"]
    parts: list[RenderableType] = [_headline(live, figures), _bar(live["shares"]), _stages(live)]
    if live["classes"]:
        parts.append(_classes(live["classes"]))
    parts += _notes(live, routers)
    if problem:
        parts.append(Text(f"unreachable, figures are {age_s:.0f} s old: {problem}", style="bold red"))
    versions = sorted({each["version"] for each in routers["each"] if each["version"]})
    title = f"[bold]{escape(figures['model'])}[/bold] {escape(figures['version'])} · {escape(url)}"
    below = f"{routers['answered']} of {routers['expected']} routers" + (f" · {' and '.join(versions)}" if versions else "")
    return Panel(Group(*parts), title=title, title_align="left", subtitle=below, subtitle_align="left")


def _headline(live: dict[str, Any], figures: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    audited = live["audited_accuracy"]
    loss = live["certified_loss"]
    known = {
        "arrivals": f"[bold]{rate(live['rate'])}[/bold]",
        "answered": rate(live["answered_per_s"]),
        "turned away": _marked(rate(live["shed_per_s"]), live["shed_per_s"], "red"),
        "degraded": _marked(share(live["degraded"]), live["degraded"], "yellow"),
        "accuracy": share(live["predicted_accuracy"]),
        "audited": "–" if audited is None else f"{share(audited['value'])} ± {100 * audited['standard_error']:.1f}",
        "loss at most": "–" if loss is None else f"{100 * loss:.1f} points",
        "cost": "–" if live["cost"] is None else f"{live['cost']:,.4g} {escape(figures['cost_unit'])}",
    }
    words = list(known.items())
    for four in (words[:4], words[4:]):  # eight beside each other are too wide for a terminal of 80 columns
        table.add_row(*(f"[dim]{word}[/dim]" for word, _ in four))
        table.add_row(*(figure for _, figure in four))
    return table


def _bar(shares: dict[str, Figure]) -> Text:
    """Who answers, as one line of cells, by largest remainders so that it is always as long."""
    known = {name: value or 0.0 for name, value in shares.items()}
    whole = sum(known.values())
    if whole <= 0:
        return Text("no answers in the last ten seconds", style="dim")
    exact = {name: BAR_CELLS * value / whole for name, value in known.items()}
    cells = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda each: cells[each] - exact[each])[: BAR_CELLS - sum(cells.values())]:
        cells[name] += 1
    bar = Text()
    for place, count in enumerate(cells.values()):
        bar.append("█" * count, style=_shade(place))
    return bar


def _stages(live: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    columns = ("stage", "share", "price", "queue", "alive", "load", "capacity", "batch", "run", "wait")
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for place, (name, price) in enumerate(live["prices"].items()):
        capacity, ran, batch = live["capacity"][name], live["rows_per_s"][name], live["batch_rows"][name]
        table.add_row(
            f"[{_shade(place)}]■[/] {escape(name)}",
            share(live["shares"][name]),
            "[red]out[/red]" if price is None else f"{price:.3f}",
            f"{live['queue'][name]:,}",
            str(live["replicas"][name]) if live["replicas"][name] else "[red]0[/red]",
            share(ran / capacity) if capacity and ran is not None else "–",
            rate(capacity),
            "–" if batch is None else f"{batch:.1f}",
            seconds(live["run_s"][name]),
            seconds(live["queued_s"][name]),
        )
    return table


def _classes(classes: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("class", "answered", "degraded", "turned away"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for priority, each in classes.items():
        table.add_row(priority, rate(each["answered_per_s"]), share(each["degraded"]), rate(each["shed_per_s"]))
    return table


def _notes(live: dict[str, Any], routers: dict[str, Any]) -> list[RenderableType]:
    notes = []
    out = [name for name, count in live["replicas"].items() if not count]
    if out:
        notes.append(f"[red]no replica of {escape(', '.join(out))}: rows go past[/red]")
    if routers["answered"] < routers["expected"]:
        notes.append("[yellow]the figures are of the routers that answered, not of all[/yellow]")
    for each in routers["each"]:
        if each["problem"]:
            notes.append(f"[red]{escape(each['id'])} did not take an update up: {escape(each['problem'])}[/red]")
    notes.append(f"[dim]event loop behind by {seconds(live['lag_s'])}, prices {seconds(live['plan_age_s'])} old[/dim]")
    return list(map(Text.from_markup, notes))


def rate(value: Figure) -> str:
    """Rows a second."""
    return _known(value, lambda known: f"{known:,.1f}/s" if known < 9.95 and known % 1 else f"{known:,.0f}/s")


def share(value: Figure) -> str:
    """A share of 1 in percent."""
    return _known(value, lambda known: f"{100 * known:.1f} %")


def seconds(value: Figure) -> str:
    """A time, in the unit that suits it."""
    return _known(value, lambda known: f"{1000 * known:.1f} ms" if known < 0.9995 else f"{known:.1f} s")


def _known(value: Figure, write: Callable[[float], str]) -> str:
    return "–" if value is None else write(value)


def _marked(text: str, value: Figure, style: str) -> str:
    return f"[{style}]{text}[/{style}]" if value else text


def _shade(place: int) -> str:
    return SHADES[place % len(SHADES)]
