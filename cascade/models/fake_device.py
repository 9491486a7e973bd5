"""A GPU without a GPU: tensors of the host, and work that is done as late and in as odd an order as a real device might.

For tests of what runs on a `Device`, and for trying out its benchmark. Nothing given to a stream happens at once. Somebody
who waits for an event lets streams take steps, chosen at random among those that may, until the event is reached. So a copy
that is not ordered before the kernels that read it, or memory that is used again too early, shows as wrong numbers.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock

import torch
from torch import Tensor

from cascade.models.device import Work


class FakeStream:
    """Work that waits for its turn.

    Attributes:
        steps: what is to be done, in order; each says whether it could be.
        fault: what went wrong since the last event.
    """

    def __init__(self) -> None:
        self.steps: deque[Callable[[], bool]] = deque()
        self.fault: Exception | None = None


class FakeEvent:
    """A point in a stream.

    Attributes:
        reached: whether the work before it is done.
        fault: what went wrong in it.
    """

    def __init__(self, device: "FakeDevice") -> None:
        self.reached = False
        self.fault: Exception | None = None
        self._device = device

    def synchronize(self) -> None:
        """Let the device work until this point; raises what went wrong before it."""
        self._device.run_until(lambda: self.reached)
        if self.fault is not None:
            raise self.fault


class FakeDevice:
    """The device.

    Attributes:
        torch_device: the CPU.
        log: what it was asked to do, in order: ``copy``, ``launch``, ``replay``, ``capture``.

    Args:
        seed: of the order in which streams take steps.
        captures: how many graphs it can record; the next one fails.
        lost_after: launches after which everything fails, None for never.
    """

    def __init__(self, seed: int = 0, *, captures: int = 1_000, lost_after: int | None = None) -> None:
        self.torch_device = torch.device("cpu")
        self.log: list[str] = []
        self._random = random.Random(seed)
        self._captures = captures
        self._launches_left = lost_after
        self._streams: list[FakeStream] = []
        self._lock = RLock()

    def stream(self) -> FakeStream:
        """See `Device`."""
        self._streams.append(FakeStream())
        return self._streams[-1]

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.zeros(tuple(shape), dtype=dtype)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.zeros(tuple(shape), dtype=dtype)

    def copy(self, stream: FakeStream, target: Tensor, source: Tensor) -> None:
        """See `Device`."""
        self._add(stream, "copy", lambda: target.copy_(source))

    def launch(self, stream: FakeStream, work: Work) -> None:
        """See `Device`."""
        if self._launches_left is not None:
            self._launches_left -= 1
        self._add(stream, "launch", work)

    def record(self, stream: FakeStream) -> FakeEvent:
        """See `Device`."""
        event = FakeEvent(self)

        def reach() -> bool:
            event.reached, event.fault, stream.fault = True, stream.fault, None
            return True

        with self._lock:
            stream.steps.append(reach)
        return event

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """See `Device`."""

        def go_on() -> bool:
            stream.fault = stream.fault or event.fault
            return event.reached

        with self._lock:
            stream.steps.append(go_on)

    def capture(self, stream: FakeStream, work: Work) -> Work:  # noqa: ARG002
        """See `Device`; what is recorded is the callable, which must find its memory where it was."""
        self.log.append("capture")
        self._captures -= 1
        if self._captures < 0:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay() -> None:
            self.log.append("replay")
            work()

        return replay

    def finish(self) -> None:
        """See `Device`."""
        if self._is_lost():
            raise RuntimeError("the device is lost")
        self.run_until(lambda: not any(stream.steps for stream in self._streams))

    def run_until(self, reached: Callable[[], bool]) -> None:
        """Let streams take steps in random order until it is so.

        Raises:
            RuntimeError: it never will be.
        """
        with self._lock:
            while not reached():
                waiting = [stream for stream in self._streams if stream.steps]
                self._random.shuffle(waiting)
                if not any(self._step(stream) for stream in waiting):
                    raise RuntimeError("the streams wait for each other")

    def _step(self, stream: FakeStream) -> bool:
        if not stream.steps[0]():
            return False
        stream.steps.popleft()
        return True

    def _add(self, stream: FakeStream, what: str, work: Work) -> None:
        def step() -> bool:
            try:
                if self._is_lost():
                    raise RuntimeError("the device is lost")
                work()
            except Exception as error:
                stream.fault = error
            return True

        with self._lock:
            self.log.append(what)
            stream.steps.append(step)

    def _is_lost(self) -> bool:
        return self._launches_left is not None and self._launches_left < 0
