"""Draws docs/figures/ladder.svg: accuracy against cost of the shipped ladder on its test rows, beside each single model.

The rows walk the ladder by the policy's own functions, unloaded: on while the value of going on exceeds the price.

    cascade profile deployments/fashion/cascade.yaml --split test --out deployments/fashion/calibration/test-outcomes.npz
    python docs/figures/ladder.py [OUT]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from cascade.calibration.artefact import Calibration
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import log_probabilities
from cascade.policy.gain import Curve, Judge
from cascade.policy.price import continuation_value
from cascade.spec import Ladder

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "deployments" / "fashion" / "cascade.yaml"
TABLE = SPEC.parent / "calibration" / "test-outcomes.npz"
OUT = Path(__file__).with_suffix(".svg")


def exits(table: OutcomeTable, calibration: Calibration, prices: Sequence[float] | NDArray[np.float64]) -> NDArray[np.intp]:
    """Stage at which every row of the table leaves at these prices, [N]."""
    last = len(table.stages) - 1
    exit_stage = np.full(table.rows, last)
    going = np.ones(table.rows, dtype=bool)
    for index, fitted in enumerate(calibration.stages[:-1]):
        judge = Judge(
            fitted.temperature,
            Curve.of(fitted.p_correct.x, fitted.p_correct.y),
            tuple(Curve.of(gain.x, gain.y) for gain in fitted.gains.values()),
        )
        gains = judge(log_probabilities(table.probs(fitted.name))).gains
        value = continuation_value(gains, index, range(index + 1, last + 1), prices)
        leaves = going & (value <= prices[index + 1])
        exit_stage[leaves] = index
        going &= ~leaves
    return exit_stage


def accuracy_and_cost(table: OutcomeTable, exit_stage: NDArray[np.intp]) -> tuple[float, float]:
    """Share of rows answered right, and mean cost of all stages that a row ran on."""
    correct = np.stack([table.correct(stage) for stage in table.stages], axis=1)
    right = correct[np.arange(table.rows), exit_stage].mean()
    return float(right), float(np.cumsum(table.cost)[exit_stage].mean())


def main(out: Path) -> None:
    """Draw the figure, and print the numbers that are in it."""
    plt.switch_backend("Agg")
    ladder = Ladder.read(SPEC)
    table = OutcomeTable.read(TABLE)
    calibration = Calibration.read(ladder.calibration_path)
    base = ladder.spec.base_prices
    curve = []
    for price_per_cost in (0.0, *np.geomspace(1e-11, 1e-5, 60)):
        curve.append(accuracy_and_cost(table, exits(table, calibration, price_per_cost * table.cost)))
    shipped_exits = exits(table, calibration, base)
    shipped = accuracy_and_cost(table, shipped_exits)
    singles = [(name, float(table.correct(name).mean()), cost) for name, cost in zip(table.stages, table.cost, strict=True)]

    figure, axes = plt.subplots(figsize=(7.2, 4.2), constrained_layout=True)
    axes.plot(
        [cost for _, cost in curve],
        [100 * right for right, _ in curve],
        color="#0b6e4f",
        lw=2.2,
        label="cascade, by price of cost",
    )
    axes.plot(shipped[1], 100 * shipped[0], "*", ms=17, color="#0b6e4f", mec="white", label="cascade as shipped, unloaded")
    axes.plot(
        [s[2] for s in singles],
        [100 * s[1] for s in singles],
        "o--",
        color="#8a8a8a",
        lw=1,
        label="one model for everything",
    )
    for name, right, cost in singles:
        axes.annotate(name, (cost, 100 * right), xytext=(7, -13), textcoords="offset points", color="#555555")
    axes.set_xscale("log")
    axes.set_xlabel("mean cost of an answer (multiply-accumulates, log scale)")
    axes.set_ylabel("accuracy on 10,000 test images (%)")
    axes.margins(y=0.1)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})

    for name, right, cost in singles:
        print(f"{name:8} {right:8.2%}  {cost:14,.0f}")
    top = singles[-1]
    shares = np.bincount(shipped_exits, minlength=len(base)) / table.rows
    print(f"shipped  {shipped[0]:8.2%}  {shipped[1]:14,.0f}  ({top[2] / shipped[1]:.1f} times cheaper than {top[0]})")
    print("exits    " + ", ".join(f"{name} {share:.1%}" for name, share in zip(table.stages, shares, strict=True)))
    best = max(curve)
    print(f"best of the curve {best[0]:.2%} at {best[1]:,.0f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
