"""One look for every figure: colours by role, fonts, how a figure is saved. Knows no data.

matplotlib comes with the extra ``plots`` and is imported here, when a figure is wanted, and nowhere else.
"""

from pathlib import Path
from typing import Any

from cascade.errors import ConfigError

CASCADE = "#0b6e4f"
"""What cascade does."""
LIMIT = "#1f4e8c"
"""What nothing can exceed: an oracle, a physical limit."""
OTHER = "#8a8a8a"
"""What it is compared with."""
WARNING = "#b5482a"
"""What is broken or not covered."""
STAGES = ("#c7d9c3", "#8fbf9f", "#56a083", "#2b7f68", "#0b5d4f", "#083f3a")
"""Stages, cheapest first; repeated when there are more."""


def pyplot() -> Any:
    """matplotlib.pyplot, drawing without a display, in this project's look.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'cascade-serve[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 4.2),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "font.size": 10,
            "svg.hashsalt": "cascade",
            "svg.fonttype": "path",
        }
    )
    return plt


def save(figure: Any, path: Path | str) -> list[Path]:
    """Write a figure as SVG and as PNG beside it, and close it; the same data gives the same bytes.

    Args:
        figure: the matplotlib figure.
        path: where; its suffix is replaced by ``.svg`` and ``.png``.

    Raises:
        ConfigError: a file cannot be written.
    """
    paths = [Path(path).with_suffix(suffix) for suffix in (".svg", ".png")]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    pyplot().close(figure)
    return paths
