"""What a stage does: load a network, warm it up, run a batch. Knows torch and a device; nothing of Ray, policy or spec.

A batch goes in as one contiguous array for each input and comes back as logits: the evidence that calibration reads. On the
CPU a batch is one call of the network. On a GPU it goes through a `Pipeline`, which several batches may be in at a time.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from cascade.errors import ConfigError
from cascade.models.device import Device
from cascade.models.energy import Energy, EnergyMeter
from cascade.models.frozen import trained_state
from cascade.models.pipeline import Pipeline, Row, buckets_up_to

logger = logging.getLogger("cascade.stage")

Precision = Literal["float32", "bfloat16", "float16"]
Arrays = Mapping[str, NDArray[Any]]
"""One array [n, *row] for each input of the ladder, by name."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a network is run. The first three change its outputs within the precision, the others its speed alone.

    Attributes:
        cast_weights: hold the weights in the precision too, instead of running float32 weights under autocast.
        channels_last: lay images out with their channels innermost.
        compile: on a GPU, fuse the network's operations with torch.compile.
        graphs: on a GPU, start a batch as one recorded graph.
        buckets: on a GPU, batch sizes that batches are padded to, rising; empty for the powers of two.
        in_flight: on a GPU, batches that may be under way at a time.
        max_rows: rows of the largest batch.
    """

    cast_weights: bool = False
    channels_last: bool = False
    compile: bool = False
    graphs: bool = True
    buckets: tuple[int, ...] = ()
    in_flight: int = 2
    max_rows: int = 32


@dataclass(frozen=True, slots=True)
class StageResult:
    """What one batch came to.

    Attributes:
        logits: raw class scores, float32 [n, classes].
        run_s: seconds that the batch occupied the network, measured where it ran: from the arrays' arrival to the logits,
            but where batches overlap not from before the end of the one ahead of it.
        energy: of the device since the batch before; None where nothing measures it.
    """

    logits: NDArray[np.float32]
    run_s: float
    energy: Energy | None = None

    def part(self, logits: NDArray[np.float32], share: float) -> "StageResult":
        """The result of a part of the batch: some of its logits, and its share of the time and energy."""
        return StageResult(logits, self.run_s * share, None if self.energy is None else self.energy.part(share))


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Put the tensors of a safetensors file into a network; half-precision files are widened to the network's own types.

    The file may leave out what the network's factory froze, as that of an adapter does; what it holds of it is loaded.

    Raises:
        ConfigError: a tensor is missing, left over, or has another shape.
    """
    state, own = load_file(path), network.state_dict()
    frozen = {name: own[name] for name in own.keys() - trained_state(network).keys() - state.keys()}
    try:
        network.load_state_dict({**state, **frozen}, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"weights {path.name} do not fit {type(network).__name__}: {error}") from error
    return network


class TorchStage:
    """A network on a device, ready to run batches. One thread at a time may begin them.

    Attributes:
        pipeline: what batches go through on a GPU, from `warm_up` on; None on the CPU, and for networks over BYTES, which
            come as numpy arrays.
        in_flight: batches that may be begun and not yet waited for.

    Args:
        network: takes the inputs in order, batch first, in their own number types (BYTES as numpy arrays of objects);
            returns logits [n, classes].
        inputs: names of the input arrays, in the order of the network's arguments.
        precision: number format to run in.
        threads: torch threads for this process.
        device: the GPU; None for the CPU.
        execution: how to run it.
        meter: tells what the device consumes; None for no such figure.
        compiler: compiles a network; called only if ``execution`` says so.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[str],
        *,
        precision: Precision = "float32",
        threads: int = 1,
        device: Device | None = None,
        execution: Execution | None = None,
        meter: EnergyMeter | None = None,
        compiler: Callable[..., Any] = torch.compile,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cpu") if device is None else device.torch_device
        self.pipeline: Pipeline | None = None
        self._gpu = device
        self._execution = execution or Execution()
        self._meter = meter
        self._compiler = compiler
        self._inputs = tuple(inputs)
        network = network.to(self.device).eval()
        dtype = None if precision == "float32" else getattr(torch, precision)
        self._cast = dtype if self._execution.cast_weights else None
        self._autocast = None if self._execution.cast_weights else dtype
        if self._cast is not None:
            network = network.to(self._cast)
        if self._execution.channels_last:
            # torch's stub of Module.to has no overload for a layout alone
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: Callable[..., torch.Tensor] = network

    @property
    def in_flight(self) -> int:
        """See the class."""
        return 1 if self.pipeline is None else self._execution.in_flight

    @property
    def lost(self) -> bool:
        """Whether the device failed for good, so that only another process can run the network."""
        return self.pipeline is not None and self.pipeline.lost

    def warm_up(self, example: Arrays, batch_sizes: Sequence[int]) -> None:
        """Run each batch size once, so that no client pays for lazy initialisation; on a GPU, set the pipeline up before.

        Args:
            example: one row of each input, batch dimension 1.
            batch_sizes: sizes to run.
        """
        if self._gpu is not None and self.pipeline is None and all(a.dtype != object for a in example.values()):
            self.pipeline = self._set_up(self._gpu, example)
        for size in batch_sizes:
            self.run({name: np.repeat(array, size, axis=0) for name, array in example.items()})

    def run(self, inputs: Arrays) -> StageResult:
        """Run one batch.

        Args:
            inputs: one array [n, *row] for each input.
        """
        return self.begin(inputs)()

    def begin(self, inputs: Arrays) -> Callable[[], StageResult]:
        """Begin one batch. On the CPU, and for a batch that does not fit the pipeline, this already does everything.

        Args:
            inputs: one array [n, *row] for each input; they have been read when this returns.

        Returns:
            Waits for the result, from any thread; to be called exactly once.
        """
        if self.pipeline is not None and self.pipeline.fits(inputs):
            wait = self.pipeline.begin(inputs)
            return lambda: self._measured(*wait())
        started = time.perf_counter()
        tensors = [self._on_device(inputs[name]) for name in self._inputs]
        logits = self._forward(*tensors).cpu().numpy()
        result = self._measured(logits, time.perf_counter() - started)
        return lambda: result

    def _measured(self, logits: NDArray[np.float32], run_s: float) -> StageResult:
        return StageResult(logits, run_s, None if self._meter is None else self._meter.spent(run_s))

    def _forward(self, *tensors: Any) -> torch.Tensor:
        """Float32 logits of tensors on the device."""
        if self._cast is not None:
            tensors = tuple(
                each.to(self._cast) if isinstance(each, torch.Tensor) and each.is_floating_point() else each
                for each in tensors
            )
        # A cast that autocast keeps for later may lie in the memory of a graph, which the next one overwrites.
        cast = (
            nullcontext()
            if self._autocast is None
            else torch.autocast(self.device.type, dtype=self._autocast, cache_enabled=self._gpu is None)
        )
        with torch.inference_mode(), cast:
            return self._network(*tensors).float()

    def _set_up(self, device: Device, example: Arrays) -> Pipeline | None:
        execution = self._execution
        tensors = [self._on_device(example[name]) for name in self._inputs]
        logits = self._forward(*tensors)
        if logits.ndim != 2 or len(logits) != 1:
            return None  # no logits, which whoever reads them will say
        buckets = execution.buckets or buckets_up_to(execution.max_rows)
        if execution.compile:
            self._compile(tensors, len(buckets))
        return Pipeline(
            device,
            self._forward,
            {name: Row(example[name].shape[1:], example[name].dtype) for name in self._inputs},
            logits.shape[1],
            buckets=buckets,
            in_flight=execution.in_flight,
            graphs=execution.graphs,
        )

    def _compile(self, tensors: Sequence[Any], sizes: int) -> None:
        """Replace the network by its compiled form, if it can be compiled."""
        # Past its limit of versions torch runs the plain network, and says so only in a log.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * sizes)
        plain = self._network
        # Not mode="reduce-overhead": its graphs belong to the thread that recorded them (pytorch issue 123177), and batches
        # are begun in another one than the network is loaded in. The pipeline records its own.
        try:
            self._network = self._compiler(plain, dynamic=False)
            self._forward(*tensors)
        except Exception as error:  # of a compiler, or of the lack of one
            logger.warning("the network cannot be compiled and is run as it is: %s", error)
            self._network = plain

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor | NDArray[np.object_]:
        # Torch has no strings: a network over BYTES tensors gets the numpy array of bytes objects.
        if array.dtype == object:
            return array
        # A view on received bytes is read-only, which torch warns of, and may be unaligned; a stacked batch is neither.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
