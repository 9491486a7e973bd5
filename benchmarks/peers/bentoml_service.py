"""BentoML with the cascade in a batchable method: its own adaptive batches, JSON in and out.

Runs in the environment of BentoML, started by ``bentoml serve`` with its settings in the environment. Its server refuses raw
and pickled bodies, so an image travels as base64 in JSON, which is the cheapest that it takes. Knows its API and `Predict`;
measures nothing.
"""

import os
from base64 import b64decode

import bentoml
import numpy as np

from benchmarks.peers.predict import Predict
from benchmarks.peers.settings import BATCH, LATENCY_MS, SPEC, WORKERS

TIMEOUT_S = 60


@bentoml.service(
    workers=int(os.environ[WORKERS]),
    traffic={"timeout": TIMEOUT_S},
    # Neither a log line nor a histogram entry a request, as with every other system.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Cascade:
    """Loads the ladder and answers batches."""

    def __init__(self) -> None:
        self._predict = Predict(os.environ[SPEC])

    @bentoml.api(batchable=True, max_batch_size=int(os.environ[BATCH]), max_latency_ms=int(os.environ[LATENCY_MS]))
    def predict(self, images: list[str]) -> list[dict[str, int]]:
        """Label and rung of each image, base64 of 784 bytes."""
        pixels = np.frombuffer(b"".join(b64decode(image) for image in images), np.uint8)
        found = self._predict(pixels.reshape(-1, 28, 28))
        return [
            {"label": label, "stage": stage}
            for label, stage in zip(found.labels.tolist(), found.stages.tolist(), strict=True)
        ]
