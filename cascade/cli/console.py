"""What all commands share: the console, errors as exit codes, the progress bar, JSON for machines."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cascade.errors import CascadeError, ConfigError
from cascade.policy.routing import Routing

console = Console()
errors = Console(stderr=True)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Show what is wrong with the operator's files, without a traceback, and exit with 2."""
    try:
        yield
    except CascadeError as error:
        errors.print(f"[bold red]{error.title}[/bold red]")
        for line in error.detail.splitlines():
            errors.print(f"  {line}", markup=False, highlight=False)
        raise typer.Exit(2) from error


def narrow_table(title: str, legend: str | None = None) -> Table:
    """A table without lines, for many columns in a terminal of 80; title and legend are printed above it, never cut."""
    console.print(f"[italic]{escape(title)}[/italic]", highlight=False, soft_wrap=True)
    if legend is not None:
        console.print(f"[dim]{escape(legend)}[/dim]", highlight=False, soft_wrap=True)
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))


def progress_bar() -> Progress:
    """A bar for long work; on standard error, so that ``--json`` stays clean."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=not sys.stderr.isatty(),
    )


def read_routing(text: str) -> Routing:
    """What ``--routing`` says.

    Raises:
        ConfigError: nothing that there is.
    """
    for known in get_args(Routing):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"--routing: expected {' or '.join(get_args(Routing))}, got {text!r}")


def read_seconds(text: str, option: str) -> float:
    """Seconds from a time such as ``100ms``, ``0.1 s``, ``200us`` or ``0.1``.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)?\s*", text)
    if found is None:
        raise ConfigError(f"{option}: expected a time such as 100ms, 0.1s, 200us or 0.1, got {text!r}")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3}.get(found[2], 1.0)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside, and say it plainly if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def key_header() -> dict[str, str]:
    """The header that a server with keys wants from commands that ask it: the key is in the environment, CASCADE_KEY."""
    key = os.environ.get("CASCADE_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
