"""What running a network on a GPU takes: streams, events, pinned memory, recorded graphs. Knows torch.cuda, and no stages.

`cascade.models.pipeline` asks for no more than `Device`, so that its order of copies and kernels can be tested where there
is no GPU, on a device that does everything as late and as jumbled as streams and events allow: `cascade.models.fake_device`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[], object]
"""Starts kernels on the current stream; must not wait for them."""


class Event(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Block the calling thread, without Python's lock, until the work before that point is done; raises if it failed."""
        ...


class Device(Protocol):
    """A GPU. Everything that takes a stream returns at once; the work happens in the order of its stream.

    Attributes:
        torch_device: where its tensors live.
    """

    torch_device: torch.device

    def stream(self) -> Any:
        """A new stream, independent of all others."""
        ...

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can copy from and to by itself."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        ...

    def copy(self, stream: Any, target: Tensor, source: Tensor) -> None:
        """Copy between the host's pinned memory and the device's, or within it; both must be left alone until it is done."""
        ...

    def launch(self, stream: Any, work: Work) -> None:
        """Start work on a stream."""
        ...

    def record(self, stream: Any) -> Event:
        """An event after everything that was given to a stream so far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Hold back what is given to a stream from now on until the event."""
        ...

    def capture(self, stream: Any, work: Work) -> Work:
        """Record the kernels that work starts, without running them; what comes back starts all of them at once.

        The memory of everything that work allocates is shared among captures, so those of one device must run on one stream
        and leave their results in memory that they did not allocate.

        Raises:
            RuntimeError: work does something that cannot be recorded, such as waiting for a result.
        """
        ...

    def finish(self) -> None:
        """Wait for all streams; raises if the device is lost, after which no call on it will work again."""
        ...


class CudaDevice:
    """The CUDA device that the process sees first; Ray shows a replica the one that it reserved.

    Process-wide settings are made here, because a replica holds one network: float32 means float32 (by default cuDNN rounds
    what it convolves to ten bits), and convolution algorithms are chosen by trying them, once for each shape.

    Attributes:
        torch_device: where its tensors live.

    Args:
        memory_share: share of the device's memory that this process may allocate, for devices that are shared. The CUDA
            context, about half a gigabyte, comes on top.
    """

    def __init__(self, memory_share: float = 1.0) -> None:
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch_device)
        # Also when it is all of it: one process profiles all stages of a ladder, one after the other.
        torch.cuda.set_per_process_memory_fraction(memory_share, self.torch_device)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self._pool: Any = None

    def stream(self) -> torch.cuda.Stream:
        """See `Device`."""
        return torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.zeros(tuple(shape), dtype=dtype, device=self.torch_device)

    def copy(self, stream: torch.cuda.Stream, target: Tensor, source: Tensor) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def launch(self, stream: torch.cuda.Stream, work: Work) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            work()

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """See `Device`."""
        # A blocking event puts the waiting thread to sleep; the usual one spins and takes a core from the event loop.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        """See `Device`."""
        stream.wait_event(event)

    def capture(self, stream: torch.cuda.Stream, work: Work) -> Work:
        """See `Device`."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # The outer context restores the current stream also when the end of a spoilt capture raises. Of other threads
        # nothing is forbidden meanwhile: a replica has some, and what they do on streams of their own harms no capture.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    def finish(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize(self.torch_device)
