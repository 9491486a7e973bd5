"""The ladder that faults are tried on, and every answer that it may give to a row. Knows files and networks, no Ray.

Three stages of two replicas each. A row in R^4 is labelled by the largest of three linear scores; a stage computes them from
weights that were blurred, less for every dearer stage, so that stages differ in accuracy.
"""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from cascade.assembly import Artefacts
from cascade.policy.gain import Earlier
from cascade.spec import Ladder

ROOT = Path(__file__).resolve().parents[2]
NAME = "faults"
CLASSES = ("red", "green", "blue")
STAGES = {
    # name: blur, cost, seconds of a pass, seconds a row, rows in a pass
    "rough": (0.8, 12.0, 0.008, 0.001, 16),
    "fair": (0.3, 120.0, 0.03, 0.005, 8),
    "fine": (0.02, 1200.0, 0.1, 0.02, 4),
}
REPLICAS = 2
ROUTERS = 2
DEADLINE_S = 1.0
ROWS = {"calibration": 240, "test": 600}


def unit_rate() -> float:
    """Requests a second that the last stage could take if all came to it: what multiples of load refer to."""
    *_, (_, _, a_s, b_s, rows) = STAGES.values()
    return REPLICAS * rows / (a_s + b_s * rows)


def stage0_rate() -> float:
    """Requests a second that the first stage can take."""
    _, _, a_s, b_s, rows = next(iter(STAGES.values()))
    return REPLICAS * rows / (a_s + b_s * rows)


def write_ladder(folder: Path) -> Path:
    """Write spec, weights and rows, then profile and calibrate it; the path of the spec."""
    random = np.random.default_rng(5)
    true, wrong = random.normal(size=(2, len(CLASSES), 4))
    for part in ("weights", "data", "hooks"):
        (folder / part).mkdir(parents=True)
    stages = []
    for place, (name, (blur, cost, a_s, b_s, rows)) in enumerate(STAGES.items()):
        # Scores of a scale at which confidences say something.
        save_file(
            {"weight": torch.tensor(3.0 * (true + blur * wrong), dtype=torch.float32)},
            folder / "weights" / f"{name}.safetensors",
        )
        arguments = {"stage": name, "folder": str(folder), "a_s": a_s, "b_s": b_s}
        model = {"factory": "loadtests.faults.network:Faulty", "args": arguments, "weights": f"weights/{name}.safetensors"}
        stage = {"name": name, "model": model, "cost": cost, "max_batch_size": rows, "replicas": REPLICAS}
        stage |= {"num_cpus": 1, "resources": {"worker": 1}}
        stages.append(stage | ({"base_price": 0.02} if place else {}))
    for split, count in ROWS.items():
        x = random.normal(size=(count, 4)).astype(np.float32)
        np.savez(folder / "data" / f"{split}.npz", x=x, labels=(x @ true.T).argmax(axis=1))
    document = {
        "name": NAME,
        "version": "1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
        "labels": list(CLASSES),
        "stages": stages,
        "deadline": {"default_s": DEADLINE_S},
        # The routers have a node of their own: it is the others that are lost.
        "router": {"replicas": ROUTERS, "num_cpus": 0.5, "resources": {"router": 1}},
    }
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(document))
    for command in ("profile", "calibrate"):
        subprocess.run([sys.executable, "-m", "cascade.cli", command, str(path)], cwd=ROOT, check=True)
    return path


def possible_answers(spec: Path) -> NDArray[np.bool_]:
    """[rows, S, classes] whether a row of the test data may get this label when it stops at this stage.

    It depends on the stages passed, which may be combined with or recalled; those that were out were not passed.
    """
    ladder = Ladder.read(spec)
    judges = [stage.judge() for stage in Artefacts.read(ladder).calibration.stages]
    with np.load(ladder.path(ladder.spec.data.test)) as data:
        x = torch.from_numpy(data["x"])
    logits = [
        (x @ load_file(spec.parent / "weights" / f"{stage.name}.safetensors")["weight"].T).numpy()
        for stage in ladder.spec.stages
    ]
    found = np.zeros((len(x), len(judges), len(CLASSES)), bool)
    rows = np.arange(len(x))
    for last in range(len(judges)):
        for passed in (way for count in range(last + 1) for way in combinations(range(last), count)):
            earlier: Earlier | None = None
            for stage in (*passed, last):
                judge = judges[stage]
                judgement = judge(logits[stage], earlier if judge.looks_back and earlier is not None else None)
                earlier = Earlier(judgement.probabilities, judgement.p_correct)
            found[rows, last, judgement.probabilities.argmax(axis=1)] = True
    return found
