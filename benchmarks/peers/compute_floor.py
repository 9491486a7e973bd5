"""The floor of compute: the same batches through the same networks by the same rule, in a bare loop, no server.

One process, one torch thread. Prints a JSON object: for each batch size the rows a second and the cores used, of which the
networks alone took how much. Knows `Predict` and a clock.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import orjson

from benchmarks.peers.predict import Predict
from cascade.rows import read_rows
from cascade.spec import Ladder


def measure(predict: Predict, images: np.ndarray, batch: int, warm_s: float, seconds: float) -> dict[str, float]:
    """Run batches for a while.

    Args:
        predict: the cascade.
        images: rows, taken in turn, uint8 [n, 28, 28].
        batch: rows at a time.
        warm_s: seconds before the window.
        seconds: length of the window.

    Returns:
        ``batch``, ``throughput`` (rows a second), ``p50_ms`` and ``p99_ms`` of a batch, ``cpu_ms`` a row and ``cores``.
    """
    starts = range(0, len(images) - batch + 1, batch)
    for warming in (True, False):
        until = time.perf_counter() + (warm_s if warming else seconds)
        durations = []
        opened, cpu = time.perf_counter(), time.process_time()
        turn = 0
        while (before := time.perf_counter()) < until:
            start = starts[turn % len(starts)]
            predict(images[start : start + batch])
            durations.append(time.perf_counter() - before)
            turn += 1
        elapsed, spent = time.perf_counter() - opened, time.process_time() - cpu
    rows = batch * len(durations)
    p50_ms, p99_ms = np.quantile(durations, (0.5, 0.99)) * 1e3
    return {
        "batch": batch,
        "throughput": rows / elapsed,
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
        "cpu_ms": 1e3 * spent / rows,
        "cores": spent / elapsed,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    ladder = Ladder.read(options.spec)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    images = inputs[ladder.spec.inputs[0].name][: options.rows]
    predict = Predict(options.spec)
    found = predict(images)
    points = [measure(predict, images, batch, options.warm_s, options.seconds) for batch in options.batches]
    document = {"labels": found.labels.tolist(), "stages": found.stages.tolist(), "points": points}
    print(orjson.dumps(document).decode())


if __name__ == "__main__":
    main()
