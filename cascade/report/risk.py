"""The figure of a certificate: what is lost along the path of prices, and the bounds of it. Computes nothing new."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cascade.calibration.certificate import Certificate, PathPoint
from cascade.report.style import CASCADE, LIMIT, OTHER, WARNING, pyplot

TICKS = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 70, 100)
"""Losses, in percent, that are worth a line."""


def point_at(certificate: Certificate, prices: Sequence[float]) -> PathPoint | None:
    """The point of the path with exactly these prices; None where there is none.

    Args:
        certificate: holds the path.
        prices: [S] price of a visit to each stage; the first is not used.
    """
    wanted = tuple(prices)[1:]
    return next((point for point in certificate.path if point.prices[1:] == wanted), None)


def risk_figure(certificate: Certificate, base_prices: Sequence[float]) -> Any:
    """Draw loss against the mean cost of an answer, bold prices on the left; the axis of losses is stretched near 0.

    Args:
        certificate: the bounds; see `cascade.calibration.certify.certify`.
        base_prices: [S] prices of the spec, to be marked if they are on the path.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots()
    path, sure = certificate.path, f"{1 - certificate.delta:.4g}"
    cost = np.array([point.cost for point in path])
    below = 100 * np.array([point.bound_below for point in path])
    axes.plot(cost, below, color=LIMIT, lw=1.4, ls="--", label="bound for these and all lower prices, mixed at will")
    axes.plot(cost, [100 * point.bound for point in path], color=LIMIT, lw=1.6, label="bound at exactly these prices")
    axes.plot(cost, [100 * point.loss for point in path], color=CASCADE, lw=2.2, label="lost on the test rows")
    axes.axhline(100 * certificate.max_loss, color=WARNING, lw=1.0, ls=":")
    # On the left, at bold prices, every curve is far above the line, or the line is above every curve: its label is free.
    axes.annotate(
        f"asked for: at most {100 * certificate.max_loss:.3g} %",
        (0.0, 100 * certificate.max_loss),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=WARNING,
        fontsize=9,
    )
    chosen = None if certificate.chosen is None else path[certificate.chosen]
    own = point_at(certificate, base_prices)
    if chosen is not None:
        mark = {"ms": 9, "mfc": "white", "mec": CASCADE, "mew": 2, "ls": "", "zorder": 5}
        axes.plot(chosen.cost, 100 * chosen.loss, "o", label=f"cheapest certified point, confidence {sure}", **mark)
    if own is not None:
        star = {"ms": 14, "color": CASCADE, "mec": "white", "ls": "", "zorder": 6}
        axes.plot(own.cost, 100 * own.loss, "*", label="prices of the spec", **star)
    axes.set_xscale("log")
    top = 1.08 * float(below.max())
    # Losses of interest are far below those at the bold end; a square root shows both, and 0 as well.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0.0)), np.square))
    axes.set_ylim(0.0, top)
    axes.set_yticks([0, *(tick for tick in TICKS if tick <= top)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"mean cost of an answer ({certificate.cost_unit}, log scale)")
    axes.set_ylabel(f"lost, % of {certificate.rows:,} rows")
    axes.legend(loc="upper right", fontsize=9)
    axes.tick_params(axis="x", which="minor", color=OTHER)
    return figure
