"""What a spec must say of stages that are exits of one network, and what follows from it."""

import copy

import pytest
from ladders import spec_document

from cascade.errors import SpecError
from cascade.loading import load_chain, load_network
from cascade.models.fake_device import FakeDevice
from cascade.spec import Ladder, parse_spec
from cascade.spec_exits import groups_of
from tests.exit_ladders import exit_stages, write_exit_ladder, write_spec


def document(**how):
    return {**spec_document(3), "stages": exit_stages(**how)}


def changed(place: int, **fields):
    """The document with other fields in one stage; those of the model by ``model_…``."""
    found = copy.deepcopy(document())
    for field, value in fields.items():
        if field.startswith("model_"):
            found["stages"][place]["model"][field.removeprefix("model_")] = value
        else:
            found["stages"][place][field] = value
    return found


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (changed(0, resumes=True), "'first' resumes, but there is no stage before it"),
        (changed(1, model_exit=None), "both need model.exit, which 'second' lacks"),
        (changed(0, model_exit=None), "both need model.exit, which 'first' lacks"),
        (changed(2, model_exit=1), "exit must be behind exit 1, got 1"),
        (changed(2, model_weights="other.safetensors"), "model.weights must be the same"),
        (changed(2, model_args={"a": 1}), "model.args must be the same"),
        (changed(1, model_factory="ladders:Scores"), "model.factory must be the same"),
        (changed(1, precision="bfloat16"), "precision and what changes outputs in execution must be the same"),
        (changed(1, resumes=False), "placement together needs resumes, which 'second' does not say"),
        (changed(2, replicas=2, num_gpus=1), "'third' runs together with 'first', whose replicas, num_gpus it takes"),
        (changed(1, model_exit=-1), "greater than or equal to 0"),
    ],
)
def test_what_cannot_resume_is_refused_by_name(wrong, says):
    with pytest.raises(SpecError) as refused:
        parse_spec(wrong)
    assert says in refused.value.detail


def test_direct_routing_cannot_reach_a_stage_past_the_one_that_it_resumes():
    with pytest.raises(SpecError, match="routing: direct skips stages, and 'second' resumes the one before it"):
        parse_spec(document() | {"routing": "direct"})
    with pytest.raises(SpecError, match=r"anytime\.answers product is the product of all of them"):
        parse_spec(spec_document(3, routing="direct", anytime={"answers": "product"}))
    assert parse_spec(spec_document(3, routing="direct")).routing == "direct"


def test_the_cost_of_a_segment_may_fall_but_not_that_of_getting_there():
    found = document()
    for stage, cost in zip(found["stages"], (10, 4, 2), strict=True):
        stage["cost"] = cost
    assert parse_spec(found).costs_alone == (10, 14, 16)
    found["stages"].append({"name": "dear", "model": {"factory": "ladders:Scores"}, "cost": 16})
    with pytest.raises(SpecError, match="'dear' costs 16, no more than 'third' before it with 16"):
        parse_spec(found)


def test_stages_that_run_together_have_the_processes_of_the_first():
    spec = parse_spec(document(replicas=3, num_gpus=0.5, threads=2))
    assert [(s.placement, s.replicas, s.num_gpus, s.threads) for s in spec.placed] == [("replica", 3, 0.5, 2)] * 3
    assert [stage.max_batch_size for stage in spec.placed] == [8, 8, 8]
    assert groups_of(spec.stages) == ((0, 1, 2),)
    apart = parse_spec(document(placement="replica"))
    assert apart.placed == apart.stages
    assert groups_of(apart.stages) == ()


def test_a_digest_holds_the_exit_and_where_it_begins_but_not_the_place(tmp_path):
    ladder = Ladder.read(write_exit_ladder(tmp_path))
    together = ladder.stage_digests()
    assert len(set(together.values())) == 3
    write_spec(tmp_path / "cascade.yaml", placement="replica")
    assert Ladder.read(tmp_path / "cascade.yaml").stage_digests() == together
    alone = tmp_path / "alone.yaml"
    alone.write_text((tmp_path / "cascade.yaml").read_text().replace("resumes: true", "resumes: false"))
    found = Ladder.read(alone).stage_digests()
    assert found["first"] == together["first"]
    assert not {found["second"], found["third"]} & set(together.values())


def test_a_network_with_exits_needs_one_and_another_has_none(tmp_path):
    path = write_exit_ladder(tmp_path, placement="replica")
    text = path.read_text()
    path.write_text(text.replace("exit: 2", "exit: 3"))
    ladder = Ladder.read(path)
    with pytest.raises(SpecError, match=r"stages\.third\.model\.exit: no exit 3 behind exit 1"):
        load_network(ladder, ladder.spec.stages[2])
    path.write_text(
        text.replace("      exit: 0\n", "").replace("    exit: 0\n", "").replace("resumes: true", "resumes: false")
    )
    ladder = Ladder.read(path)
    with pytest.raises(SpecError, match=r"stages\.first\.model\.exit: the network has the exits 0 to 2; say which"):
        load_network(ladder, ladder.spec.stages[0])
    plain = spec_document(1)
    plain["stages"][0]["model"]["exit"] = 0
    ladder = Ladder(parse_spec(plain), tmp_path)
    with pytest.raises(SpecError, match=r"needs a cascade\.models\.exits\.ExitNetwork, the factory returns Scores"):
        load_network(ladder, ladder.spec.stages[0])


@pytest.mark.parametrize("device", [None, FakeDevice()], ids=["cpu", "gpu"])
def test_a_stage_alone_and_a_chain_share_what_they_do(tmp_path, device):
    ladder = Ladder.read(write_exit_ladder(tmp_path))
    chain = load_chain(ladder, range(3), device=device)
    last = load_network(ladder, ladder.spec.stages[2], device=device)
    state = chain[1].run(chain[0].run(ladder.example_row()).state).state
    assert last.run(state).logits.tolist() == chain[2].run(state).logits.tolist()
    assert (last.pipeline is not None) == (device is not None)
