"""How long the offline tools take, and how much memory: calibrate, certify and frontier on tables of a large ladder.

    python benchmarks/offline.py [--rounds 3] [--quick]

Two tables are made up: 50,000 rows x 5 stages x 1,000 classes with probabilities, and 65,000 rows x 4 stages with
scores alone. For each, the three commands are run as a user runs them, one after the other and in processes of their own:
calibrate on one split, certify and frontier with that calibration on the other. Wall time and peak memory of each. Beside it
the start alone of a command that does nothing, which is in each of the three, and matplotlib's is in the frontier's figure.
"""

import argparse
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

LIMITS = {"probabilities": 60.0, "scores": 5.0}
"""Seconds that all three may take together."""
MEMORY_LIMIT_GIB = 4.0


def probabilities(path: Path, rows: int = 50_000, classes: int = 1000) -> None:
    """A table of five over-confident networks that find the same rows hard."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, rows)
    ease = random.normal(size=rows).astype(np.float32)
    arrays = header(labels, [f"net{k}" for k in range(5)])
    for k, strength in enumerate((2.4, 3.6, 4.5, 5.4, 6.0)):
        logits = random.normal(size=(rows, classes)).astype(np.float32)
        logits[np.arange(rows), labels] += np.float32(strength) + np.float32(1.5) * ease
        logits *= np.float32(1.3)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        arrays[f"probs/net{k}"] = logits
    np.savez(path, **arrays)


def scores(path: Path, rows: int = 65_000) -> None:
    """A table of four stages of which only a score and the rightness are known."""
    random = np.random.default_rng(1)
    arrays = header(np.zeros(rows, dtype=np.int64), [f"net{k}" for k in range(4)])
    difficulty = random.random(rows) ** 2
    for k, error in enumerate((0.9, 0.6, 0.3, 0.1)):
        right = 1 - error * difficulty
        arrays[f"correct/net{k}"] = random.random(rows) < right
        arrays[f"score/net{k}"] = np.clip(right + 0.05 * random.normal(size=rows), 0, 1)
    np.savez(path, **arrays)


def header(labels: np.ndarray, stages: list[str]) -> dict[str, np.ndarray]:
    return {
        "stages": np.array(stages),
        "cost": 10.0 ** np.arange(len(stages)),
        "cost_unit": np.array("MAC"),
        "labels": labels,
        "split": np.where(np.arange(len(labels)) % 2, "check", "fit"),
    }


def commands(table: Path, out: Path) -> dict[str, list[str]]:
    """What a user types."""
    fitted = ["--calibration", str(out / "calibration.json"), "--check-split", "check"]
    return {
        "calibrate": ["calibrate", str(table), "--split", "fit", "--out", str(out)],
        "certify": ["certify", str(table), *fitted, "--max-loss", "0.02", "--out", str(out / "certificate.json")],
        "frontier": ["frontier", str(table), *fitted, "--out", str(out / "frontier")],
    }


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak GiB of one command in a process of its own."""
    began = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "cascade.cli", *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"cascade {' '.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often; the median counts")
    parser.add_argument("--quick", action="store_true", help="tables of a tenth of the rows")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    print("| table | command | wall s | CPU s | peak GiB |\n|:--|:--|--:|--:|--:|")
    start = float(np.median([measured(["certify", "--help"])[0] for _ in range(arguments.rounds)]))
    print(f"| | start alone | {start:.1f} | | |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, make, rows in (("probabilities", probabilities, 50_000), ("scores", scores, 65_000)):
            table = Path(folder) / f"{name}.npz"
            # In a process of its own: a command's peak memory would otherwise count what this one has touched.
            maker = get_context("spawn").Process(target=make, args=(table, rows // share))
            maker.start()
            maker.join()
            seconds, peak = 0.0, 0.0
            for command, line in commands(table, Path(folder)).items():
                found = np.median([measured(line) for _ in range(arguments.rounds)], axis=0)
                print(f"| {name} | {command} | {found[0]:.1f} | {found[1]:.1f} | {found[2]:.2f} |", flush=True)
                seconds, peak = seconds + found[0], max(peak, found[2])
            verdict = "met" if seconds < LIMITS[name] and peak < MEMORY_LIMIT_GIB else "missed"
            wanted = f"wanted: {LIMITS[name]:g} s, {MEMORY_LIMIT_GIB:g} GiB: {verdict}"
            print(f"| {name} | all three | **{seconds:.1f}** | | {peak:.2f} ({wanted}) |", flush=True)
            print(f"| {name} | less three starts | {seconds - 3 * start:.1f} | | |", flush=True)
            table.unlink()


if __name__ == "__main__":
    main()
