"""From a spec and its certificate to the policy's classes, and what is refused on the way."""

import pytest
import yaml
from ladders import fake_ladder
from typer.testing import CliRunner

from cascade.assembly import Artefacts, anytime_rule, build_policy, class_configs, read_certificate
from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.certificate import digest_of
from cascade.calibration.certify import certify
from cascade.cli import app
from cascade.errors import CalibrationMismatch, ConfigError
from cascade.loading import load_network
from cascade.policy.anytime import Product, best_so_far, plain, steady
from cascade.policy.direct_market import DirectMarket
from cascade.spec import Ladder
from tests.calibration.judged_cases import difficulty_ladder
from tests.test_spec import ROOT

FASHION = ROOT / "deployments" / "fashion" / "cascade.yaml"


@pytest.fixture(scope="module")
def certificate():
    """Of a ladder of three stages."""
    return certify(difficulty_ladder(rows=4000, seed=1), max_loss=0.03, confidence=0.9, prices_grid=[])


def spec(*losses: float | None, **changes):
    """A spec of three fake stages with one class for each loss."""
    classes = [
        {"name": f"c{place}", "weight": 2.0**-place, **({} if loss is None else {"max_loss": loss, "beyond_floor": "shed"})}
        for place, loss in enumerate(losses)
    ]
    admission = {"priorities": len(losses), "default_priority": 1, "classes": classes}
    return fake_ladder(3, admission=admission, **changes).spec


def test_without_classes_in_the_spec_each_has_half_the_weight_of_the_one_above_and_the_default_class_1():
    configs = class_configs(fake_ladder(3).spec, None)
    assert [config.weight for config in configs] == [2.0, 1.0, 0.5, 0.25]
    assert {(config.cap, config.beyond_floor) for config in configs} == {(None, "wait")}


def test_a_floor_becomes_the_boldest_prices_that_are_certified_to_keep_it(certificate):
    top, middle, none = class_configs(spec(0.05, 0.2, None), certificate)
    assert top.cap == certificate.cap_for(0.05)
    assert middle.cap == certificate.cap_for(0.2)
    assert all(low <= high for low, high in zip(top.cap[1:], middle.cap[1:], strict=True))
    assert (none.cap, top.beyond_floor, none.beyond_floor) == (None, "shed", "wait")


def test_a_floor_without_a_certificate_says_what_to_run():
    with pytest.raises(ConfigError, match=r"classes\.1\.max_loss 0\.05: .*`cascade certify`.*certificate\.json"):
        class_configs(spec(None, 0.05), None)


@pytest.mark.parametrize(("loss", "changes"), [(1e-6, {}), (0.05, {"price_per_cost": 0.002})])
def test_a_floor_that_cannot_be_kept_says_the_smallest_that_can(certificate, loss, changes):
    wanted = spec(loss, **changes)
    smallest = certificate.bound_at(wanted.base_prices)
    with pytest.raises(ConfigError, match=rf"classes\.0\.max_loss {loss:g}: .*base prices is {smallest:g}"):
        class_configs(wanted, certificate)
    (config,) = class_configs(spec(smallest, **changes), certificate)
    assert all(base <= cap for base, cap in zip(wanted.base_prices[1:], config.cap[1:], strict=True))


def test_the_policy_of_a_ladder_has_its_classes():
    ladder = Ladder.read(FASHION)
    policy = build_policy(ladder.spec, ServiceProfile.read(ladder.service_path), 0)
    assert len(policy.counts.classes) == ladder.spec.admission.priorities


def test_a_certificate_is_read_where_there_is_one_and_only_with_its_own_calibration(tmp_path):
    shipped = Ladder.read(FASHION)
    calibration = Calibration.read(shipped.calibration_path)
    ladder = Ladder(shipped.spec, tmp_path)
    assert read_certificate(ladder, calibration) is None
    ladder.certificate_path.parent.mkdir()
    made = certify(
        difficulty_ladder(rows=400), max_loss=0.2, confidence=0.9, prices_grid=[], calibration=digest_of(calibration)
    )
    made.write(ladder.certificate_path)
    assert read_certificate(ladder, calibration) == made
    other = calibration.model_copy(update={"prices": tuple(2 * p for p in calibration.prices)})
    with pytest.raises(CalibrationMismatch, match="cascade certify"):
        read_certificate(ladder, other)


def test_direct_routing_needs_a_calibration_that_does_not_look_back(calibrated_copy):
    document = yaml.safe_load(calibrated_copy.read_text())
    calibrated_copy.write_text(yaml.safe_dump(document | {"routing": "direct"}))
    ladder = Ladder.read(calibrated_copy)
    result = CliRunner().invoke(app, ["calibrate", str(calibrated_copy)])
    assert result.exit_code == 0, result.output
    artefacts = Artefacts.read(ladder)
    assert isinstance(artefacts.market, DirectMarket)
    calibration = artefacts.calibration
    looking = calibration.stages[1].model_copy(update={"history_weight": 0.5})
    stages = (calibration.stages[0], looking, *calibration.stages[2:])
    calibration.model_copy(update={"stages": stages}).write(ladder.calibration_path)
    with pytest.raises(CalibrationMismatch, match="looks back"):
        Artefacts.read(ladder)


def test_a_certificate_of_a_cascade_is_none_for_direct_routing(calibrated_copy):
    table = calibrated_copy.parent / "calibration" / "test.npz"
    for arguments in (
        ["profile", str(calibrated_copy), "--split", "test", "--out", str(table)],
        [
            "certify",
            str(table),
            "--calibration",
            str(calibrated_copy.parent / "calibration" / "calibration.json"),
            "--max-loss",
            "0.5",
            "--out",
            str(calibrated_copy.parent / "calibration" / "certificate.json"),
        ],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    ladder = Ladder.read(calibrated_copy)
    calibration = Calibration.read(ladder.calibration_path)
    assert read_certificate(ladder, calibration) is not None
    document = yaml.safe_load(calibrated_copy.read_text())
    calibrated_copy.write_text(yaml.safe_dump(document | {"routing": "direct"}))
    with pytest.raises(CalibrationMismatch, match="run `cascade certify` again"):
        read_certificate(Ladder.read(calibrated_copy), calibration)


@pytest.mark.parametrize(("answers", "rule"), [("steady", steady), ("best_so_far", best_so_far), ("plain", plain)])
def test_what_clients_that_watch_are_shown_is_the_specs_choice(answers, rule):
    chosen = fake_ladder(3, anytime={"answers": answers}).spec
    assert anytime_rule(chosen, Artefacts(None, None, None, None)) is rule


def test_products_are_calibrated_on_the_calibration_rows(calibrated_copy):
    document = yaml.safe_load(calibrated_copy.read_text())
    calibrated_copy.write_text(yaml.safe_dump(document | {"anytime": {"answers": "product"}}))
    ladder = Ladder.read(calibrated_copy)
    artefacts = Artefacts.read(ladder)
    assert len(artefacts.product) == 3
    assert isinstance(anytime_rule(ladder.spec, artefacts), Product)
    ladder.table_path.unlink()
    with pytest.raises(ConfigError, match=r"anytime\.answers product: .*outcomes\.npz.*`cascade profile`"):
        Artefacts.read(ladder)


def test_weights_that_change_after_the_artefacts_were_checked_are_not_loaded(calibrated_copy):
    ladder = Ladder.read(calibrated_copy)
    stage = ladder.spec.stages[1]
    Artefacts.read(ladder)
    load_network(ladder, stage)
    path = ladder.weights(stage)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CalibrationMismatch, match="it has changed since, or differs on this node"):
        load_network(ladder, stage)
    load_network(Ladder.read(calibrated_copy), stage)  # where nobody has said what it should be
