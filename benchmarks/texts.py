"""What a text costs by how a batch is cut: rows of like length run in groups, see `cascade.models.text.chunks`.

    python -m benchmarks.texts [SPEC] [--rows 16] [--tokens 48 96 160 256 512] [--rounds 9]

One process, one thread. In each round every setting runs the same batches of random calibration rows through all segments of
the ladder's network; what counts are the ratios within a round.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from cascade.loading import load_chain
from cascade.models import text
from cascade.rows import read_rows
from cascade.spec import Ladder
from cascade.spec_exits import chains

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "deployments" / "sentiment" / "cascade.yaml"
BATCHES = 8
UNCUT = 1 << 30


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path, default=SPEC)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16], help="rows of a batch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[48, 96, 160, 256, 512], help="of a group")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ladder = Ladder.read(arguments.spec)
    chain = next(chain for chain in chains(ladder.spec.stages) if len(chain) > 1)
    segments = load_chain(ladder, chain)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.calibration))
    count = len(next(iter(inputs.values())))
    rng = np.random.default_rng(0)
    settings = [UNCUT, *arguments.tokens]
    names = [ladder.spec.stages[index].name for index in chain]
    print("| rows | tokens at a time | " + " | ".join(f"{name}, ms a row" for name in names) + " | all | uncut takes |")
    print("|--:|--:|" + "--:|" * (len(names) + 2))
    for rows in arguments.rows:
        took = np.zeros((arguments.rounds, len(settings), len(segments)))
        for each in range(arguments.rounds):
            picks = [rng.choice(count, rows, replace=False) for _ in range(BATCHES)]
            for setting in rng.permutation(len(settings)):
                cut = settings[setting]
                with patch.object(text, "CHUNK_TOKENS", cut):
                    for chosen in picks:
                        going = {name: array[chosen] for name, array in inputs.items()}
                        marks = [time.perf_counter()]
                        for segment in segments:
                            going = segment.run(going).state or {}
                            marks.append(time.perf_counter())
                        took[each, setting] += [1e3 * (b - a) / (rows * BATCHES) for a, b in pairwise(marks)]
        whole = took.sum(axis=2)
        for setting, cut in enumerate(settings):
            ratios = np.sort(whole[:, 0] / whole[:, setting])
            each = " | ".join(f"{value:.2f}" for value in np.median(took[:, setting], axis=0))
            print(
                f"| {rows} | {'all' if cut == UNCUT else cut} | {each} | {np.median(whole[:, setting]):.2f} | "
                f"x{np.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |"
            )


if __name__ == "__main__":
    main()
