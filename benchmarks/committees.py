"""Do cheap models that vote make better rungs than the same models in turn? Offline, on a ladder's two outcome tables.

    python -m benchmarks.committees [LADDER] [--json FILE]

A committee is one stage made of several: its posterior is the mean of theirs at their own temperatures, its cost the sum of
theirs (`cascade.models.ensemble`). Every ladder below is fitted on the calibration rows by `cascade.calibration.fitting` and
walked on the test rows at 120 points of its price path; at a cost, accuracies are read off the line through its best points.
The last table asks whether the share of members that agree tells more about the gain of going on than confidence does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.fitting import fit
from cascade.calibration.frontier import Sweep, sweep
from cascade.calibration.gain_model import fit_logistic_gain
from cascade.calibration.gains import fit_gain
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import fit_temperature, log_probabilities
from cascade.policy.gain import evidence_features

Floats = NDArray[np.float64]
COSTS = (5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7)
FOLDS = 5
POINTS = 120


def posteriors(table: OutcomeTable, like: OutcomeTable) -> dict[str, Floats]:
    """Calibrated posteriors of every stage, by temperatures fitted on another table."""
    found = {}
    for stage in table.stages:
        temperature = fit_temperature(log_probabilities(like.probs(stage)), like.labels).temperature
        scaled = log_probabilities(table.probs(stage)) / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        weights = np.exp(scaled)
        found[stage] = weights / weights.sum(axis=1, keepdims=True)
    return found


def with_stages(table: OutcomeTable, probs: dict[str, Floats], stages: Sequence[tuple[str, ...]]) -> OutcomeTable:
    """The table of a ladder whose stages are single models or committees of several."""
    cost = dict(zip(table.stages, table.cost.tolist(), strict=True))
    names = ["+".join(members) for members in stages]
    arrays: dict[str, Any] = {
        "stages": np.array(names),
        "cost": np.array([sum(cost[member] for member in members) for members in stages]),
        "cost_unit": np.array(table.cost_unit),
        "labels": table.labels,
    }
    for name, members in zip(names, stages, strict=True):
        arrays[f"probs/{name}"] = np.mean([probs[member] for member in members], axis=0)
    return OutcomeTable.from_arrays(arrays)


def ladders(stages: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """The ladder as it is, and every ladder in which one committee of two or three neighbours takes their place or joins."""
    plain = [(stage,) for stage in stages]
    found = [plain]
    for size in (2, 3):
        for start in range(len(stages) - size + 1):
            committee = tuple(stages[start : start + size])
            found.append([*plain[:start], committee, *plain[start + size :]])
            # The members but the dearest stay before it: the committee asks them again, and costs that.
            found.append([*plain[: start + size - 1], committee, *plain[start + size :]])
    unique: list[list[tuple[str, ...]]] = []
    for each in found:
        if each not in unique and len(each) > 1:
            unique.append(each)
    return unique


def swept(calibration: OutcomeTable, test: OutcomeTable, price_per_cost: float) -> Sweep:
    """The frontier of a ladder on rows that it was not fitted on."""
    digests = dict.fromkeys(calibration.stages, "table")
    fitted = fit(calibration, digests, ladder="committees", prices=price_per_cost * calibration.cost)
    return sweep(judge_table(test, fitted), POINTS)


def agreement(table: OutcomeTable, probs: dict[str, Floats], members: Sequence[str], dearer: str) -> dict[str, float]:
    """Squared errors, out of sample, of gains of a dearer stage over a committee: by confidence, learned, with agreement."""
    mean = np.mean([probs[member] for member in members], axis=0)
    predicted = mean.argmax(axis=1)
    share = np.mean([probs[member].argmax(axis=1) == predicted for member in members], axis=0)
    difference = table.correct(dearer).astype(np.float64) - (predicted == table.labels)
    features = evidence_features(mean, None)
    wider = np.column_stack([features, share])
    confidence = mean.max(axis=1)
    fold = np.random.default_rng(0).permutation(len(share)) % FOLDS
    errors: dict[str, list[Floats]] = {"confidence": [], "learned": [], "learned, agreement": []}
    for held_out in range(FOLDS):
        test, train = fold == held_out, fold != held_out
        predictions = {
            "confidence": fit_gain(confidence[train], difference[train], folds=0).curve(confidence[test]),
            "learned": fit_logistic_gain(features[train], difference[train])(features[test]),
            "learned, agreement": fit_logistic_gain(wider[train], difference[train])(wider[test]),
        }
        for name, prediction in predictions.items():
            errors[name].append(np.square(difference[test] - prediction))
    joined = {name: np.concatenate(parts) for name, parts in errors.items()}
    found = {name: float(each.mean()) for name, each in joined.items()}
    for name in ("learned", "learned, agreement"):
        change = joined[name] - joined["confidence"]
        found[f"{name}, change"] = float(change.mean())
        found[f"{name}, change se"] = float(change.std() / np.sqrt(len(change)))
    return found


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", nargs="?", type=Path, default=Path("deployments/fashion"))
    parser.add_argument("--price-per-cost", type=float, default=1e-9)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    folder = chosen.ladder / "calibration"
    calibration, test = (OutcomeTable.read(folder / name) for name in ("outcomes.npz", "test-outcomes.npz"))
    own, other = posteriors(calibration, calibration), posteriors(test, calibration)
    costs = [cost for cost in COSTS if calibration.cost[0] < cost < calibration.cost.sum()]
    document: dict[str, Any] = {"costs": costs, "ladders": [], "agreement": []}
    print(f"accuracy on {test.rows:,} test rows, %, at a mean cost of so many {test.cost_unit}")
    print(f"{'ladder':<46}" + "".join(f"{cost:>9.0e}" for cost in costs) + f"{'best':>9}")
    for number, stages in enumerate(ladders(calibration.stages)):
        print(f"{number}", end="\r", file=sys.stderr)
        made = swept(with_stages(calibration, own, stages), with_stages(test, other, stages), chosen.price_per_cost)
        at = made.accuracy_at(np.array(costs))
        name = " ".join("+".join(members) for members in stages)
        print(f"{name:<46}" + "".join(f"{100 * a:9.2f}" for a in at) + f"{100 * made.most_accurate.accuracy:9.2f}")
        most = made.most_accurate
        document["ladders"].append(
            {"stages": name, "accuracy": at.tolist(), "best": most.accuracy, "best_cost": most.cost, "se": most.accuracy_se}
        )
    print("\nsquared error of the gain of the next stage, 5-fold on the calibration rows; change against confidence alone")
    for size in (2, 3):
        for last in range(size - 1, len(calibration.stages) - 1):
            members = calibration.stages[last - size + 1 : last + 1]
            found = agreement(calibration, own, members, calibration.stages[last + 1])
            document["agreement"].append({"members": members, **found})
            print(
                f"{'+'.join(members):<24}{found['confidence']:.4f}"
                + "".join(
                    f"  {name} {1e4 * found[f'{name}, change']:+6.1f} ± {1e4 * found[f'{name}, change se']:.1f} e-4"
                    for name in ("learned", "learned, agreement")
                )
            )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
