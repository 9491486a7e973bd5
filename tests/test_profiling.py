"""Profiling a throw-away ladder: rows in, outcome table and service times out, and what is said of files that are wrong."""

import numpy as np
import pytest
import yaml
from ladders import CLASSES, FEATURES, write_ladder

from cascade.errors import ConfigError, SpecError
from cascade.loading import load_network
from cascade.models.fake_device import FakeDevice
from cascade.profiling import measured_batches, profile
from cascade.rows import read_rows
from cascade.spec import Ladder


@pytest.fixture
def ladder(tmp_path):
    return Ladder.read(write_ladder(tmp_path, rows=20))


def rewrite(ladder: Ladder, change) -> Ladder:
    """The ladder after a change to its spec."""
    path = ladder.root / "cascade.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return Ladder.read(path)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    ladder = Ladder.read(write_ladder(tmp_path_factory.mktemp("profiled"), rows=100))
    steps = []
    rows = ladder.path(ladder.spec.data.calibration)
    table, service = profile(ladder, rows, "calibration", lambda what, share: steps.append((what, share)))
    return ladder, table, service, steps


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written(ladder):
    inputs, labels = read_rows(ladder, ladder.path(ladder.spec.data.test))
    assert list(inputs) == ["x"]
    assert inputs["x"].shape == (20, FEATURES)
    assert inputs["x"].dtype == np.float32
    assert labels.dtype == np.int64
    assert set(labels) <= set(range(len(CLASSES)))


GOOD = {"x": np.zeros((6, FEATURES), np.float32), "labels": np.arange(6) % 3}


@pytest.mark.parametrize(
    ("arrays", "mentions"),
    [
        ({"labels": GOOD["labels"]}, ["'x'", "labels"]),
        ({**GOOD, "x": np.zeros((6, FEATURES))}, ["'x'", "float32", "float64"]),
        ({**GOOD, "x": np.zeros((6, 3), np.float32)}, ["'x'", "[rows, 4]", "[6, 3]"]),
        ({**GOOD, "x": np.zeros((5, FEATURES), np.float32)}, ["'x'", "5 rows", "6"]),
        ({"x": GOOD["x"]}, ["'labels'"]),
        ({**GOOD, "labels": np.zeros(6)}, ["'labels'", "whole numbers"]),
        ({**GOOD, "labels": np.zeros((6, 1), int)}, ["'labels'", "[rows]"]),
        ({**GOOD, "labels": np.arange(6)}, ["'labels'", "0..2"]),
        ({**GOOD, "labels": np.arange(6) - 1}, ["'labels'", "0..2"]),
        ({"x": GOOD["x"][:0], "labels": GOOD["labels"][:0]}, ["'labels'", "some"]),
    ],
)
def test_rows_that_do_not_fit_the_spec_are_refused(ladder, arrays, mentions):
    path = ladder.path("rows.npz")
    np.savez(path, **arrays)
    with pytest.raises(ConfigError) as refused:
        read_rows(ladder, path)
    for mention in ["rows.npz", *mentions]:
        assert mention in refused.value.detail


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", b"hello", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(ladder, content):
    path = ladder.path("rows.npz")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"rows\.npz"):
        read_rows(ladder, path)


def test_a_single_array_and_a_missing_file_are_refused(ladder):
    path = ladder.path("rows.npz")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(ladder, path)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ConfigError, match="single array"):
        read_rows(ladder, path)


def test_an_archive_that_is_cut_or_damaged_is_refused(ladder):
    path = ladder.path(ladder.spec.data.test)
    whole = path.read_bytes()
    middle = len(whole) // 4
    for content in (whole[: len(whole) // 2], whole[:middle] + b"\xff" * 8 + whole[middle + 8 :]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"test\.npz"):
            read_rows(ladder, path)


def test_pickled_objects_are_not_opened(ladder):
    path = ladder.path("rows.npz")
    np.savez(path, x=np.array([{}], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(ConfigError, match=r"rows\.npz"):
        read_rows(ladder, path)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_a_loaded_network_answers_as_its_weights_say(ladder):
    inputs, labels = read_rows(ladder, ladder.path(ladder.spec.data.test))
    logits = load_network(ladder, ladder.spec.stages[-1]).run(inputs).logits
    assert logits.shape == (20, len(CLASSES))
    assert (logits.argmax(axis=1) == labels).mean() > 0.9


def first_model(**changes):
    return lambda document: document["stages"][0]["model"].update(changes)


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (first_model(factory="builtins:dict", args={}), ["stages.rough.model.factory", "torch.nn.Module", "dict"]),
        (first_model(factory="builtins:open", args={"file": "nowhere"}), ["builtins:open", "nowhere"]),
        (first_model(factory="no_such_module:Net"), ["no_such_module:Net"]),
        (first_model(factory="ladders:NoSuchClass"), ["NoSuchClass"]),
        (first_model(args={"blunt": 1}), ["blunt"]),
        (first_model(weights="weights/none.safetensors"), ["stages.rough.model.weights", "none.safetensors"]),
        (lambda document: document["inputs"][0].update(shape=[3]), ["stages.rough.model", "rows of zeros"]),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(ladder, change, mentions):
    ladder = rewrite(ladder, change)
    with pytest.raises(SpecError) as refused:
        load_network(ladder, ladder.spec.stages[0])
    for mention in mentions:
        assert mention in refused.value.detail


@pytest.mark.parametrize("content", [b"", b"garbage that is no safetensors file"])
def test_broken_weights_are_refused(ladder, content):
    ladder.path("weights/rough.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"rough\.safetensors"):
        load_network(ladder, ladder.spec.stages[0])


# -- profiling ---------------------------------------------------------------------------------------------------------


def test_the_table_holds_what_every_stage_makes_of_every_row(profiled):
    ladder, table, _, _ = profiled
    inputs, labels = read_rows(ladder, ladder.path(ladder.spec.data.calibration))
    assert table.stages == ("rough", "fair", "fine")
    assert table.rows == 100
    np.testing.assert_array_equal(table.labels, labels)
    for stage in ladder.spec.stages:
        logits = load_network(ladder, stage).run(inputs).logits.astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(table.probs(stage.name), odds / odds.sum(axis=1, keepdims=True), atol=1e-5)
    accuracies = [table.correct(name).mean() for name in table.stages]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < accuracies[-1]


def test_the_service_profile_measures_growing_batches_up_to_the_largest(profiled):
    ladder, _, service, _ = profiled
    assert [stage.name for stage in service.stages] == ["rough", "fair", "fine"]
    for stage in service.stages:
        assert [batch.rows for batch in stage.measured] == [1, 2, 4, 8]
        assert all(0 < batch.median_s <= batch.p99_s for batch in stage.measured)
        assert stage.a_s + stage.b_s > 0
    service.check_belongs([stage.name for stage in ladder.spec.stages], ladder.stage_digests())


def test_on_a_gpu_every_bucket_is_measured_at_both_its_ends(ladder):
    stage = ladder.spec.stages[0]
    found = load_network(ladder, stage, device=FakeDevice())
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    assert found.pipeline.buckets == (1, 2, 4, 8)
    assert [batch.rows for batch in measured_batches(found, [inputs], stage)] == [1, 2, 3, 4, 5, 8]


def test_what_a_spec_says_of_execution_is_done(ladder):
    how = {"graphs": False, "buckets": [3, 8], "in_flight": 5}
    ladder = rewrite(ladder, lambda document: document["stages"][0].update(execution=how))
    found = load_network(ladder, ladder.spec.stages[0], device=FakeDevice())
    assert (found.pipeline.buckets, found.pipeline.graphed, found.in_flight) == ((3, 8), False, 5)


def test_progress_never_goes_back_and_ends_at_one(profiled):
    _, _, _, steps = profiled
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {"rough", "fair", "fine"} <= {what for what, _ in steps}


def test_a_stage_whose_outputs_are_no_logits_of_the_classes_is_named(ladder):
    ladder = rewrite(ladder, lambda document: document.update(labels=["red", "green", "blue", "grey"]))
    with pytest.raises(ConfigError, match=r"'rough'.*\(8, 4\).*\(8, 3\)"):
        profile(ladder, ladder.path(ladder.spec.data.calibration), "calibration", lambda what, share: None)
