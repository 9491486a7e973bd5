"""The cascade in a peer's predict function gives each row the label and the rung that the ladder's own rule gives it."""

import numpy as np
import pytest

from benchmarks.peers.compute_floor import measure
from benchmarks.peers.predict import Predict
from cascade.assembly import read_artefacts
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.rows import read_rows
from cascade.spec import Ladder
from tests.server import ROOT

SPEC = ROOT / "deployments" / "fashion" / "cascade.yaml"
ROWS = 200


@pytest.fixture(scope="module")
def predict() -> Predict:
    return Predict(SPEC)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    ladder = Ladder.read(SPEC)
    return read_rows(ladder, ladder.path(ladder.spec.data.test))[0]["image"][:ROWS]


def test_rows_leave_where_the_judged_outcomes_say(predict: Predict, images: np.ndarray) -> None:
    ladder = Ladder.read(SPEC)
    outcomes = OutcomeTable.read(ladder.table_path.with_name("test-outcomes.npz"))
    exits = judge_table(outcomes, read_artefacts(ladder)[0]).exits(ladder.spec.base_prices)
    assert predict(images).stages.tolist() == exits[:ROWS].tolist()


@pytest.mark.parametrize("batch", [1, 7, 128])
def test_an_answer_does_not_depend_on_the_batch(predict: Predict, images: np.ndarray, batch: int) -> None:
    whole = predict(images)
    for start in range(0, ROWS, batch):
        part = predict(images[start : start + batch])
        assert part.labels.tolist() == whole.labels[start : start + batch].tolist()
        assert part.stages.tolist() == whole.stages[start : start + batch].tolist()


def test_the_bare_loop_counts_rows_and_not_batches(predict: Predict, images: np.ndarray) -> None:
    found = measure(predict, images, 32, warm_s=0.0, seconds=0.2)
    assert found["throughput"] == pytest.approx(32e3 / found["p50_ms"], rel=0.9)
    assert 0 < found["cores"] < 8
