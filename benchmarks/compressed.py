"""Do compressed rungs earn a place in the image ladder? Makes them one by one, measures all together, designs ladders.

    python -m benchmarks.compressed rows --data DIR            # training rows from the Debian package dataset-fashion-mnist
    python -m benchmarks.compressed make STAGE METHOD          # one variant; made.json knows what there is
    python -m benchmarks.compressed measure                    # every stage and variant over calibration and test rows
    python -m benchmarks.compressed report                     # which make the best ladder, by measured seconds

The same steps as `cascade compress`, cut up so that each is a few minutes and can be had again by itself. Nothing of what it
writes is committed; --out names the folder (default: scratch/compressed).

The report runs no model. It chooses ladders on the calibration rows, by the exact sequential oracle at measured seconds as
`cascade ladder` does, and by what the policy makes of them: fitted on one half of these rows, walked on the other.
What it then prints is measured on the test rows, with everything fitted on all calibration rows.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.calibration.fitting import fit
from cascade.calibration.frontier import Sweep, sweep
from cascade.calibration.judging import fit_and_judge, judge_table
from cascade.calibration.ladder import MOST_EXACT, Zoo, best_exact_ladders, design
from cascade.calibration.outcomes import OutcomeTable

LADDER = Path("deployments/fashion/cascade.yaml")
TRAINED = 12_000
"""Training rows that are used: the first so many of those that trained the ladder."""
STUDENTS = {"medium": "small", "large": "medium"}
MINUTES = 1.2
"""Of the CPU, for each training."""
POINTS = 120
SHARES = (0.5, 0.7, 0.85, 1.0)
"""Costs at which ladders are compared, as parts of what the shipped ladder needs for its best accuracy."""


def trainer() -> ModuleType:
    """The script that trained the ladder, for its reader of the data."""
    spec = importlib.util.spec_from_file_location("train", LADDER.parent / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


def rows(data: Path, out: Path) -> None:
    """Write training rows as `cascade compress --rows` reads them."""
    image, label = trainer().read_rows(data, "train")
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "training.npz", image=image[:TRAINED].numpy(), labels=label[:TRAINED].numpy())


def make(stage: str, method: str, out: Path) -> None:
    """Make one variant, and note it."""
    from rich.progress import Progress

    from cascade.compressing import make_variant, student_of, training_rows
    from cascade.models.compress import How, Method
    from cascade.models.distil import Training
    from cascade.spec import Ladder

    ladder = Ladder.read(LADDER)
    (parent,) = (each for each in ladder.spec.stages if each.name == stage)
    given, left_out = training_rows(ladder, out / "training.npz")
    how = How(
        student=student_of(ladder, STUDENTS[stage], {}),
        distilling=Training(epochs=20, seconds=60 * MINUTES),
        mending=Training(epochs=20, seconds=60 * MINUTES, rate=1e-3),
    )
    with Progress() as bar:
        task = bar.add_task(f"{stage}-{method}", total=1.0)
        made = make_variant(
            ladder,
            parent,
            Method(method),
            how,
            given,
            out,
            progress=lambda what, share: bar.update(task, completed=share, description=what),
        )
    known = noted(out)
    document = {"stage": made.stage.model_dump(mode="json"), "parent": stage, "method": method, "note": made.variant.note}
    known[made.stage.name] = document
    (out / "made.json").write_text(json.dumps(known, indent=2) + "\n")
    print(f"{made.stage.name}: {made.variant.note or 'made'}; {left_out} rows left out")


def noted(out: Path) -> dict[str, Any]:
    """What was made so far."""
    path = out / "made.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def some_rows(ladder: Any, rows: int, out: Path) -> Any:
    """The ladder with the first so many rows of its data files."""
    from cascade.spec import DataSpec, Ladder

    names = {}
    for split in ("calibration", "test"):
        with np.load(ladder.path(getattr(ladder.spec.data, split))) as arrays:
            np.savez(out / f"{split}-{rows}.npz", **{name: arrays[name][:rows] for name in arrays.files})
        names[split] = str((out / f"{split}-{rows}.npz").resolve())
    return Ladder(ladder.spec.model_copy(update={"data": DataSpec(**names)}), ladder.root)


def measure_all(out: Path, rows: int) -> None:
    """Run and time everything, on the first so many rows of each split."""
    from rich.progress import Progress

    from cascade.compressing import Made
    from cascade.models.compress import Method, Variant
    from cascade.rungs import measure, write
    from cascade.spec import Ladder, StageSpec

    made = [
        Made(
            StageSpec.model_validate(each["stage"]),
            each["parent"],
            Variant(Method(each["method"]), each["stage"]["model"]["factory"], {}, {}, note=each["note"]),
        )
        for each in noted(out).values()
    ]
    with Progress() as bar:
        task = bar.add_task("measure", total=1.0)
        found = measure(
            some_rows(Ladder.read(LADDER), rows, out),
            made,
            test=True,
            progress=lambda what, share: bar.update(task, completed=share, description=what),
        )
    write(found, out)
    (out / "rungs.json").write_text(json.dumps([rung.document() for rung in found.rungs], indent=2) + "\n")


def part(table: OutcomeTable, stages: Sequence[str]) -> OutcomeTable:
    """The table of some of its stages."""
    arrays = table.arrays()
    chosen = [stage in stages for stage in table.stages]
    arrays["stages"], arrays["cost"] = arrays["stages"][chosen], arrays["cost"][chosen]
    dropped = [stage for stage in table.stages if stage not in stages]
    return OutcomeTable.from_arrays({k: v for k, v in arrays.items() if k.partition("/")[2] not in dropped})


def walked(calibration: OutcomeTable, test: OutcomeTable, stages: Sequence[str]) -> Sweep:
    """The frontier of a ladder on the test rows, everything fitted on the calibration rows."""
    own = part(calibration, stages)
    prices = 0.01 * own.cost / own.cost[-1]
    fitted = fit(own, dict.fromkeys(own.stages, "table"), ladder="compressed", prices=prices)
    return sweep(judge_table(part(test, stages), fitted), POINTS)


def area(swept: Sweep, costs: NDArray[np.float64]) -> float:
    """Mean accuracy over costs."""
    return float(swept.accuracy_at(costs).mean())


def report(out: Path) -> None:
    """Print what was measured and which ladders that makes."""
    calibration, test = (OutcomeTable.read(out / name) for name in ("outcomes.npz", "test-outcomes.npz"))
    measured = {rung["stage"]["name"]: rung for rung in json.loads((out / "rungs.json").read_text())}
    print(
        "| rung | µs a row | 1 row, ms | faster than parent | accuracy, calibration | change, points | test | MB | verdict |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|--:|:--|")
    for name, rung in measured.items():
        faster, change = "", ""
        if rung["parent"]:
            faster = f"{rung['speed']:.2f} ± {rung['speed_se']:.2f}"
            change = f"{100 * rung['accuracy_change']:+.2f} ± {100 * rung['accuracy_change_se']:.2f}"
        print(
            f"| {name} | {1e6 * rung['seconds_a_row']:.3g} | {1e3 * rung['one_row']['median_s']:.3g} | {faster} | "
            f"{100 * rung['accuracy']:.2f} | {change} | {100 * test.correct(name).mean():.2f} | "
            f"{rung['bytes'] / 1e6:.2f} | {rung['verdict']} |"
        )
    shipped = [name for name, rung in measured.items() if rung["parent"] is None]
    zoo = Zoo.of_table(calibration)
    found = design(zoo)
    kept = [zoo.names[k] for k in found.kept]
    print(f"\nnot dominated (faster or more accurate than every other): {', '.join(kept)}")
    print(f"best ladder from accuracies and seconds alone: {' '.join(zoo.names[k] for k in found.chosen.rungs)}")
    of_kept = Zoo.of_table(part(calibration, kept)) if len(kept) <= MOST_EXACT else zoo
    if len(of_kept.names) <= MOST_EXACT:
        for ladder in best_exact_ladders(of_kept, sequential=True, most=6):
            names = " ".join(of_kept.names[k] for k in ladder.rungs)
            print(f"  row by row, {len(ladder.rungs)} rungs: {names}, {1e6 * ladder.cost:.3g} µs for the oracle")

    # What the policy makes of them: all ladders over the models that are not dominated which end with one of the two best.
    top = sorted(kept, key=lambda name: measured[name]["accuracy"])[-2:]
    base = walked(calibration, test, shipped)
    costs = np.array(SHARES) * base.most_accurate.cost
    scored: list[tuple[float, list[str]]] = []
    candidates = [shipped]
    for size in range(2, 7):
        for names in combinations(kept, size):
            if names[-1] in top:
                candidates.append(list(names))
    for number, names in enumerate(candidates):
        print(f"{number + 1}/{len(candidates)}", end="\r", file=sys.stderr)
        _, judged = fit_and_judge(part(calibration, names), prices=None)
        scored.append((area(sweep(judged, 60), costs), names))
    scored.sort(key=lambda each: -each[0])
    print(f"\n{len(candidates)} ladders, fitted on one half of the calibration rows, ranked on the other; on the test rows:")
    print("| ladder | " + " | ".join(f"at {1e6 * cost:.0f} µs" for cost in costs) + " | best | its µs | on calibration |")
    print("|:--|" + "--:|" * (len(costs) + 3))
    shown = scored[:5]
    shown += [each for each in scored if each[1] == shipped and each not in shown]
    for value, names in shown:
        swept = walked(calibration, test, names)
        at = swept.accuracy_at(costs)
        most = swept.most_accurate
        note = " (shipped)" if names == shipped else ""
        cells = " | ".join(f"{100 * a:.2f}" for a in at)
        print(
            f"| {' '.join(names)}{note} | {cells} | {100 * most.accuracy:.2f} | {1e6 * most.cost:.0f} | {100 * value:.2f} |"
        )


def main() -> int:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("rows", "make", "measure", "report"))
    parser.add_argument("what", nargs="*", help="make: stage and method")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--rows", type=int, default=10_000, help="measure: rows of each split, at most")
    parser.add_argument("--out", type=Path, default=Path("scratch/compressed"))
    chosen = parser.parse_args()
    if chosen.step == "rows":
        rows(chosen.data, chosen.out)
    elif chosen.step == "make":
        make(*chosen.what, chosen.out)
    elif chosen.step == "measure":
        measure_all(chosen.out, chosen.rows)
    else:
        report(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
