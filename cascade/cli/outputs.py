"""What ``--out STEM`` writes, a figure and its numbers, and how costs and their ratios are shown. Knows no command."""

from pathlib import Path
from typing import Any

import orjson

from cascade.cli.console import console
from cascade.errors import ConfigError
from cascade.report.style import save


def write_outputs(stem: Path, figure: Any, document: Any) -> list[Path]:
    """Write STEM.svg, STEM.png and STEM.json.

    Args:
        stem: path without suffix; a suffix is replaced.
        figure: the matplotlib figure.
        document: plain values.

    Raises:
        ConfigError: a file cannot be written.
    """
    paths = [*save(figure, stem), stem.with_suffix(".json")]
    try:
        paths[-1].write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise ConfigError(f"{paths[-1]}: cannot be written: {error.strerror or error}") from error
    return paths


def say_written(paths: list[Path]) -> None:
    """Tell a person which files there are now."""
    console.print(f"wrote {', '.join(map(str, paths))}", highlight=False, markup=False, soft_wrap=True)


def amount(cost: float) -> str:
    """A cost for a person: whole where it is large, four digits where it is not."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def times(ratio: float) -> str:
    """A ratio of costs for a person."""
    return f"x{ratio:,.0f}" if ratio >= 100 else f"x{ratio:.3g}"
