"""The figure of a frontier: accuracy against mean cost, the cascade between chance and the oracle. Computes nothing new."""

from typing import Any

import numpy as np

from cascade.calibration.frontier import Frontier
from cascade.report.style import CASCADE, LIMIT, OTHER, pyplot

LINE_POINTS = 200
"""Points of a line that is straight in cost and so curved on a logarithmic axis."""

LABELS = {"replace": "cascade, every stage for itself"}
"""What sweeps after the first are called."""


def frontier_figure(frontier: Frontier) -> Any:
    """Draw accuracy against mean cost on a logarithmic axis.

    Args:
        frontier: what to draw; see `cascade.calibration.frontier.frontier`.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots()
    main, judged = frontier.main, frontier.judged
    ends = (float(judged.paid[0]), float(judged.paid[-1]))

    def curve(cost: Any, accuracy: Any, **style: Any) -> None:
        """Points joined by lines that are straight in cost; flat after the last."""
        at = np.unique(np.concatenate([np.geomspace(*ends, LINE_POINTS), cost]))
        at = at[at >= np.min(cost)]
        axes.plot(at, 100 * np.interp(at, cost, accuracy), **style)

    curve(*frontier.router.frontier(sequential=False), color=LIMIT, lw=1.4, ls="--", label="oracle that picks one model")
    curve(*main.oracle.frontier(sequential=True), color=LIMIT, lw=1.4, label="oracle that walks the ladder")
    for (name, sweep), line in zip(frontier.sweeps.items(), ("-", (0, (4, 1.5)), ":", "-."), strict=False):
        costs, accuracies = [point.cost for point in sweep.best], [100 * point.accuracy for point in sweep.best]
        first = sweep is main
        label = "cascade, by price of cost" if first else LABELS.get(name, f"cascade, {name}")
        axes.plot(costs, accuracies, color=CASCADE, ls=line, lw=2.4 if first else 1.5, zorder=4 if first else 3, label=label)
    curve(*main.random, color=OTHER, lw=1.4, ls="-.", label="escalating at random")
    axes.plot(judged.alone, 100 * frontier.accuracy, "o", color=OTHER, ms=6, zorder=5, label="one model for everything")
    if frontier.operating is not None:
        point = frontier.operating
        star = {"ms": 17, "color": CASCADE, "mec": "white", "zorder": 6}
        axes.plot(point.cost, 100 * point.accuracy, "*", **star, label="cascade as configured, unloaded")
    axes.set_xscale("log")
    axes.margins(x=0.04, y=0.08)
    for name, cost, accuracy in zip(judged.stages, judged.alone, 100 * frontier.accuracy, strict=True):
        # Curves pass above a model and rise to its right: the free place is below, and inside the axes for the last one.
        last = name == judged.stages[-1]
        place = {"xytext": (10, -9), "ha": "right"} if last else {"xytext": (7, -5), "ha": "left"}
        axes.annotate(name, (cost, accuracy), textcoords="offset points", va="top", color="#444444", **place)
    axes.set_xlabel(f"mean cost of an answer ({judged.cost_unit}, log scale)")
    axes.set_ylabel(f"accuracy on {judged.rows:,} rows (%)")
    axes.legend(loc="lower right", fontsize=9, labelspacing=0.35)
    return figure
