"""What a stage does: load a network, warm it up, run a batch. Knows torch and a device; nothing of Ray, policy or spec.

A batch goes in as one contiguous array for each input and comes back as logits: the evidence that calibration reads.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from cascade.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]
Arrays = Mapping[str, NDArray[Any]]
"""One array [n, *row] for each input of the ladder, by name."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What one batch came to.

    Attributes:
        logits: raw class scores, float32 [n, classes].
        run_s: seconds from the arrays' arrival to the logits, measured where the network ran.
    """

    logits: NDArray[np.float32]
    run_s: float


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Put the tensors of a safetensors file into a network; half-precision files are widened to the network's own types.

    Raises:
        ConfigError: a tensor is missing, left over, or has another shape.
    """
    state = load_file(path)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"weights {path.name} do not fit {type(network).__name__}: {error}") from error
    return network


class TorchStage:
    """A network on a device, ready to run batches. One thread at a time may use it.

    Args:
        network: takes the inputs in order, batch first, in their own number types (BYTES as numpy arrays of objects);
            returns logits [n, classes].
        inputs: names of the input arrays, in the order of the network's arguments.
        precision: number format to run in; anything but float32 runs under autocast.
        threads: torch threads for this process.
        device: torch device; by default CUDA when there is one.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[str],
        *,
        precision: Precision = "float32",
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._inputs = tuple(inputs)
        self._network = network.to(self.device).eval()
        self._autocast = None if precision == "float32" else getattr(torch, precision)

    def warm_up(self, example: Arrays, batch_sizes: Sequence[int]) -> None:
        """Run each batch size once, so that no client pays for lazy initialisation.

        Args:
            example: one row of each input, batch dimension 1.
            batch_sizes: sizes to run.
        """
        for size in batch_sizes:
            self.run({name: np.repeat(array, size, axis=0) for name, array in example.items()})

    def run(self, inputs: Arrays) -> StageResult:
        """Run one batch.

        Args:
            inputs: one array [n, *row] for each input.
        """
        started = time.perf_counter()
        tensors = [self._on_device(inputs[name]) for name in self._inputs]
        with torch.inference_mode():
            if self._autocast is None:
                logits = self._network(*tensors)
            else:
                with torch.autocast(self.device.type, dtype=self._autocast):
                    logits = self._network(*tensors)
            logits = logits.float().cpu().numpy()
        return StageResult(logits, time.perf_counter() - started)

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor | NDArray[np.object_]:
        # Torch has no strings: a network over BYTES tensors gets the numpy array of bytes objects.
        if array.dtype == object:
            return array
        # A view on received bytes is read-only, which torch warns of, and may be unaligned; a stacked batch is neither.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
