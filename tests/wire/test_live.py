"""The live object: every figure finite or null, every stage under its name, and nothing that JSON has no word for."""

from dataclasses import fields
from math import inf, nan

import numpy as np
import orjson
import pytest

from cascade.wire.live import Audited, ClassLive, LiveStatistics, StageLive
from cascade.wire.metadata import to_body

STAGE = StageLive(0.02, 0.75, 500.0, 2, 3, 40.0, 4.0, 0.01, 0.002, 0.5, 0.2, 2.5)
OUT = StageLive(inf, 0.25, 0.0, 0, 0)
FULL = LiveStatistics(
    rate=120.5,
    stages={"small": STAGE, "large": OUT},
    degraded=0.25,
    shed_per_s=1.5,
    answered_per_s=119.0,
    expired_per_s=0.0,
    cost=17.0,
    cost_top=100.0,
    cost_ratio=0.17,
    cost_saved_per_day=8.3e8,
    joules=0.75,
    joules_top=5.0,
    energy_ratio=0.15,
    joules_saved_per_day=4.2e7,
    window_s=10.0,
    certified_loss=0.01,
    certified_loss_limit=0.2,
    predicted_accuracy=0.93,
    audited_accuracy=Audited(0.92, 0.01, 250),
    audited_disagreement=Audited(0.04, 0.02, 250),
    audit_coverage=0.9,
    lag_s=0.001,
    plan_age_s=0.4,
    classes={1: ClassLive(100.0, 0.0, 0.0), 2: ClassLive(20.0, 0.5, None)},
)


def test_the_document_of_a_ladder_at_work():
    assert FULL.document() == {
        "rate": 120.5,
        "prices": {"small": 0.02, "large": None},  # a stage that is out has no price
        "shares": {"small": 0.75, "large": 0.25},
        "degraded": 0.25,
        "certified_loss": 0.01,
        "certified_loss_limit": 0.2,
        "capacity": {"small": 500.0, "large": 0.0},
        "replicas": {"small": 2, "large": 0},
        "queue": {"small": 3, "large": 0},
        "rows_per_s": {"small": 40.0, "large": None},
        "batch_rows": {"small": 4.0, "large": None},
        "run_s": {"small": 0.01, "large": None},
        "queued_s": {"small": 0.002, "large": None},
        "joules_per_row": {"small": 0.5, "large": None},
        "idle_energy": {"small": 0.2, "large": None},
        "depth": {"small": 2.5, "large": None},
        "shed_per_s": 1.5,
        "answered_per_s": 119.0,
        "expired_per_s": 0.0,
        "cost": 17.0,
        "cost_top": 100.0,
        "cost_ratio": 0.17,
        "cost_saved_per_day": 8.3e8,
        "joules": 0.75,
        "joules_top": 5.0,
        "energy_ratio": 0.15,
        "joules_saved_per_day": 4.2e7,
        "window_s": 10.0,
        "predicted_accuracy": 0.93,
        "audited_accuracy": {"value": 0.92, "standard_error": 0.01, "rows": 250},
        "audited_disagreement": {"value": 0.04, "standard_error": 0.02, "rows": 250},
        "audit_coverage": 0.9,
        "lag_s": 0.001,
        "plan_age_s": 0.4,
        "classes": {
            "1": {"answered_per_s": 100.0, "degraded": 0.0, "shed_per_s": 0.0},
            "2": {"answered_per_s": 20.0, "degraded": 0.5, "shed_per_s": None},
        },
    }


def test_the_document_survives_json():
    assert orjson.loads(to_body(FULL.document())) == FULL.document()


def test_what_is_not_known_is_null():
    document = LiveStatistics(rate=None, stages={}, degraded=None, shed_per_s=None).document()
    assert document.pop("classes") == {}
    assert all(value is None or value == {} for value in document.values())


@pytest.mark.parametrize("value", [inf, -inf, nan, np.float64("nan")])
@pytest.mark.parametrize("name", [field.name for field in fields(LiveStatistics) if field.name not in ("stages", "classes")])
def test_a_figure_that_is_not_finite_is_null(name, value):
    audited = name.startswith("audited")
    figures = {"rate": 1.0, "stages": {}, "degraded": 0.0, "shed_per_s": 0.0}
    document = LiveStatistics(**{**figures, name: Audited(value, 0.1, 5) if audited else value}).document()
    assert document[name] is None


def test_numbers_of_numpy_become_plain_ones():
    live = LiveStatistics(rate=np.float64(3), stages={}, degraded=np.float32(0.5), shed_per_s=0)
    assert type(live.document()["rate"]) is float
    assert type(live.document()["degraded"]) is float
