"""A throw-away ladder of the exits of one tiny network, on disk: served together, or each exit in processes of its own.

Rows x in R^4 are labelled by the largest of three linear scores. Every block rotates the features; the head behind it undoes
the rotations and computes the scores from weights that were blurred, less for every deeper exit. So an exit that is resumed
from the wrong state, or from another row's, answers something else.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from cascade.models.exits import BlockExits

CLASSES = ("red", "green", "blue")
FEATURES = 4
COSTS = (16.0, 160.0, 1600.0)
NAMES = ("first", "second", "third")
FACTORY = "tests.exit_ladders:RotatedScores"


class RotatedScores(BlockExits):
    """Three exits, each behind a rotation; see the file."""

    def __init__(self) -> None:
        super().__init__(
            nn.Identity(),
            [nn.Linear(FEATURES, FEATURES, bias=False) for _ in NAMES],
            {place + 1: nn.Linear(FEATURES, len(CLASSES), bias=False) for place in range(len(NAMES))},
        )


def rotated_scores(seed: int = 5) -> tuple[RotatedScores, np.ndarray]:
    """The network with its weights, and the true scores [3, 4] that rows are labelled by."""
    random = np.random.default_rng(seed)
    true, wrong = random.normal(size=(2, len(CLASSES), FEATURES))
    network = RotatedScores().eval()
    turned = np.eye(FEATURES)
    with torch.no_grad():
        for place, blur in enumerate((0.8, 0.3, 0.02)):
            rotation, _ = np.linalg.qr(random.normal(size=(FEATURES, FEATURES)))
            turned = rotation @ turned
            network.blocks[place].weight.copy_(torch.tensor(rotation))
            network.heads[place].weight.copy_(torch.tensor(3.0 * (true + blur * wrong) @ turned.T))
    return network, true


def exit_stages(placement: str = "together", first: str = "replica", **owner: Any) -> list[dict[str, Any]]:
    """The stages of the spec.

    Args:
        placement: of the later exits.
        first: of the first one.
        owner: further fields of the first one.
    """
    stages: list[dict[str, Any]] = []
    for place, (name, cost) in enumerate(zip(NAMES, COSTS, strict=True)):
        model = {"factory": FACTORY, "weights": "weights/network.safetensors", "exit": place}
        stage: dict[str, Any] = {"name": name, "model": model, "cost": cost, "max_batch_size": 8}
        if place:
            stage |= {"resumes": True, "placement": placement, "base_price": 0.02}
        else:
            stage |= {"placement": first, **owner}
        if stage["placement"] == "replica":
            stage["num_cpus"] = 0.1
        stages.append(stage)
    return stages


def write_exit_ladder(folder: Path, rows: int = 400, **how: Any) -> Path:
    """Write the ladder, its weights and its rows; returns the path of its spec.

    Args:
        folder: an empty folder.
        rows: of each split.
        how: see `exit_stages`.
    """
    network, true = rotated_scores()
    (folder / "weights").mkdir()
    save_file(network.state_dict(), folder / "weights" / "network.safetensors")
    (folder / "data").mkdir()
    random = np.random.default_rng(6)
    for split in ("calibration", "test"):
        x = random.normal(size=(rows, FEATURES)).astype(np.float32)
        np.savez(folder / "data" / f"{split}.npz", x=x, labels=(x @ true.T).argmax(axis=1))
    path = folder / "cascade.yaml"
    write_spec(path, **how)
    return path


def write_spec(path: Path, **how: Any) -> None:
    """Write the spec alone; its digests do not depend on where stages are placed."""
    document = {
        "name": "exits",
        "version": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [FEATURES]}],
        "labels": list(CLASSES),
        "stages": exit_stages(**how),
    }
    path.write_text(yaml.safe_dump(document))
