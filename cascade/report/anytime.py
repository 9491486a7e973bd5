"""What clients that watch see: whether answers get worse on the way, and how right an answer is by the time it is given.

Computed from judged rows and service times; knows no spec and no file. The figure, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.judged import JudgedTable
from cascade.calibration.watching import Seen
from cascade.report.style import CASCADE, LIMIT, OTHER, WARNING, pyplot

FALLS = (0.01, 0.1, 0.25, 0.5)
"""Falls of the true class's probability that are counted."""
NAMES = {"plain": "each stage's own answer", "steady": "steady", "best_so_far": "best so far", "product": "product"}
"""Rules as the page calls them."""


@dataclass(frozen=True)
class RuleSeen:
    """What is seen under one rule.

    Attributes:
        rule: its name in the spec.
        falls: share of the rows whose probability of the true class falls by more than each of `FALLS` between any two
            stages, where every row goes to the last.
        falls_walked: the same where rows stop at the spec's prices.
        accuracy: by stage, share of the rows that are shown right once it has answered or they have stopped before.
        confidence: mean probability of being right that is shown in the end; None where the rule has none.
    """

    rule: str
    falls: tuple[float, ...]
    falls_walked: tuple[float, ...]
    accuracy: tuple[float, ...]
    confidence: float | None


@dataclass(frozen=True)
class Anytime:
    """What is seen under every rule.

    Attributes:
        rows: rows counted.
        stages: names, cheapest first.
        done_s: by stage, seconds until it has answered a row that waits for nobody.
        alone_s: by stage, seconds of the stage alone, with those that it resumes.
        alone: by stage, its own accuracy.
        rules: every rule, in the order of `NAMES`.
    """

    rows: int
    stages: tuple[str, ...]
    done_s: tuple[float, ...]
    alone_s: tuple[float, ...]
    alone: tuple[float, ...]
    rules: tuple[RuleSeen, ...]

    def standard_error(self, share: float) -> float:
        """Of a share of the rows."""
        return float(np.sqrt(share * (1 - share) / self.rows))

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"falls_above": list(FALLS)}


def watch(
    judged: JudgedTable,
    labels: NDArray[np.int64],
    seen: Mapping[str, Seen],
    prices: Sequence[float],
    seconds: Sequence[float],
    alone_s: Sequence[float],
) -> Anytime:
    """Count what is seen of rows that nothing was fitted on.

    Args:
        judged: the rows.
        labels: [N] their true classes.
        seen: what is shown of them under each rule.
        prices: [S] prices at which they stop; nothing is loaded.
        seconds: [S] of each stage for one row, its way there and back included.
        alone_s: [S] the same from the inputs to each stage's answer without any other; more where it resumes others.
    """
    exits = judged.exits(prices)
    every, rows = range(len(judged.stages)), np.arange(judged.rows)
    rules = []
    for rule in NAMES:
        found = seen[rule]
        rules.append(
            RuleSeen(
                rule=rule,
                falls=tuple(found.violations(labels, tau) for tau in FALLS),
                falls_walked=tuple(found.violations(labels, tau, exits) for tau in FALLS),
                accuracy=tuple(float(found.right[rows, np.minimum(exits, stage)].mean()) for stage in every),
                confidence=None if found.confidence is None else float(found.confidence[rows, exits].mean()),
            )
        )
    return Anytime(
        rows=judged.rows,
        stages=judged.stages,
        done_s=tuple(np.cumsum(seconds).tolist()),
        alone_s=tuple(float(each) for each in alone_s),
        alone=tuple(judged.right.mean(axis=0).tolist()),
        rules=tuple(rules),
    )


def anytime_figure(found: Anytime) -> Any:
    """Draw accuracy against the time given.

    Args:
        found: what to draw.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots()
    done = 1e3 * np.array(found.done_s)
    ends = done[-1] * 1.6
    looks = {"steady": (CASCADE, "-"), "best_so_far": (WARNING, ":"), "product": (LIMIT, "--")}  # plain has steady's labels
    for each in found.rules:
        if each.rule in looks:
            color, style = looks[each.rule]
            accuracy = 100 * np.array([*each.accuracy, each.accuracy[-1]])
            axes.step([*done, ends], accuracy, where="post", color=color, ls=style, label=f"the ladder: {NAMES[each.rule]}")
    axes.plot(1e3 * np.array(found.alone_s), 100 * np.array(found.alone), "o", color=OTHER, ms=5, label="a stage alone")
    for name, alone_s, right in zip(found.stages, found.alone_s, found.alone, strict=True):
        axes.annotate(
            name, (1e3 * alone_s, 100 * right), textcoords="offset points", xytext=(6, -9), color="#444444", fontsize=9
        )
    axes.set_xscale("log")
    axes.set_xlabel("time given, ms (log scale)")
    axes.set_ylabel("right answers, %")
    axes.margins(y=0.12)
    axes.legend(loc="lower right", fontsize=9)
    return figure
