"""What a stage does: load a network, warm it up, run a batch. Knows torch and a device; nothing of Ray, policy or spec.

A batch goes in as one contiguous array for each input and comes back as logits: the evidence that calibration reads. On the
CPU a batch is one call of the network. On a GPU it goes through a `Pipeline`, which several batches may be in at a time.

The network may be a `Segment` of one with exits. Then a batch comes back with a state too, from which a later stage goes on:
as arrays that can travel, or, if that stage runs in the same process, as tensors that stay where they are.
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
from cascade.models.exits import State, rows_of
from cascade.models.frozen import trained_state
from cascade.models.pipeline import Output, Pipeline, Row, buckets_up_to

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
        state: what a later stage resumes from, each [n, ...]; None where none does, or if it was kept.
        kept: the same as tensors on the device, if it was asked for.
        recomputed: rows whose state was lost, so that they were run again from their inputs.
    """

    logits: NDArray[np.float32]
    run_s: float
    energy: Energy | None = None
    state: Arrays | None = None
    kept: State | None = None
    recomputed: int = 0

    def part(self, rows: slice) -> "StageResult":
        """The result of some of the batch's rows, with their share of its time and energy."""
        logits = self.logits[rows]
        share = len(logits) / len(self.logits)
        return StageResult(
            logits,
            self.run_s * share,
            None if self.energy is None else self.energy.part(share),
            None if self.state is None else {name: array[rows] for name, array in self.state.items()},
            None if self.kept is None else rows_of(self.kept, rows),
        )


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
        state_dtypes: number types of the state that it gives, by name in order; known once a batch has been run.

    Args:
        network: takes the inputs in order, batch first, in their own number types (BYTES as numpy arrays of objects);
            returns logits [n, classes], or those and a state, see `Segment`.
        inputs: names of the input arrays, in the order of the network's arguments.
        precision: number format to run in.
        threads: torch threads for this process.
        device: the GPU; None for the CPU.
        execution: how to run it.
        meter: tells what the device consumes; None for no such figure.
        compiler: compiles a network; called only if ``execution`` says so.
        state_dtypes: number types of the inputs, by name, if they are the state of another stage; numpy lacks some of them.
        pipelined: whether a pipeline may be set up; not where the shapes behind the rows differ from batch to batch.
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
        state_dtypes: Mapping[str, torch.dtype] | None = None,
        pipelined: bool = True,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cpu") if device is None else device.torch_device
        self.pipeline: Pipeline | None = None
        self._gpu = device
        self._execution = execution or Execution()
        self._meter = meter
        self._compiler = compiler
        self._resumes = state_dtypes
        self._pipelined = pipelined
        self.state_dtypes: dict[str, torch.dtype] = {}
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
        pipelined = self._pipelined and all(array.dtype != object for array in example.values())
        if self._gpu is not None and self.pipeline is None and pipelined:
            self.pipeline = self._set_up(self._gpu, example)
        for size in batch_sizes:
            self.run({name: np.repeat(array, size, axis=0) for name, array in example.items()})

    def run(self, inputs: Arrays | State, *, keep: bool = False) -> StageResult:
        """Run one batch.

        Args:
            inputs: one array [n, *row] for each input; the state of another stage may be tensors that it has kept.
            keep: whether its own state stays on the device.
        """
        return self.begin(inputs, keep=keep)()

    def begin(self, inputs: Arrays | State, *, keep: bool = False) -> Callable[[], StageResult]:
        """Begin one batch. On the CPU, and for a batch that does not fit the pipeline, this already does everything.

        Args:
            inputs: see `run`; they have been read when this returns.
            keep: see `run`.

        Returns:
            Waits for the result, from any thread; to be called exactly once.
        """
        if self.pipeline is not None and self.pipeline.fits(inputs):
            wait = self.pipeline.begin(inputs, keep=keep)
            return lambda: self._measured(*wait(), keep=keep)
        started = time.perf_counter()
        logits, *state = self._forward(*(self._on_device(inputs[name]) for name in self._inputs))
        on_host = logits.cpu().numpy()
        if not keep:
            state = [_travelling(tensor).cpu() for tensor in state]
        result = self._measured(on_host, time.perf_counter() - started, state, keep=keep)
        return lambda: result

    def _measured(
        self, logits: NDArray[np.float32], run_s: float, state: Sequence[torch.Tensor], *, keep: bool
    ) -> StageResult:
        energy = None if self._meter is None else self._meter.spent(run_s)
        if not state:
            return StageResult(logits, run_s, energy)
        named = dict(zip(self.state_dtypes, state, strict=True))
        if keep:
            return StageResult(logits, run_s, energy, kept=named)
        return StageResult(logits, run_s, energy, {name: tensor.numpy() for name, tensor in named.items()})

    def _forward(self, *tensors: Any) -> tuple[torch.Tensor, ...]:
        """Float32 logits of tensors on the device; behind them the state, in the order of its names."""
        if self._resumes is not None:
            tensors = tuple(each.to(self._resumes[name]) for name, each in zip(self._inputs, tensors, strict=True))
        elif self._cast is not None:
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
            output = self._network(*tensors)
            if isinstance(output, torch.Tensor):
                return (output.float(),)
            logits, state = output
            self.state_dtypes = {name: state[name].dtype for name in sorted(state)}
            return (logits.float(), *(state[name] for name in self.state_dtypes))

    def _set_up(self, device: Device, example: Arrays) -> Pipeline | None:
        execution = self._execution
        tensors = [self._on_device(example[name]) for name in self._inputs]
        logits, *state = self._forward(*tensors)
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
            state=[Output(each.shape[1:], _travelling(each).dtype, each.dtype) for each in state],
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

    def _on_device(self, array: NDArray[Any] | torch.Tensor) -> torch.Tensor | NDArray[np.object_]:
        if isinstance(array, torch.Tensor):
            return array
        # Torch has no strings: a network over BYTES tensors gets the numpy array of bytes objects.
        if array.dtype == object:
            return array
        # A view on received bytes is read-only, which torch warns of, and may be unaligned; a stacked batch is neither.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)


def _travelling(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in a type that numpy has: twice the bytes for bfloat16, and every value the same."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
