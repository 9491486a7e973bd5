"""Whether a stage's confidence can be believed: confidence against accuracy on the rows that reach it, and the figure.

Knows judged rows and where they stop; no price, no file, no load.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cascade.calibration.judged import Floats, Walked
from cascade.calibration.scores import reliability
from cascade.report.style import CASCADE, OTHER, pyplot

BINS = 10
"""Bins of equal numbers of rows; fewer where a stage sees few rows."""
ROWS_A_BIN = 25
"""Rows that a bin should have at least: below, its accuracy says next to nothing."""
CELLS = 20
"""Cells of the histogram of confidences, of equal width."""


@dataclass(frozen=True, eq=False)
class StageReliability:
    """Confidence and accuracy of one stage on the rows that reach it, in B bins of equal mass."""

    stage: str
    """Its name."""
    rows: int
    """Rows that reach it."""
    confidence: Floats
    """[B] mean calibrated probability of being right."""
    accuracy: Floats
    """[B] share of the bin's rows served right."""
    low: Floats
    """[B] lower end of the accuracy's Wilson interval, 95 %."""
    high: Floats
    """[B] upper end."""
    count: NDArray[np.int64]
    """[B] rows of the bin."""
    histogram: NDArray[np.int64]
    """[`CELLS`] rows by confidence from 0 to 1."""
    ece: float
    """Expected calibration error: sum_b n_b |accuracy_b - confidence_b| / n. 0 without rows."""
    ece_by_chance: float
    """What a perfectly calibrated stage would show: sum_b n_b sqrt(2 p_b (1 - p_b) / (pi n_b)) / n, p_b its confidence.

    Mean distance of a binomial share from its expectation, in normal approximation: an ECE near it is noise."""

    @property
    def mean_confidence(self) -> float | None:
        """Over all rows; None without any."""
        return float(np.average(self.confidence, weights=self.count)) if self.rows else None

    @property
    def mean_accuracy(self) -> float | None:
        """Over all rows; None without any."""
        return float(np.average(self.accuracy, weights=self.count)) if self.rows else None

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stage": self.stage,
            "rows": self.rows,
            "ece": self.ece,
            "ece_by_chance": self.ece_by_chance,
            "confidence": self.confidence.tolist(),
            "accuracy": self.accuracy.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "count": self.count.tolist(),
        }


def stage_reliability(walked: Walked, bins: int = BINS) -> tuple[StageReliability, ...]:
    """Reliability of every stage on the rows that reach it.

    Rows that left earlier are not the stage's business: its probabilities were fitted for those that come.

    Args:
        walked: rows that nothing was fitted on, and where they stop.
        bins: how many bins to aim at, of at least `ROWS_A_BIN` rows each.
    """
    return tuple(_of_stage(walked, stage, bins) for stage in range(len(walked.judged.stages)))


def _of_stage(walked: Walked, stage: int, bins: int) -> StageReliability:
    judged = walked.judged
    reach = walked.visited[:, stage]
    p_correct, right = judged.p_correct[reach, stage], judged.served[reach, stage]
    rows = len(right)
    histogram, _ = np.histogram(p_correct, bins=CELLS, range=(0.0, 1.0))
    if not rows:
        none = np.zeros(0)
        empty = none.astype(np.int64)
        return StageReliability(judged.stages[stage], 0, none, none, none, none, empty, histogram, 0.0, 0.0)
    found = reliability(p_correct, right, max(1, min(bins, rows // ROWS_A_BIN)))
    hits = np.rint(found.accuracy * found.count).astype(np.int64)
    intervals = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(hits, found.count, strict=True)]
    spread = np.sqrt(2 * found.confidence * (1 - found.confidence) / (np.pi * found.count))
    return StageReliability(
        stage=judged.stages[stage],
        rows=rows,
        confidence=found.confidence,
        accuracy=found.accuracy,
        low=np.array([interval.low for interval in intervals]),
        high=np.array([interval.high for interval in intervals]),
        count=found.count,
        histogram=histogram.astype(np.int64),
        ece=found.ece,
        ece_by_chance=float(np.average(spread, weights=found.count)),
    )


def reliability_figure(found: StageReliability) -> Any:
    """Draw one stage: accuracy by confidence above, how many rows have which confidence below.

    Args:
        found: the stage.

    Returns:
        The matplotlib figure, for `cascade.report.style.save`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(3.4, 3.7), height_ratios=(3.2, 1))
    lowest = min(np.min(found.confidence, initial=1.0), np.min(found.low, initial=1.0))
    ends = (100 * max(0.0, float(lowest) - 0.06), 101.5)
    above.plot(ends, ends, color=OTHER, lw=1.0, ls="--", zorder=1)
    reach = np.clip([found.accuracy - found.low, found.high - found.accuracy], 0.0, None)
    above.errorbar(
        100 * found.confidence,
        100 * found.accuracy,
        yerr=100 * reach,
        fmt="o",
        color=CASCADE,
        ms=4.5,
        lw=1.2,
        capsize=2,
    )
    above.set_ylim(*ends)
    above.set_ylabel("right, %")
    above.set_title(f"{found.stage}: {found.rows:,} rows, ECE {found.ece:.1%}", loc="left", fontsize=10)
    edges = np.linspace(0, 100, CELLS + 1)
    below.stairs(100 * found.histogram / max(found.rows, 1), edges, fill=True, color=CASCADE, alpha=0.45)
    below.set_ylabel("rows, %")
    below.set_xlabel("confidence, %")
    below.set_xlim(*ends)
    figure.align_ylabels()
    return figure
