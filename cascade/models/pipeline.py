"""Runs batches of one network on a GPU: padded to a few sizes, copied while others compute, started as recorded graphs.

Knows a `Device` and a function from device tensors to logits; nothing of weights, precision or Ray. Of a batch of n rows:

    host      rows -> pinned memory, zeros behind them up to the next bucket
    stream 1  pinned memory -> device
    stream 2  after that: the network on all rows of the bucket, as a graph where one could be recorded
    stream 3  after that: the logits of the n rows -> pinned memory
    host      waits for the end of stream 3's part, asleep and without Python's lock

A network with exits takes, in the place of rows, the state that an earlier stage left, and leaves one itself. What comes in
may be tensors of the device, which stream 1 copies without the host; what goes out follows the logits to the host, or is
copied on stream 2 into memory of its own and stays.

Every batch in flight has memory of its own for all of that (a slot), so the only order that matters is the one above. Graphs
hold addresses, so each slot has its own; their temporary memory is shared, which is safe because they all run on stream 2.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.models.device import Device, Event, Work

logger = logging.getLogger("cascade.stage")

WARM_UPS = 3
"""Runs before a graph is recorded: libraries choose algorithms and allocate workspace in the first ones."""

Forward = Callable[..., Tensor | Sequence[Tensor]]
"""Device tensors [n, *row] in the order of the inputs to float32 logits [n, classes], or to those and the tensors of a
state; starts kernels and waits for none."""


class Row(NamedTuple):
    """What one row of an input looks like.

    Attributes:
        shape: its shape.
        dtype: its number type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Output(NamedTuple):
    """What one row of a tensor of the state looks like.

    Attributes:
        shape: its shape.
        host_dtype: its number type on the host.
        dtype: its number type on the device.
    """

    shape: tuple[int, ...]
    host_dtype: torch.dtype
    dtype: torch.dtype


class Finished(NamedTuple):
    """A batch that has been waited for.

    Attributes:
        logits: float32 [n, classes], of the real rows.
        run_s: seconds that the batch kept the device from the ones after it: to its end, from the end of the one before it
            or from its own start, whichever was later. So the sum over all batches is the time that any was in flight.
        state: tensors [n, *row] of the state, on the host or kept on the device; empty where there is none.
    """

    logits: NDArray[np.float32]
    run_s: float
    state: tuple[Tensor, ...] = ()


@dataclass
class _Slot:
    """Memory of one batch in flight, and the graphs that work on it."""

    host: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    """The logits, and behind them the state, in the types of the host."""
    host_outputs: tuple[Tensor, ...]
    graphs: dict[int, Work] = field(default_factory=dict)


def buckets_up_to(rows: int) -> tuple[int, ...]:
    """The powers of two below a batch size, and itself: at most half of a batch is padding."""
    return (*(2**k for k in range((rows - 1).bit_length())), rows)


class Pipeline:
    """The slots of one network.

    Attributes:
        buckets: batch sizes that the network is run at, rising.
        graphed: whether batches run as graphs.
        lost: whether the device failed for good.

    Args:
        device: where it runs.
        forward: the network.
        rows: of each input, by name, in the order of the network's arguments.
        classes: width of the logits.
        state: what the network leaves beside the logits; empty where it leaves nothing.
        buckets: see above.
        in_flight: batches that may be begun and not yet waited for.
        graphs: whether to record graphs.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        device: Device,
        forward: Forward,
        rows: Mapping[str, Row],
        classes: int,
        *,
        state: Sequence[Output] = (),
        buckets: Sequence[int],
        in_flight: int = 2,
        graphs: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.buckets = tuple(buckets)
        self.lost = False
        self._device = device
        self._forward = forward
        self._rows = dict(rows)
        self._state = tuple(state)
        self._copies_in, self._compute, self._copies_out = device.stream(), device.stream(), device.stream()
        self._slots = [self._slot(classes) for _ in range(in_flight)]
        device.finish()  # the weights were put there on another stream
        self._warm_up()
        self.graphed = graphs and self._record()
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._order = Lock()
        self._clock = clock
        self._ended_s = clock()

    def fits(self, inputs: Mapping[str, NDArray[Any]] | Mapping[str, Tensor]) -> bool:
        """Whether a batch is of the declared rows, and of no more than the largest bucket."""
        return all(
            name in inputs
            and (isinstance(inputs[name], Tensor) or inputs[name].dtype == row.dtype)
            and tuple(inputs[name].shape[1:]) == tuple(row.shape)
            and 0 < len(inputs[name]) <= self.buckets[-1]
            for name, row in self._rows.items()
        )

    def begin(
        self, inputs: Mapping[str, NDArray[Any]] | Mapping[str, Tensor], *, keep: bool = False
    ) -> Callable[[], Finished]:
        """Start a batch that `fits`; waits only if as many as may be are in flight.

        Args:
            inputs: one array [n, *row] for each input, which has been read when this returns; or tensors of the device,
                which are complete and are held until the batch is done.
            keep: whether the state stays on the device.

        Returns:
            Waits for the batch, from any thread; to be called exactly once.
        """
        slot = self._free.get()
        try:
            began_s = self._clock()
            first: Any = next(iter(inputs.values()))
            count = len(first)
            bucket = next(bucket for bucket in self.buckets if bucket >= count)
            given: list[Tensor | None] = []
            for host, name in zip(slot.host, self._rows, strict=True):
                value = inputs[name]
                given.append(value if isinstance(value, Tensor) else None)
                if not isinstance(value, Tensor):
                    host[:count].numpy()[...] = value
                    host[count:bucket].zero_()
            kept = tuple(self._device.empty((count, *each.shape), each.dtype) for each in self._state) if keep else None
            with self._order:
                done = self._start(slot, count, bucket, given, kept)
        except BaseException:
            self._failed()
            self._free.put(slot)
            raise
        return partial(self._wait, slot, count, done, began_s, given, kept)

    def _start(
        self, slot: _Slot, count: int, bucket: int, given: Sequence[Tensor | None], kept: tuple[Tensor, ...] | None
    ) -> Event:
        device = self._device
        for target, source, tensor in zip(slot.inputs, slot.host, given, strict=True):
            if tensor is None:
                device.copy(self._copies_in, target[:bucket], source[:bucket])
            else:
                device.copy(self._copies_in, target[:count], tensor)
                device.launch(self._copies_in, target[count:bucket].zero_)
        device.wait(self._compute, device.record(self._copies_in))
        device.launch(self._compute, slot.graphs.get(bucket) or self._work(slot, bucket))
        going = len(slot.outputs)
        if kept is not None:
            going = 1
            for own, output in zip(kept, slot.outputs[1:], strict=True):
                device.copy(self._compute, own, output[:count])
        device.wait(self._copies_out, device.record(self._compute))
        for host, output in zip(slot.host_outputs[:going], slot.outputs[:going], strict=True):
            device.copy(self._copies_out, host[:count], output[:count])
        return device.record(self._copies_out)

    def _wait(
        self,
        slot: _Slot,
        count: int,
        done: Event,
        began_s: float,
        given: Sequence[Tensor | None],  # noqa: ARG002
        kept: tuple[Tensor, ...] | None,
    ) -> Finished:
        # What was given is held until here; the stream that reads it would not hold it.
        try:
            done.synchronize()
            logits = slot.host_outputs[0][:count].numpy().copy()
            state = tuple(host[:count].clone() for host in slot.host_outputs[1:]) if kept is None else kept
        except BaseException:
            self._failed()
            raise
        finally:
            ended_s = self._clock()
            run_s, self._ended_s = ended_s - max(began_s, self._ended_s), ended_s
            self._free.put(slot)
        return Finished(logits, run_s, state)

    def _failed(self) -> None:
        """After an error: find out whether it was the batch's own, or the end of the device for this process."""
        try:
            self._device.finish()
        except RuntimeError:
            self.lost = True

    def _slot(self, classes: int) -> _Slot:
        device, most = self._device, self.buckets[-1]
        dtypes = [torch.from_numpy(np.empty(0, row.dtype)).dtype for row in self._rows.values()]
        shapes = [(most, *row.shape) for row in self._rows.values()]
        outputs = [((most, classes), torch.float32), *(((most, *each.shape), each.host_dtype) for each in self._state)]
        return _Slot(
            tuple(device.pinned(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)),
            tuple(device.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)),
            tuple(device.empty(shape, dtype) for shape, dtype in outputs),
            tuple(device.pinned(shape, dtype) for shape, dtype in outputs),
        )

    def _work(self, slot: _Slot, bucket: int) -> Work:
        inputs, outputs = [tensor[:bucket] for tensor in slot.inputs], [tensor[:bucket] for tensor in slot.outputs]

        def work() -> None:
            found = self._forward(*inputs)
            for output, tensor in zip(outputs, (found,) if isinstance(found, Tensor) else found, strict=True):
                output.copy_(tensor)

        return work

    def _warm_up(self) -> None:
        # The largest first, so that the memory that it takes is there for all others.
        for bucket in reversed(self.buckets):
            for _ in range(WARM_UPS):
                self._device.launch(self._compute, self._work(self._slots[0], bucket))
            self._device.record(self._compute).synchronize()

    def _record(self) -> bool:
        try:
            for bucket in reversed(self.buckets):
                for slot in self._slots:
                    slot.graphs[bucket] = self._device.capture(self._compute, self._work(slot, bucket))
        except RuntimeError as error:
            logger.warning(
                "the network cannot be recorded as a CUDA graph and is run kernel by kernel, which costs time on small "
                "batches; `execution.graphs: false` says so beforehand: %s",
                error,
            )
            for slot in self._slots:
                slot.graphs.clear()
            self._compute = self._device.stream()  # the old one may still be in the spoilt capture
            return False
        return True
