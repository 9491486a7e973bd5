"""mosec with the cascade in its worker's forward: its own batches, raw bodies in, a small JSON object out.

Runs in the environment of mosec, whose server is a Rust process that speaks to Python workers over Unix sockets. Knows its
API and `Predict`; measures nothing.
"""

import argparse
import os
import sys

import numpy as np
from mosec import Server, Worker

from benchmarks.peers.predict import Predict
from benchmarks.peers.settings import SPEC

TIMEOUT_MS = 60_000


class CascadeWorker(Worker):
    """Loads the ladder and answers batches."""

    def __init__(self) -> None:
        super().__init__()
        self._predict = Predict(os.environ[SPEC])

    def deserialize(self, data: bytes) -> np.ndarray:
        """One image, 784 bytes."""
        return np.frombuffer(data, np.uint8).reshape(28, 28)

    def forward(self, data: list[np.ndarray] | np.ndarray) -> list[tuple[int, int]] | tuple[int, int]:
        """The cascade; mosec hands over a single row where batches have size 1."""
        if isinstance(data, np.ndarray):
            found = self._predict(data[np.newaxis])
            return int(found.labels[0]), int(found.stages[0])
        found = self._predict(np.stack(data))
        return list(zip(found.labels.tolist(), found.stages.tolist(), strict=True))

    def serialize(self, data: tuple[int, int]) -> bytes:
        """Label and rung of one row."""
        return b'{"label":%d,"stage":%d}' % data


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--wait-ms", type=int, default=1)
    options = parser.parse_args()
    # mosec makes its workers without arguments, in new processes.
    os.environ[SPEC] = options.spec
    # It reads its own options from the command line.
    own = ["--address", "127.0.0.1", "--port", str(options.port), "--timeout", str(TIMEOUT_MS), "--log-level", "warning"]
    sys.argv[1:] = own
    server = Server()
    server.append_worker(
        CascadeWorker,
        num=options.workers,
        max_batch_size=options.batch,
        max_wait_time=options.wait_ms,
        route="/predict",
    )
    server.run()


if __name__ == "__main__":
    main()
