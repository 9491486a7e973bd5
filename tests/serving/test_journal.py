"""The log holds changes of state, once each, and nothing of a request."""

import asyncio
import logging
from dataclasses import replace
from logging.handlers import MemoryHandler
from types import SimpleNamespace

import pytest
from explained import INFER, body, serving
from ladders import SURE, UNSURE, config, make_router, row, told

from cascade.serving.fakes import FakeStage
from cascade.serving.journal import QUIET_S, Journal
from cascade.serving.logs import ToServe, logging_config
from cascade.spec import parse_spec
from cascade.spec_sections import TelemetrySpec
from cascade.wire.live import LiveStatistics, StageLive

CALM = LiveStatistics(
    rate=10.0,
    stages={name: StageLive(0.02, 0.5, 400.0, 2, 0) for name in ("small", "large")},
    degraded=0.0,
    shed_per_s=0.0,
    lag_s=0.001,
    plan_age_s=0.3,
)


def with_replicas(count: int) -> LiveStatistics:
    return replace(CALM, stages={**CALM.stages, "large": replace(CALM.stages["large"], replicas=count)})


def events(caplog) -> list[str]:
    return [record.event for record in caplog.records if hasattr(record, "event")]


@pytest.fixture
def journal(caplog) -> Journal:
    caplog.set_level(logging.INFO)
    return Journal({"small": 2, "large": 2})


def look(journal: Journal, *readings: LiveStatistics) -> None:
    for now, live in enumerate(readings):
        journal.look(float(now), live)


def test_an_outage_of_a_stage_is_two_lines(journal, caplog):
    look(journal, CALM, with_replicas(0), with_replicas(0), with_replicas(0), CALM, CALM)
    assert events(caplog) == ["stage_out", "stage_back"]
    assert caplog.records[0].stage == "large"
    assert "rows go past it" in caplog.records[0].getMessage()


def test_replicas_that_come_and_go_are_a_line_each(journal, caplog):
    look(journal, CALM, with_replicas(3), with_replicas(3), with_replicas(1))
    assert [record.getMessage() for record in caplog.records] == [
        "stage large has 3 replicas, had 2",
        "stage large has 1 replicas, had 3",
    ]


@pytest.mark.parametrize(
    ("figure", "course", "expected"),
    [
        ("degraded", [0.0, 0.2, 0.03, 0.06, 0.03, 0.005, 0.03], ["degraded_begins", "degraded_ends"]),
        ("degraded", [0.0, 0.04, None, 0.04, 0.0], []),
        ("shed_per_s", [0.0, 3.0, 0.5, 0.0, 0.0], ["shedding_begins", "shedding_ends"]),
        ("plan_age_s", [0.5, 6.0, 7.0, 0.2], ["plan_stale", "plan_fresh"]),
        ("lag_s", [0.01, 0.06, 0.03, 0.06, 0.01], ["behind", "in_time"]),
    ],
)
def test_a_state_that_load_moves_to_and_fro_begins_and_ends_once(journal, caplog, figure, course, expected):
    look(journal, *(replace(CALM, **{figure: value}) for value in course))
    assert events(caplog) == expected
    assert "after" in caplog.records[-1].getMessage() if expected else not caplog.records


@pytest.mark.looptime(noop_cycles=0)
async def test_a_thousand_requests_are_no_line(caplog):
    caplog.set_level(logging.INFO)
    async with serving(deadline={"default_s": 400.0, "max_s": 800.0}) as (client, _, _):
        for _ in range(100):
            ten = (client.post(INFER, body([[UNSURE, SURE] if row % 3 else [SURE, 0]])) for row in range(10))
            assert {response.status for response in await asyncio.gather(*ten)} == {200}
        assert (await client.post(INFER, b"no json")).status == 400
    assert caplog.records == []


@pytest.mark.looptime(noop_cycles=0)
async def test_a_stage_that_fails_for_a_while_is_two_lines(caplog):
    caplog.set_level(logging.INFO)
    stages = [FakeStage(told(0)), FakeStage(told(1), fail_first=40)]
    router = make_router(stages, [config(), config(cost=10.0)])
    for _ in range(40):
        await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert events(caplog) == ["stage_fails"]
    assert caplog.records[0].levelno == logging.WARNING
    assert "told to fail" in caplog.text
    await asyncio.sleep(QUIET_S)
    for _ in range(3):
        await router.answer(row(UNSURE, SURE), 1, budget_s=1.0)
    assert events(caplog) == ["stage_fails", "stage_works"]
    assert caplog.records[-1].getMessage() == "stage 1 works again, after 40 failed batches"
    await router.close()


@pytest.mark.looptime(noop_cycles=0)
async def test_an_unexpected_error_is_logged_with_the_id_of_its_request(caplog):
    async with serving(deadline={"default_s": 400.0, "max_s": 800.0}) as (client, _, service):
        service.parameters = lambda *_: 1 / 0
        assert (await client.post(INFER, body([[SURE, 0]]), x_request_id="abc")).status == 500
    (record,) = caplog.records
    assert record.request_id == "abc"
    assert "abc" in record.getMessage()


# -- where it goes -----------------------------------------------------------------------------------------------------


def test_lines_go_to_whatever_handlers_serves_logger_has_then_and_are_not_held_back():
    serves, seen = logging.getLogger("ray.serve.test-of-the-journal"), []
    handler = ToServe(serves.name)
    serves.addHandler(MemoryHandler(1000, target=SimpleNamespace(handle=seen.append)))  # type: ignore[arg-type]
    serves.propagate = False
    serves.setLevel(logging.INFO)
    for level in (logging.DEBUG, logging.INFO):
        handler.emit(logging.LogRecord("cascade.router", level, "f", 1, "said", None, None))
    assert [record.getMessage() for record in seen] == ["said"]


def test_the_form_of_the_lines_is_what_the_spec_says():
    document = {
        "name": "m",
        "inputs": [{"name": "x", "datatype": "FP32"}],
        "labels": ["a", "b"],
        "stages": [{"name": "s", "cost": 1, "model": {"factory": "a:b"}}],
    }
    spec = parse_spec(document)
    assert logging_config(spec).enable_access_log is False
    assert logging_config(spec.model_copy(update={"telemetry": TelemetrySpec(logs="json")})).encoding == "JSON"
