"""Throw-away ladders for tests: one of real tiny networks on disk, and one of fake stages whose rows say what they will do.

The networks: rows x in R^4, labelled by the largest of three linear scores. A network computes those scores from weights
that were blurred by a second, wrong matrix, less for every dearer stage. So stages differ in accuracy and in nothing else.

The fakes: a row holds one number for each stage, the logit of class 1 against class 0 that this stage will give. A large
number makes the stage confident, a small one sends the row on, and its sign is the label of the answer.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from cascade.models.stage import Arrays
from cascade.policy.anytime import Rule, steady
from cascade.policy.classes import ClassConfig
from cascade.policy.gain import Curve, Judge
from cascade.policy.policy import Policy, StageConfig
from cascade.policy.routing import Routing
from cascade.serving.fakes import FakeStage
from cascade.serving.router import Router
from cascade.serving.slow_loop import Control, StagePlaces
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.spec import Ladder, parse_spec

CLASSES = ("red", "green", "blue")
FEATURES = 4
SURE, UNSURE = 20.0, 0.1
"""Logits with which a fake stage answers, and with which it sends a row on."""


class Scores(nn.Module):
    """Three linear scores of rows [n, 4], sharpened."""

    def __init__(self, sharpness: float = 4.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(CLASSES), FEATURES))
        self.sharpness = sharpness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sharpness * x @ self.weight.T


class Laborious(Scores):
    """The same scores, after so many products of square matrices: a stage that a test can keep busy."""

    def __init__(self, sharpness: float = 4.0, products: int = 10, size: int = 512) -> None:
        super().__init__(sharpness)
        self.products = products
        self.register_buffer("ballast", torch.eye(size), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ballast = self.ballast
        for _ in range(self.products):
            ballast = ballast @ self.ballast
        return super().forward(x) * ballast[0, 0]


def write_ladder(folder: Path, rows: int = 600) -> Path:
    """Write a ladder of three networks, its weights and its rows; returns the path of its spec."""
    random = np.random.default_rng(5)
    true, wrong = random.normal(size=(2, len(CLASSES), FEATURES))
    (folder / "weights").mkdir()
    stages = []
    for name, blur, cost in (("rough", 0.8, 12.0), ("fair", 0.3, 120.0), ("fine", 0.02, 1200.0)):
        weight = torch.tensor(true + blur * wrong, dtype=torch.float32)
        save_file({"weight": weight}, folder / "weights" / f"{name}.safetensors")
        model = {"factory": "ladders:Scores", "args": {"sharpness": 3.0}, "weights": f"weights/{name}.safetensors"}
        stages.append({"name": name, "model": model, "cost": cost, "max_batch_size": 8, "num_cpus": 0.1})
    stages[0]["placement"] = "router"
    stages[1]["base_price"] = stages[2]["base_price"] = 0.02
    (folder / "data").mkdir()
    for split in ("calibration", "test"):
        x = random.normal(size=(rows, FEATURES)).astype(np.float32)
        np.savez(folder / "data" / f"{split}.npz", x=x, labels=(x @ true.T).argmax(axis=1))
    document = {
        "name": "colours",
        "version": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [FEATURES]}],
        "labels": list(CLASSES),
        "stages": stages,
    }
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def spec_document(stages: int = 3, **changes: Any) -> dict[str, Any]:
    """A spec for fake stages called s0, s1, …; its model factory is never called."""
    return {
        "name": "fake",
        "version": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [stages]}],
        "labels": ["no", "yes"],
        "stages": [{"name": f"s{k}", "cost": 10.0**k, "model": {"factory": "ladders:Scores"}} for k in range(stages)],
        "deadline": {"default_s": 1.0},
        "telemetry": {"explain_share": 0.0},  # nothing is left to chance
        **changes,
    }


def fake_ladder(stages: int = 3, **changes: Any) -> Ladder:
    """A ladder for fake stages, with no folder behind it."""
    return Ladder(parse_spec(spec_document(stages, **changes)), Path("nowhere"))


def told(stage: int):
    """The logits of a fake stage: what the rows say that it will give."""

    def script(inputs: Arrays) -> NDArray[np.float32]:
        logit = np.asarray(inputs["x"], dtype=np.float32)[:, stage]
        return np.stack([np.zeros_like(logit), logit], axis=1)

    return script


def row(*logits: float) -> dict[str, NDArray[np.float32]]:
    """The inputs of a message of one row."""
    return rows(logits)


def rows(*each: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    """The inputs of a message of several rows."""
    return {"x": np.array(each, dtype=np.float32)}


def fake_stages(count: int = 3, **behaviour: Any) -> list[FakeStage]:
    """Fake stages that behave alike."""
    return [FakeStage(told(k), **behaviour) for k in range(count)]


def judges(stages: int) -> list[Judge]:
    """Confidence is taken for the truth, and every dearer stage is promised to be right."""
    truth, gain = Curve.of([0, 1], [0, 1]), Curve.of([0, 1], [1, 0])
    return [Judge(1.0, truth, (gain,) * (stages - 1 - k)) for k in range(stages)]


def config(**changes: Any) -> StageConfig:
    """One stage with round numbers: 10 ms a batch and 1 ms a row; a gain below 0.01 is not worth a visit."""
    facts = {"slots": 2, "max_batch_size": 8, "cost": 1.0, "base_price": 0.01, "a_s": 0.01, "b_s": 0.001}
    return StageConfig(**{**facts, "timeout_floor_s": 0.1, **changes})


def make_router(
    stages: Sequence[StageClient | InlineStage],
    configs: Sequence[StageConfig] | None = None,
    *,
    kind: type[Router] = Router,
    wait_share: float = 0.2,
    reading: Sequence[Judge] | None = None,
    routing: Routing = "cascade",
    rule: Rule = steady,
) -> Router:
    """A router over these stages whose clock is the event loop's; must be called in the loop."""
    configs = configs or [config(cost=10.0**k) for k in range(len(stages))]
    return kind(
        Policy(configs, usual_deadline_s=1.0, wait_share=wait_share, routing=routing, seed=1),
        reading or judges(len(stages)),
        stages,
        classes=2,
        margin_s=0.02,
        clock=asyncio.get_running_loop().time,
        control=Control((ClassConfig(),), [StagePlaces(1, lambda count, slots=c.slots: count * slots) for c in configs]),
        rule=rule,
    )
