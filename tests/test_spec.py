"""The spec: what is accepted, what is refused and with which words, and what a digest depends on."""

import json
from contextlib import chdir
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from ladders import spec_document, write_ladder
from pydantic import ValidationError

from cascade.errors import SpecError
from cascade.spec import Ladder, ModelRef, json_schema, parse_spec

ROOT = Path(__file__).parents[1]


def refused(document) -> str:
    with pytest.raises(SpecError) as error:
        parse_spec(document)
    return error.value.detail


def changed(path: str, value: object) -> dict:
    """A good spec with one member set, or removed if the value is ``...``."""
    document = deepcopy(spec_document(2))
    target: object = document
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return document


def test_a_short_spec_gets_the_documented_defaults():
    spec = parse_spec(spec_document(2))
    assert spec.deadline.default_s == 1.0
    assert spec.admission.priorities == 4
    assert spec.admission.default_priority == 2
    assert spec.limits.max_rows == 1024
    assert spec.stages[0].placement == "replica"
    assert spec.base_prices == (0.0, 0.0)
    assert spec.data.calibration == "data/calibration.npz"


def test_a_base_price_follows_from_the_cost_unless_the_stage_has_its_own():
    document = spec_document(3, price_per_cost=0.001)
    document["stages"][1]["base_price"] = 0.5
    assert parse_spec(document).base_prices == (0.001, 0.5, 0.1)


@pytest.mark.parametrize("path", sorted(ROOT.glob("deployments/*/cascade.yaml")), ids=lambda path: path.parent.name)
def test_every_shipped_spec_is_valid_and_points_editors_at_the_schema(path):
    ladder = Ladder.read(path)
    assert all(ladder.weights(stage) for stage in ladder.spec.stages)
    first = path.read_text().splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "cascade.schema.json"


@pytest.mark.parametrize(
    ("path", "value", "mentions"),
    [
        ("name", ..., ["name", "required"]),
        ("name", "a/b", ["name", "'a/b'"]),
        ("name", "", ["name"]),
        ("version", 1, ["version", "string", "got 1"]),
        ("versions", "1", ["versions", "unknown field"]),
        ("inputs", [], ["inputs"]),
        ("inputs.0.datatype", "FLOAT", ["inputs.0.datatype", "'FP32'", "'FLOAT'"]),
        ("inputs.0.shape", [0], ["inputs.0.shape.0", "greater than or equal to 1", "got 0"]),
        ("inputs.0.shape", [-1], ["inputs.0.shape.0", "got -1"]),
        ("inputs.0.name", "labels", ["inputs", "'labels'"]),
        ("labels", ["one"], ["labels", "at least 2"]),
        ("stages", [], ["stages", "at least 1"]),
        ("stages.1.name", "s0", ["stages", "'s0'", "twice"]),
        ("stages.1.cost", 1.0, ["stages", "'s1' costs 1", "'s0'"]),
        ("stages.0.cost", 0, ["stages.0.cost", "greater than 0", "got 0"]),
        ("stages.0.cost", float("inf"), ["stages.0.cost", "finite"]),
        ("stages.0.costs", 2, ["stages.0.costs", "unknown field", "got 2"]),
        ("stages.1.placement", "router", ["stages", "only the cheapest", "'s1'"]),
        ("stages.0.placement", "gpu", ["stages.0.placement", "'router', 'replica' or 'together'", "'gpu'"]),
        ("stages.0.base_price", 1.0, ["stages.0.base_price", "less than 1"]),
        ("stages.0.max_batch_size", 0, ["stages.0.max_batch_size", "got 0"]),
        ("stages.0.max_batch_size", 2.5, ["stages.0.max_batch_size", "integer", "got 2.5"]),
        ("stages.0.replicas", "many", ["stages.0.replicas", "integer", "'many'"]),
        ("stages.0.num_gpus", 2, ["stages.0.num_gpus", "less than or equal to 1", "got 2"]),
        ("stages.0.resources", {"gpu_small": 0}, ["stages.0.resources.gpu_small", "0.0001", "got 0"]),
        ("stages.0.resources", {"a b": 1}, ["stages.0.resources.a b", "'a b'"]),
        ("stages.0.resources", {"GPU": 1}, ["stages.0.resources.GPU", "num_gpus"]),
        ("router.resources", {"memory": 1}, ["router.resources.memory", "no custom resource"]),
        ("stages.0.execution", {"graph": True}, ["stages.0.execution.graph", "unknown field"]),
        ("stages.0.execution", {"in_flight": 0}, ["stages.0.execution.in_flight", "got 0"]),
        ("stages.0.execution", {"thinks": True}, ["stages", "execution.thinks", "first stage", "'s0'"]),
        ("stages.0.execution", {"cast_weights": True}, ["stages.0", "cast_weights", "float32"]),
        ("stages.0.execution", {"buckets": [4, 1, 32]}, ["stages.0", "rise", "32", "[4, 1, 32]"]),
        ("stages.0.execution", {"buckets": [4, 16]}, ["stages.0", "end with max_batch_size 32", "[4, 16]"]),
        ("stages.0.precision", "int8", ["stages.0.precision", "'float32'", "'int8'"]),
        ("stages.0.model.factory", "no colon", ["stages.0.model.factory", "'no colon'"]),
        ("stages.0.model", {}, ["stages.0.model.factory", "required"]),
        ("stages.0.model.args", {"day": object}, ["stages.0.model.args.day", "JSON"]),
        ("deadline.default_s", 0, ["deadline.default_s", "greater than 0"]),
        ("deadline.default_s", float("nan"), ["deadline.default_s", "finite"]),
        ("deadline.margin_s", -1, ["deadline.margin_s"]),
        ("admission.wait_share", 1.5, ["admission.wait_share", "less than or equal to 1", "got 1.5"]),
        ("admission.default_priority", 5, ["admission", "default_priority 5", "priorities 4"]),
        ("limits.max_body_bytes", 10, ["limits.max_body_bytes", "1024", "got 10"]),
        ("router.replicas", 0, ["router.replicas"]),
        ("inputs.0.text", True, ["inputs.0", "text travels as BYTES, not as FP32"]),
    ],
)
def test_a_wrong_field_is_told_by_place_allowed_and_given(path, value, mentions):
    detail = refused(changed(path, value))
    for mention in mentions:
        assert mention in detail
    assert "pydantic" not in detail


def test_a_stage_in_the_router_reserves_no_resources_of_its_own():
    document = changed("stages.0.placement", "router")
    document["stages"][0]["resources"] = {"gpu_small": 1}
    assert "router.resources" in refused(document)


def test_a_resource_that_ray_makes_itself_may_be_asked_for():
    (stage, _) = parse_spec(changed("stages.0.resources", {"accelerator_type:T4": 0.001})).stages
    assert stage.resources == {"accelerator_type:T4": 0.001}


def test_a_stage_in_the_router_reserves_no_gpu():
    document = changed("stages.0.placement", "router")
    document["stages"][0]["num_gpus"] = 0.5
    assert "num_gpus does not go with placement router" in refused(document)


CLASSES = [{"name": "paying", "weight": 1.0, "max_loss": 0.05, "beyond_floor": "shed"}, {"name": "free", "weight": 0.25}]


def with_classes(*classes: dict, **admission: int) -> dict:
    """A good spec of two priorities with these classes."""
    return changed("admission", {"priorities": 2, "default_priority": 1, "classes": [*classes], **admission})


def test_classes_are_read_and_by_default_are_weighted_around_the_class_of_those_who_name_none():
    spec = parse_spec(with_classes(*CLASSES))
    assert [(c.name, c.weight, c.max_loss, c.beyond_floor) for c in spec.admission.all_classes] == [
        ("paying", 1.0, 0.05, "shed"),
        ("free", 0.25, None, "wait"),
    ]
    default = parse_spec(changed("admission", {"priorities": 3, "default_priority": 1})).admission.all_classes
    assert [(c.name, c.weight) for c in default] == [("p1", 1.0), ("p2", 0.5), ("p3", 0.25)]


@pytest.mark.parametrize(
    ("classes", "mentions"),
    [
        (CLASSES[:1], ["admission", "each of 2 priorities, got 1"]),
        ([CLASSES[0], CLASSES[0]], ["'paying'", "twice"]),
        (CLASSES[::-1], ["'paying' is less important than 'free'", "1", "larger"]),
        ([CLASSES[0], {**CLASSES[1], "weight": 0}], ["admission.classes.1.weight", "greater than 0", "got 0"]),
        ([CLASSES[0], {**CLASSES[1], "weight": 101}], ["admission.classes.1.weight", "100"]),
        ([{**CLASSES[0], "max_loss": 1.0}, CLASSES[1]], ["admission.classes.0.max_loss", "less than 1"]),
        ([{**CLASSES[0], "beyond_floor": "fail"}, CLASSES[1]], ["admission.classes.0.beyond_floor", "'wait' or 'shed'"]),
    ],
)
def test_classes_that_do_not_fit_are_told_by_place_allowed_and_given(classes, mentions):
    detail = refused(with_classes(*classes))
    for mention in mentions:
        assert mention in detail


def test_every_wrong_field_gets_a_line():
    document = changed("stages.0.cost", -1)
    document["limits"] = {"max_rows": 0}
    document["typo"] = True
    assert len(refused(document).splitlines()) == 3


def test_two_inputs_of_one_name_are_refused():
    document = spec_document(2)
    document["inputs"] *= 2
    assert "inputs: two tensors have the same name" in refused(document)


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        (b"", "mapping"),
        (b"- a\n- b\n", "mapping"),
        (b"name: [", "YAML"),
        (b"\xff\xfe\x00", "YAML"),
        (b"name: 2020-13-45", "YAML"),
        (b"? [a]\n: b\n", "YAML"),
        (b"name: !!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_by_name(tmp_path, text, mention):
    path = tmp_path / "cascade.yaml"
    path.write_bytes(text)
    with pytest.raises(SpecError, match=mention) as error:
        Ladder.read(path)
    assert str(path) in error.value.detail


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError) as error:
            Ladder.read(path)
        assert str(path) in error.value.detail


def test_a_spec_cannot_be_changed():
    spec = parse_spec(spec_document(2))
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"


def test_paths_start_from_the_folder_of_the_spec(tmp_path):
    spec = write_ladder(tmp_path, rows=1)
    with chdir(tmp_path.parent):
        ladder = Ladder.read(Path(tmp_path.name) / spec.name)
    assert ladder.root == tmp_path
    assert ladder.weights(ladder.spec.stages[0]) == tmp_path / "weights" / "rough.safetensors"
    assert ladder.calibration_path == tmp_path / "calibration" / "calibration.json"


def test_weights_that_are_not_there_are_told_by_stage_and_path(tmp_path):
    ladder = Ladder.read(write_ladder(tmp_path, rows=1))
    ladder.path("weights/fair.safetensors").unlink()
    with pytest.raises(SpecError, match=r"stages\.fair\.model\.weights.*fair\.safetensors"):
        ladder.stage_digests()


def test_a_model_without_weights_has_a_digest():
    assert Ladder(parse_spec(spec_document(2)), Path("nowhere")).stage_digests().keys() == {"s0", "s1"}


def test_an_example_row_is_one_row_of_zeros_of_every_input():
    inputs = [{"name": "a", "datatype": "UINT8", "shape": [2, 3]}, {"name": "b", "datatype": "BOOL"}]
    example = Ladder(parse_spec(spec_document(2, inputs=inputs)), Path("nowhere")).example_row()
    assert {name: (array.shape, str(array.dtype)) for name, array in example.items()} == {
        "a": ((1, 2, 3), "uint8"),
        "b": ((1,), "bool"),
    }


@pytest.mark.parametrize(
    ("factory", "args", "mention"),
    [
        ("no_such_module:Net", {}, "no_such_module"),
        ("torch.nn:NoSuchLayer", {}, "NoSuchLayer"),
        ("torch.nn:Linear", {"wide": 3}, "wide"),
        ("torch.nn:Linear.missing", {}, "missing"),
        (".relative:Net", {}, "relative"),
        ("operator:truediv", {}, "truediv"),
        ("builtins:open", {"file": "nowhere"}, "nowhere"),
    ],
)
def test_a_factory_that_fails_is_told_with_its_arguments(factory, args, mention):
    with pytest.raises(SpecError, match=mention) as error:
        ModelRef(factory=factory, args=args).build()
    assert factory in error.value.detail


def test_a_factory_may_be_an_attribute_of_a_class():
    model = ModelRef(factory="collections:OrderedDict.fromkeys", args={"iterable": ["a"]})
    assert list(model.build()) == ["a"]


# -- digests -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    return write_ladder(tmp_path, rows=1)


def digests(spec: Path, change=lambda document: None) -> dict[str, str]:
    document = yaml.safe_load(spec.read_text())
    change(document)
    spec.write_text(yaml.safe_dump(document))
    return Ladder.read(spec).stage_digests()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["stages"][0]["model"]["args"].update(sharpness=2.0),
        lambda d: d["stages"][0]["model"].update(factory="ladders:Other"),
        lambda d: d["stages"][0].update(precision="bfloat16"),
        lambda d: d["stages"][0].update(execution={"channels_last": True}),
        lambda d: d["stages"][0].update(execution={"compile": True}),
        lambda d: d["stages"][0]["model"].pop("weights"),
    ],
)
def test_a_digest_changes_with_whatever_changes_the_outputs_of_its_stage(written, change):
    before, after = digests(written), digests(written, change)
    assert {name for name in before if before[name] != after[name]} == {"rough"}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["inputs"][0].update(datatype="FP64"),
        lambda d: d["inputs"][0].update(shape=[2, 2]),
        lambda d: d["labels"].append("grey"),
    ],
)
def test_what_all_stages_see_is_part_of_every_digest(written, change):
    before, after = digests(written), digests(written, change)
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["stages"][0].update(cost=13.0, max_batch_size=4, replicas=3, base_price=0.1, threads=2),
        lambda d: d["stages"][1].update(num_gpus=0.5, execution={"graphs": False, "buckets": [3, 8], "in_flight": 4}),
        lambda d: d["stages"][0].update(execution={"channels_last": False}),
        lambda d: d["stages"][1].update(resources={"gpu_small": 0.001}),
        lambda d: d.update(name="other", version="8", deadline={"default_s": 2.0}),
        lambda d: d["inputs"][0].update(text=False),
    ],
)
def test_how_a_stage_is_served_is_not_part_of_its_digest(written, change):
    assert digests(written) == digests(written, change)


def test_what_the_door_refuses_is_not_part_of_a_digest(written):
    before = digests(written, lambda d: d["inputs"][0].update(datatype="BYTES"))
    assert digests(written, lambda d: d["inputs"][0].update(text=True)) == before


def test_a_digest_tells_weights_in_the_precision_from_autocast(written):
    before = digests(written, lambda d: d["stages"][0].update(precision="float16"))
    after = digests(written, lambda d: d["stages"][0].update(execution={"cast_weights": True}))
    assert {name for name in before if before[name] != after[name]} == {"rough"}


def test_a_digest_reads_the_weights_themselves(written):
    before = digests(written)
    weights = written.parent / "weights" / "fine.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    after = digests(written)
    assert {name for name in before if before[name] != after[name]} == {"fine"}


# -- schema ------------------------------------------------------------------------------------------------------------


def test_the_schema_names_every_field_with_a_description():
    schema = json_schema()
    for part in [schema, *schema["$defs"].values()]:
        if part.get("type") == "object" and part.get("properties"):
            assert part["additionalProperties"] is False
            for name, field in part["properties"].items():
                assert field.get("description"), f"{part['title']}.{name}"


def test_the_schema_is_plain_json():
    assert json.loads(json.dumps(json_schema())) == json_schema()
