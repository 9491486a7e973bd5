"""What only a GPU can show of how stages are executed: graphs and their absence, overlap, failures, memory, compiling.

Each check is a function that raises or returns a sentence. In a smoke run the same functions run on a GPU that is faked.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_setup import Settings
from cascade.models.device import CudaDevice, Device
from cascade.models.energy import nvml_meter
from cascade.models.fake_device import FakeDevice
from cascade.models.stage import Execution, TorchStage

FEATURES, CLASSES, ROWS = 64, 10, 32
POISON = 13.0


class Layers(nn.Module):
    """A small network that can be told to do what graphs and batches suffer from.

    Args:
        asks: whether it waits for a number from the device, which no graph can.
        greedy_bytes: memory that it asks for in batches of more than one row whose first number is `POISON`.
    """

    def __init__(self, asks: bool = False, greedy_bytes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, CLASSES))
        self.asks = asks
        self.greedy_bytes = greedy_bytes

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, CLASSES] of float32 [n, FEATURES]."""
        if self.asks and float(x[0, 0]) == POISON:
            if self.greedy_bytes:
                torch.empty(self.greedy_bytes, dtype=torch.uint8, device=x.device)
            raise ValueError("poison")
        logits: Tensor = self.layers(x)
        return logits


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Random rows."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def stage_of(device: Device, network: nn.Module | None = None, **execution: Any) -> TorchStage:
    """A stage that has been warmed up."""
    how = Execution(max_rows=ROWS, **execution)
    stage = TorchStage(network or Layers(), ["x"], device=device, execution=how)
    stage.warm_up({"x": rows(1)}, [1, ROWS])
    return stage


def exact(x: np.ndarray) -> np.ndarray:
    """What it should answer."""
    with torch.inference_mode():
        return Layers()(torch.from_numpy(x)).numpy()


def close(got: np.ndarray, x: np.ndarray) -> float:
    """Largest error; raises if it is more than the order of sums explains."""
    off = float(np.abs(got - exact(x)).max())
    if off > 1e-4:
        raise AssertionError(f"off by {off:.2g}")
    return off


def graphs_are_recorded(device: Device) -> str:
    stage = stage_of(device)
    if stage.pipeline is None or not stage.pipeline.graphed:
        raise AssertionError("no graphs")
    return f"buckets {stage.pipeline.buckets}, off by at most {close(stage.run({'x': rows(7)}).logits, rows(7)):.1g}"


def a_network_that_waits_runs_without_graphs(device: Device) -> str:
    stage = stage_of(device, Layers(asks=True))
    off = close(stage.run({"x": rows(7)}).logits, rows(7))
    graphed = stage.pipeline is not None and stage.pipeline.graphed
    if graphed and device.torch_device.type == "cuda":
        raise AssertionError("it was recorded all the same")
    return f"graphs: {graphed}, off by at most {off:.1g}"


def batches_in_flight_keep_their_rows(device: Device) -> str:
    stage = stage_of(device, in_flight=3)
    sizes = np.random.default_rng(1).integers(1, ROWS + 1, size=300).tolist()
    waits, off = [], 0.0
    for place, size in enumerate(sizes):
        waits.append((place, size, stage.begin({"x": rows(size, place)})))
        if len(waits) == 3:
            done, count, wait = waits.pop(0)
            off = max(off, close(wait().logits, rows(count, done)))
    for done, count, wait in waits:
        off = max(off, close(wait().logits, rows(count, done)))
    return f"{len(sizes)} batches, off by at most {off:.1g}"


def a_failed_batch_harms_no_other(device: Device) -> str:
    stage = stage_of(device, Layers(asks=True, greedy_bytes=1 << 50), graphs=False)
    bad = rows(4)
    bad[0, 0] = POISON
    for _ in range(3):
        with suppress(ValueError, RuntimeError):  # of the network, or out of memory
            stage.begin({"x": bad})()
            raise AssertionError("a batch that must fail did not")
        close(stage.run({"x": rows(5)}).logits, rows(5))
    if stage.lost:
        raise AssertionError("the device was taken for lost")
    return "out of memory and a bad batch were survived"


def memory_is_bounded_by_the_share(device: Device) -> str:
    if device.torch_device.type != "cuda":
        return "no GPU"
    total = torch.cuda.get_device_properties(0).total_memory
    CudaDevice(0.25)
    try:
        torch.empty(int(0.5 * total), dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return f"half of {total / 2**30:.0f} GiB was refused to a quarter"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    raise AssertionError("half of the memory was given to a quarter")


def compiled_networks_are_recorded(device: Device) -> str:
    if device.torch_device.type != "cuda":
        return "no GPU"
    stage = stage_of(device, compile=True, buckets=(ROWS,))
    off = close(stage.run({"x": rows(9)}).logits, rows(9))
    return f"graphs: {stage.pipeline is not None and stage.pipeline.graphed}, off by at most {off:.1g}"


def energy_is_read(device: Device) -> str:
    if device.torch_device.type != "cuda":
        return "no GPU"
    meter = nvml_meter(str(torch.cuda.get_device_properties(0).uuid), shared=True)
    if meter is None:
        return "not measured: no NVML, or a device without a counter"
    x, spent = torch.randn(4096, 4096, device="cuda"), None
    for _ in range(10_000):
        x = (x @ x).clamp(-1, 1)
        torch.cuda.synchronize()
        spent = meter.spent(0.001)
        if spent is not None and spent.joules > 0:
            return f"{spent.joules:.0f} J reported"
    raise AssertionError(f"the counter does not move: {spent}")


CHECKS: tuple[Callable[[Device], str], ...] = (
    graphs_are_recorded,
    a_network_that_waits_runs_without_graphs,
    batches_in_flight_keep_their_rows,
    a_failed_batch_harms_no_other,
    memory_is_bounded_by_the_share,
    energy_is_read,
    compiled_networks_are_recorded,
)


def checks(settings: Settings) -> list[dict[str, Any]]:
    """Every check, whatever becomes of the others."""
    found = []
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            device: Device = FakeDevice() if settings.smoke else CudaDevice()
            found.append({"check": name, "passed": True, "says": check(device)})
        except Exception as error:  # whatever it is, it is the result
            found.append({"check": name, "passed": False, "says": f"{type(error).__name__}: {error}"[:300]})
    return found
