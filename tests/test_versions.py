"""Build and version of a ladder: what changes which, and what replicas and routers refuse because of it."""

import numpy as np
import pytest
import yaml
from ladders import write_ladder
from safetensors.torch import load_file, save_file

from cascade.errors import ConfigError
from cascade.spec import Ladder
from cascade.versions import build_digest, check_same_build, group_digest, version_digest


@pytest.fixture
def path(tmp_path):
    return write_ladder(tmp_path, rows=10)


def changed(path, change) -> Ladder:
    """The ladder with another spec."""
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))
    return Ladder.read(path)


def cheaper(document):
    document["stages"][1]["base_price"] = 0.01


def larger_batches(document):
    document["stages"][1]["max_batch_size"] = 16


def blur(path, stage="fine"):
    weights = path.parent / "weights" / f"{stage}.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights)


def test_digests_are_the_same_for_the_same_files(path):
    first, second = Ladder.read(path), Ladder.read(path)
    assert (build_digest(first), version_digest(first)) == (build_digest(second), version_digest(second))
    assert build_digest(first) == build_digest(first, first.stage_digests())


@pytest.mark.parametrize(
    "change",
    [
        cheaper,
        lambda document: document.update(price_per_cost=1e-6),
        lambda document: document.update(audit_share=0.5),
        lambda document: document.update(calibration="elsewhere"),
        lambda document: document.update(admission={"wait_share": 0.4}),
    ],
)
def test_what_a_running_router_takes_up_changes_the_version_alone(path, change):
    before = Ladder.read(path)
    build, version = build_digest(before), version_digest(before)
    after = changed(path, change)
    assert build_digest(after) == build
    assert version_digest(after) != version
    check_same_build(before, after)


def test_weights_and_floors_of_classes_are_taken_up_and_their_number_is_not(path):
    def classes(weights):
        entries = [{"name": f"c{place}", "weight": weight} for place, weight in enumerate(weights)]
        return lambda document: document.update(
            admission={"priorities": len(weights), "default_priority": 1, "classes": entries}
        )

    before = changed(path, classes([1.0, 0.5]))
    check_same_build(before, changed(path, classes([1.0, 0.25])))
    with pytest.raises(ConfigError, match=r"admission\.priorities"):
        check_same_build(before, changed(path, classes([1.0, 0.5, 0.25])))


def test_a_field_that_needs_new_replicas_is_named(path):
    before = Ladder.read(path)
    build = build_digest(before)
    after = changed(path, larger_batches)
    assert build_digest(after) != build
    with pytest.raises(ConfigError, match=r"^stages\.fair\.max_batch_size cannot change while the server runs"):
        check_same_build(before, after)


def test_weights_change_build_and_version(path):
    ladder = Ladder.read(path)
    before = build_digest(ladder), version_digest(ladder)
    blur(path)
    assert build_digest(ladder) != before[0]
    assert version_digest(ladder) != before[1]


def test_each_artefact_changes_the_version_alone(path):
    ladder = Ladder.read(path)
    (path.parent / "calibration").mkdir()
    seen = {version_digest(ladder)}
    build = build_digest(ladder)
    for each in (ladder.calibration_path, ladder.service_path, ladder.certificate_path):
        each.write_text("{}")
        seen.add(version_digest(ladder))
    np.savez(ladder.table_path, labels=np.zeros(3))
    seen.add(version_digest(ladder))
    assert len(seen) == 5
    assert build_digest(ladder) == build


def test_a_replica_is_known_by_what_its_ladder_was_found_to_belong_to(path):
    ladder = Ladder.read(path)
    fair, fine = group_digest(ladder, [1]), group_digest(ladder, [2])
    assert fair != fine
    assert group_digest(ladder, range(1, 3)) not in (fair, fine)
    blur(path)
    assert group_digest(Ladder.read(path), [2]) != fine
    assert group_digest(Ladder.read(path), [1]) == fair
    ladder.digests = {"fine": "what was found"}
    assert group_digest(ladder, [2]) != group_digest(Ladder.read(path), [2])
