"""Rows a second of each stage in one process: as torch users loop, as fast as torch goes, and as a replica runs it.

For every stage and batch size, rows/s of

- naive: float32 weights, kernel by kernel, a pageable copy in, a blocking copy out: the loop of a tutorial;
- bare: the stage's own precision and layout, one CUDA graph, pinned copies in and out, waiting once a batch: what can be
  gained in a loop by hand, and what serving is held against;
- device: the same graph again and again with nothing copied: the ceiling of the kernels;
- stage: `TorchStage` as a replica drives it, from numpy arrays to numpy arrays, as many batches in flight as its spec says.

Beside them the roofline: the least of peak FLOP/s and bandwidth x intensity. Intensity counts the weights once a batch and
the output of every layer written and read once, as kernels do that are not fused.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.gpu_setup import Peak, Settings, device_name, images, loaded, peak_of
from cascade.models.flops import macs
from cascade.models.stage import TorchStage, load_weights
from cascade.spec import Ladder, StageSpec

PRECISIONS = (
    ("float32", False, False),
    ("bfloat16", False, False),
    ("bfloat16", True, False),
    ("bfloat16", True, True),
    ("float16", True, True),
)
"""Precision, cast weights, channels last."""
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def loops(ladder: Ladder, settings: Settings) -> list[dict[str, Any]]:
    """Every loop of every stage and batch size."""
    found = []
    for stage in (on_the_device(stage, settings) for stage in ladder.spec.stages):
        ours = loaded(ladder, stage, settings)
        for size in sorted({size for size in settings.sizes if size < stage.max_batch_size} | {stage.max_batch_size}):
            image = images(ladder, size)
            row = {
                "stage": stage.name,
                "batch": size,
                "naive": _rate(size, _naive(_network(ladder, stage), image), settings.loop_s),
                **_by_hand(ladder, stage, image, settings.loop_s),
                "ours": _pipelined(ours, image, settings.loop_s),
                **work(ladder, stage, size),
            }
            limit = roofline(row["macs"], row["bytes"], stage.precision, peak_of(device_name()))
            found.append({**row, "limit": limit, "of_limit": None if limit is None else row["ours"] / limit})
    return found


def on_the_device(stage: StageSpec, settings: Settings) -> StageSpec:
    """A stage with the whole GPU, wherever its ladder places it; as it is in a smoke run."""
    return stage if settings.smoke else stage.model_copy(update={"num_gpus": 1.0})


def work(ladder: Ladder, stage: StageSpec, size: int) -> dict[str, float]:
    """MACs, and bytes moved, of a row in a batch of that size."""
    network = _network(ladder, stage, on_cpu=True)
    count, numbers = macs(network, torch.zeros(1, 28, 28, dtype=torch.uint8)), _activations(network)
    width = 4 if stage.precision == "float32" else 2
    weights = sum(each.numel() for each in network.parameters())
    return {"macs": count, "bytes": width * (2 * numbers + weights / size)}


def roofline(macs: float, moved: float, precision: str, peak: Peak | None) -> float | None:
    """The most rows/s that a device could do.

    Args:
        macs: of a row; two operations each.
        moved: bytes of a row.
        precision: decides which units multiply.
        peak: of the device; None if it is not known, and nothing else is then.
    """
    if peak is None:
        return None
    flops = peak.float_flops if precision == "float32" else peak.half_flops
    return min(flops / (2 * macs), peak.bytes_per_s / moved)


def _activations(network: nn.Module) -> int:
    """Numbers that all layers put out for one row."""
    total = 0

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = [module.register_forward_hook(count) for module in network.modules() if not list(module.children())]
    with torch.inference_mode():
        network(torch.zeros(1, 28, 28, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return total


def _network(ladder: Ladder, stage: StageSpec, *, on_cpu: bool = False) -> nn.Module:
    weights = ladder.weights(stage)
    network = stage.model.build() if weights is None else load_weights(stage.model.build(), weights)
    cuda = torch.cuda.is_available() and stage.num_gpus > 0 and not on_cpu
    built: nn.Module = network.to("cuda" if cuda else "cpu").eval()
    return built


def _rate(size: int, once: Callable[[], object], seconds: float) -> float:
    """Rows a second of something that is done again and again and waited for each time."""
    for _ in range(3):
        once()
    count, began = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - began < seconds:
        once()
        count += 1
    return size * count / (time.perf_counter() - began)


def _naive(network: nn.Module, image: NDArray[np.uint8]) -> Callable[[], object]:
    device = next(network.parameters()).device

    def once() -> Tensor:
        with torch.no_grad():
            return network(torch.from_numpy(image).to(device)).cpu()

    return once


def _by_hand(ladder: Ladder, stage: StageSpec, image: NDArray[np.uint8], seconds: float) -> dict[str, float]:
    """The loop by hand, and on a GPU the one that copies nothing; nothing of it is the package's but the network."""
    network, size = _network(ladder, stage), len(image)
    if stage.execution.cast_weights:
        network = network.to(getattr(torch, stage.precision))
    if stage.execution.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if not next(network.parameters()).is_cuda:
        bare = _rate(size, _naive(network, image), seconds)
        return {"bare": bare, "device": bare}
    torch.backends.cudnn.benchmark = True
    host, static = torch.from_numpy(image).pin_memory(), torch.from_numpy(image).cuda()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            network(static)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            logits = network(static)
        out = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)

        def once() -> None:
            static.copy_(host, non_blocking=True)
            graph.replay()
            out.copy_(logits, non_blocking=True)
            stream.synchronize()

        def replay() -> None:
            for _ in range(10):
                graph.replay()
            stream.synchronize()

        return {"bare": _rate(size, once, seconds), "device": _rate(10 * size, replay, seconds)}


def _pipelined(stage: TorchStage, image: NDArray[np.uint8], seconds: float) -> float:
    """Rows a second of a stage with as many batches under way as it takes."""
    waits: deque[Callable[[], object]] = deque()

    def once() -> None:
        while len(waits) < stage.in_flight:
            waits.append(stage.begin({"image": image}))
        waits.popleft()()

    rate = _rate(len(image), once, seconds)
    while waits:
        waits.popleft()()
    return rate


# -- numerics ----------------------------------------------------------------------------------------------------------


def numerics(ladder: Ladder, settings: Settings) -> list[dict[str, Any]]:
    """Logits of each stage on the device in each precision against float32 on the CPU, errors in unit roundoffs."""
    found, exactly = [], {}
    image = images(ladder, settings.exact_rows)
    torch.set_num_threads(os.cpu_count() or 1)  # a stage that is loaded sets its own number
    with torch.inference_mode():
        for stage in ladder.spec.stages:
            exactly[stage.name] = _network(ladder, stage, on_cpu=True)(torch.from_numpy(image)).numpy()
    for stage in (on_the_device(stage, settings) for stage in ladder.spec.stages):
        exact = exactly[stage.name]
        for precision, cast_weights, channels_last in PRECISIONS:
            execution = {"cast_weights": cast_weights, "channels_last": channels_last}
            spec = stage.model_copy(
                update={
                    "precision": precision,
                    "execution": stage.execution.model_copy(update=execution),
                    "max_batch_size": 8,
                }
            )
            run = loaded(ladder, spec, settings)
            got = np.concatenate(
                [run.run({"image": image[at : at + 7]}).logits for at in range(0, len(image), 7)]  # padded, all of them
            )
            off, u = np.abs(got - exact), ROUNDOFF[precision]
            found.append(
                {
                    "stage": stage.name,
                    "how": precision + " weights" * cast_weights + ", channels last" * channels_last,
                    "rms_u": float(np.sqrt((off**2).mean() / (exact**2).mean()) / u),
                    "most_u": float(off.max() / np.abs(exact).max() / u),
                    "same_label": float((got.argmax(1) == exact.argmax(1)).mean()),
                    "graphs": run.pipeline is not None and run.pipeline.graphed,
                }
            )
    return found
