"""LitServe with the cascade in its predict function: its own batches, raw bodies in, a small JSON object out.

Runs in the environment of LitServe. Knows its API and `Predict`; measures nothing.
"""

import argparse
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response

from benchmarks.peers.predict import Predict, Predicted

TIMEOUT_S = 60.0


class CascadeAPI(litserve.LitAPI):
    """The hooks that LitServe calls in a worker, in this order.

    Args:
        spec: path of the ladder's spec.
        settings: of the batches, see `litserve.LitAPI`.
    """

    def __init__(self, spec: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._ladder = spec

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe passes it)
        """Load the networks, in the worker."""
        self._predict = Predict(self._ladder)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> np.ndarray:
        """One image, 784 bytes."""
        return np.frombuffer(request, np.uint8).reshape(28, 28)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """One array of the batch."""
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> Predicted:
        """The cascade; LitServe hands over a single row where batches have size 1."""
        return self._predict(x if x.ndim == 3 else x[np.newaxis])

    def unbatch(self, output: Predicted) -> list[dict[str, int]]:
        """An answer for each row."""
        return [
            {"label": label, "stage": stage}
            for label, stage in zip(output.labels.tolist(), output.stages.tolist(), strict=True)
        ]

    def encode_response(self, output: dict[str, int]) -> Response:
        """JSON, made in the worker: FastAPI's own encoder would do it in the HTTP server, at many times the cost."""
        return Response(b'{"label":%d,"stage":%d}' % (output["label"], output["stage"]), media_type="application/json")


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--wait-s", type=float, default=0.001)
    parser.add_argument("--zmq", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    api = CascadeAPI(options.spec, max_batch_size=options.batch, batch_timeout=options.wait_s, api_path="/predict")
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=options.workers,
        timeout=TIMEOUT_S,
        fast_queue=options.zmq,
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
