"""The figure of a ladder design: models, chosen rungs, and what every further rung is worth. Computes nothing new."""

from typing import Any

from cascade.calibration.ladder import Design
from cascade.report.style import CASCADE, LIMIT, OTHER, pyplot


def ladder_figure(design: Design) -> Any:
    """Draw accuracy against cost with the chosen ladder, and the gain of the best ladder by number of rungs.

    Args:
        design: what to draw; see `cascade.calibration.ladder.design`.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.25, 1.0))
    _draw_models(left, design)
    _draw_gains(right, design)
    return figure


def _draw_models(axes: Any, design: Design) -> None:
    zoo, kept, rungs = design.zoo, design.kept, list(design.chosen.rungs)
    dominated = [k for k in range(len(zoo.names)) if k not in set(kept.tolist())]
    percent = 100 * zoo.accuracy
    axes.step(zoo.cost[kept], percent[kept], where="post", color=OTHER, lw=1.0, label="best model for the cost")
    axes.plot(zoo.cost[kept], percent[kept], "o", color=OTHER, ms=4)
    if dominated:
        axes.plot(zoo.cost[dominated], percent[dominated], "o", mfc="white", mec=OTHER, ms=4, label="dominated")
    axes.step(zoo.cost[rungs], percent[rungs], where="post", color=CASCADE, label="chosen ladder")
    axes.plot(zoo.cost[rungs], percent[rungs], "o", color=CASCADE, ms=8, zorder=4)
    for rung in rungs:
        # No stair is above and left of a rung. The first would leave the axes there, but has nothing below it.
        first = rung == rungs[0]
        place = (
            {"xytext": (5, -4), "ha": "left", "va": "top"} if first else {"xytext": (-5, 3), "ha": "right", "va": "bottom"}
        )
        axes.annotate(zoo.names[rung], (zoo.cost[rung], percent[rung]), textcoords="offset points", color="#444444", **place)
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel(f"cost ({zoo.cost_unit}, log scale)" if zoo.cost_unit else "cost (log scale)")
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.8, edgecolor="none")


def _draw_gains(axes: Any, design: Design) -> None:
    for ladders, sequential, color, label in (
        (design.by_router, False, LIMIT, "a router, at best"),
        (design.by_cascade, True, CASCADE, "a cascade, at best"),
    ):
        shown = ladders[: design.most]
        gains = [design.top_cost / (one.sequential_cost if sequential else one.router_cost) for one in shown]
        axes.plot(range(1, len(shown) + 1), gains, "o-", color=color, ms=5, label=label)
    chosen = design.chosen
    axes.plot(
        len(chosen.rungs),
        design.top_cost / chosen.sequential_cost,
        "*",
        ms=16,
        color=CASCADE,
        mec="white",
        zorder=5,
        label="chosen ladder",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.set_xlabel("number of rungs")
    axes.set_ylabel(f"times cheaper than {design.zoo.names[int(design.kept[-1])]} alone")
    axes.legend(loc="lower right", fontsize=9)
