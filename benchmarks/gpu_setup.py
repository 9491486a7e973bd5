"""What `benchmarks.gpu` runs on: settings of a full and a smoke run, ladders derived from a shipped one, the device's peaks.

Knows specs, files and data sheets; starts nothing. The derived ladders take the shipped weights. Their top is the shipped
one averaged over shifted views of each image, because networks of 28 x 28 pixels are too small to keep a GPU busy.
"""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from cascade.loading import load_network
from cascade.models.fake_device import FakeDevice
from cascade.rows import read_rows
from cascade.spec import Ladder, StageSpec

SHIPPED = Path(__file__).resolve().parent.parent / "deployments" / "fashion" / "cascade.yaml"
TOP = "panel"
FAST = {"cast_weights": True, "channels_last": True}
"""What a GPU wants of half precision; `cascade.spec_sections.ExecutionSpec` says what it changes."""
PRICE_PER_COST = 1e-12
"""So that a visit to the top must promise about half a point."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        smoke: on the CPU, with a GPU that is faked where only the code path matters.
        shift: pixels by which the views of the top are moved each way: (2 shift + 1)^2 times the cost.
        top_rows: largest batch of the top.
        sizes: batch sizes of the loops.
        loop_s: seconds of each loop.
        load_s: seconds of each point under load.
        rows: calibration and test rows that are used, each.
        exact_rows: rows that are computed in float32 on the CPU, to compare with.
        routers: router processes.
        connections: of the closed loop of single rows.
        multiples: loads of the overload run, as multiples of what the top can serve.
        most_requests_per_s: of the load client in it; requests have as many rows as that takes.
    """

    smoke: bool
    shift: int
    top_rows: int
    sizes: tuple[int, ...]
    loop_s: float
    load_s: float
    rows: int
    exact_rows: int
    routers: int
    connections: int
    multiples: tuple[float, ...]
    most_requests_per_s: float


FULL = Settings(False, 4, 128, (1, 8, 32, 128), 0.4, 8.0, 5_000, 64, 4, 64, (1, 2, 4, 10), 1_500.0)
SMOKE = Settings(True, 0, 8, (1, 8), 0.05, 4.0, 400, 16, 1, 8, (1, 4), 150.0)


@dataclass(frozen=True)
class Peak:
    """What a device can do at most, by its maker's data sheet: dense, without sparsity.

    Attributes:
        half_flops: FLOP/s with 16-bit inputs on tensor cores.
        float_flops: FLOP/s in float32 outside tensor cores.
        bytes_per_s: memory bandwidth.
    """

    half_flops: float
    float_flops: float
    bytes_per_s: float


PEAKS = {
    "H200": Peak(989e12, 67e12, 4.8e12),
    "H100 PCIe": Peak(756e12, 51e12, 2.0e12),
    "H100": Peak(989e12, 67e12, 3.35e12),
    "A100-SXM4-80GB": Peak(312e12, 19.5e12, 2.04e12),
    "A100 80GB": Peak(312e12, 19.5e12, 1.94e12),
    "A100": Peak(312e12, 19.5e12, 1.56e12),
    "L40S": Peak(362e12, 91.6e12, 0.864e12),
    "L40": Peak(181e12, 90.5e12, 0.864e12),
    "L4": Peak(121e12, 30.3e12, 0.3e12),
    "T4": Peak(65e12, 8.1e12, 0.32e12),
}
"""By a part of the name that torch gives; the first that fits."""


def peak_of(name: str) -> Peak | None:
    """The peaks of a device, None for one that is not in the list."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def device_name() -> str:
    """What the stages run on."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    peak = peak_of(device_name())
    return {
        "device": device_name(),
        "peak": None if peak is None else asdict(peak),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def derive(folder: Path, settings: Settings, *, top_alone: bool = False, shipped: Path = SHIPPED) -> Path:
    """Write a spec and its rows; returns the path of the spec.

    Args:
        folder: where to write; made.
        settings: which run it is for.
        top_alone: a ladder of the top stage only, with the GPU to itself.
        shipped: the ladder that it is derived from; the input of its networks is called image.
    """
    source = Ladder.read(shipped)
    folder.mkdir(parents=True)
    document = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    for stage, spec in zip(document["stages"], source.spec.stages, strict=True):
        stage["model"]["weights"] = str(source.weights(spec))
        stage["num_cpus"] = 0.5
    if settings.smoke:
        document["stages"] = [document["stages"][0], document["stages"][3]]
    cheap, last = document["stages"], document["stages"][-1]
    top = {**last, "name": TOP, "cost": last["cost"] * (2 * settings.shift + 1) ** 2}
    if settings.shift:
        top["model"] = {**last["model"], "args": {**last["model"]["args"], "shift": settings.shift}}
    top |= {"max_batch_size": settings.top_rows, "calls_per_replica": 16}
    document["stages"] = [top] if top_alone else [*(cheap[:-1] if settings.smoke else cheap), top]
    if not settings.smoke:
        _onto_the_gpu(document["stages"], top_alone)
    document["price_per_cost"] = PRICE_PER_COST
    document["router"] = {"replicas": settings.routers, "num_cpus": 0.5}
    document["audit_share"] = 0.0
    document["data"] = {"calibration": "calibration.npz", "test": "test.npz"}
    for split in ("calibration", "test"):
        inputs, labels = read_rows(source, source.path(getattr(source.spec.data, split)))
        np.savez(folder / f"{split}.npz", labels=labels[: settings.rows], image=inputs["image"][: settings.rows])
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _onto_the_gpu(stages: list[dict[str, Any]], top_alone: bool) -> None:
    """The two cheapest stay on the CPU; the rest share one GPU, a quarter of it for each but the top."""
    for stage in stages:
        if stage["name"] in ("linear", "tiny"):
            continue
        stage |= {"precision": "bfloat16", "execution": FAST, "num_gpus": 0.15, "calls_per_replica": 16}
        if stage["name"] == TOP:
            stage |= {"num_gpus": 1.0 if top_alone else 0.5, "execution": {**FAST, "in_flight": 3}}
        else:
            stage["max_batch_size"] = 256


def loaded(ladder: Ladder, stage: StageSpec, settings: Settings) -> Any:
    """A stage as its replica would load it; in a smoke run on a GPU that is faked."""
    return load_network(ladder, stage, device=FakeDevice() if settings.smoke else None)


def images(ladder: Ladder, rows: int) -> NDArray[np.uint8]:
    """So many test images, again from the first one if there are not so many."""
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    found: NDArray[np.uint8] = inputs["image"][np.arange(rows) % len(inputs["image"])]
    return found
