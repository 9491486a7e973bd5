"""A ladder over every datatype whose right answers a test can work out: rows, labels, and the spec on disk."""

from pathlib import Path

import numpy as np
import yaml
from typer.testing import CliRunner

from cascade.cli import app

DATATYPES = {
    "pixels": ("UINT8", [3, 2]),
    "flags": ("BOOL", [2]),
    "ids": ("INT64", [1]),
    "single": ("FP32", [2]),
    "half": ("FP16", [2]),
    "words": ("BYTES", [2]),
}


def checksum_rows(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows of every datatype, with values that all of them hold exactly."""
    rng = np.random.default_rng(seed)
    words = np.array([b"x" * int(n) for n in rng.integers(0, 9, rows * 2)], dtype=object)
    return {
        "pixels": rng.integers(0, 256, (rows, 3, 2), dtype=np.uint8),
        "flags": rng.integers(0, 2, (rows, 2)).astype(bool),
        "ids": rng.integers(0, 1 << 20, (rows, 1)),
        "single": rng.integers(0, 1000, (rows, 2)).astype(np.float32),
        "half": rng.integers(0, 100, (rows, 2)).astype(np.float16),
        "words": words.reshape(rows, 2),
    }


def checksum(rows: dict[str, np.ndarray], classes: int = 4) -> np.ndarray:
    """The right answers, worked out without torch."""
    total = np.zeros(len(rows["ids"]), dtype=np.int64)
    for name, array in rows.items():
        values = np.vectorize(len)(array) if name == "words" else array
        total += values.astype(np.float64).reshape(len(array), -1).sum(axis=1).astype(np.int64)
    return total % classes


def write_checksum_ladder(root: Path) -> Path:
    """A ladder of two checksum networks over every datatype, profiled and calibrated; the first errs on half of the rows."""
    document = {
        "name": "checksum",
        "version": "7",
        "inputs": [{"name": n, "datatype": t, "shape": s} for n, (t, s) in DATATYPES.items()],
        "labels": ["zero", "one", "two", "three"],
        "stages": [
            {
                "name": "rough",
                "placement": "router",
                "cost": 1,
                "model": {"factory": "cascade.models.fakes:ChecksumNet", "args": {"right_below": 1 << 19}},
            },
            {
                "name": "exact",
                "cost": 10,
                "num_cpus": 0.1,
                "timeout_floor_s": 30,  # these tests are about data: on a busy machine a call may take its time
                "model": {"factory": "cascade.models.fakes:ChecksumNet"},
            },
        ],
        "router": {"num_cpus": 0.1},
        "limits": {"max_rows": 64, "max_body_bytes": 1 << 20},
    }
    path = root / "cascade.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    rows = checksum_rows(800, seed=1)
    (root / "data").mkdir()
    np.savez(root / "data" / "calibration.npz", labels=checksum(rows), **(rows | {"words": rows["words"].astype("S")}))
    runner = CliRunner()
    for command in ("profile", "calibrate", "check"):
        done = runner.invoke(app, [command, str(path)])
        assert done.exit_code == 0, done.output
    return path
