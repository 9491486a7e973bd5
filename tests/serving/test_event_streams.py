"""Event streams over fake stages, called in this process: what each event shows, when it leaves, and what ends a stream."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from asgi import Response, started
from event_streams import PING, EventStream
from ladders import SURE, UNSURE, config, fake_ladder, fake_stages, make_router, told

from cascade.policy.anytime import Product, best_so_far, plain, steady
from cascade.policy.gain import Curve
from cascade.policy.policy import StageConfig
from cascade.serving import messages
from cascade.serving.fakes import FakeStage
from cascade.serving.http_listener import Watched
from cascade.serving.ingress import Ingress
from cascade.serving.router import Router
from cascade.serving.service import Service

pytestmark = pytest.mark.looptime(noop_cycles=0)

INFER, STREAM = "/v2/models/fake/infer", "/v2/models/fake/infer_stream"
STRAIGHT = Curve.of([0, 1], [0, 1])
PATIENT = {"deadline": {"default_s": 400.0, "max_s": 800.0}}
"""Deadlines so long that the real time spent on reading a body does not show beside them."""
BETTER = (UNSURE, -2 * UNSURE, -SURE)
"""A row whose label the second stage changes."""
WORSE = (2.0, -UNSURE, -0.2)
"""A row of which the first stage is surer than those behind it, which say otherwise."""
AGREEING = (2.0, UNSURE, 0.2)
"""The same, but they agree."""


class Served:
    """An application over fake stages that take a second each, and its streams."""

    def __init__(self, stages: list[FakeStage] | None = None, configs: list[StageConfig] | None = None, **spec: Any) -> None:
        self.stages = fake_stages(3, seconds=1.0) if stages is None else stages
        self.rule = spec.pop("rule", None) or steady
        self.monitor = spec.pop("monitor", None)
        self.ladder = fake_ladder(len(self.stages), **{**PATIENT, **spec})
        self._configs = configs
        self.app = Ingress(Service(self.ladder, self._make_router))

    def _make_router(self) -> Router:
        configs = self._configs or [config(cost=10.0**k, a_s=1.0) for k in range(len(self.stages))]
        self.router = make_router(self.stages, configs, rule=self.rule)
        self.router.monitor = self.monitor
        return self.router

    async def __aenter__(self) -> "Served":
        self._running = started(self.app)
        self.client = await self._running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._running.__aexit__(*error)

    def stream(self, *rows: tuple[float, ...], path: str = STREAM, accept: str | None = None, **members: Any) -> EventStream:
        return EventStream(self.app, path, request(list(rows), **members), {} if accept is None else {"accept": accept})

    @property
    def counts(self):
        return self.router.policy.counts


def request(rows: list[tuple[float, ...]], **members: Any) -> bytes:
    """A JSON request."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(np.shape(rows)), "data": rows}
    return json.dumps({"inputs": [tensor], **members}).encode()


def assert_problem(response: Response, status: int, code: str, mentions: str = "") -> None:
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert mentions in response.json()["detail"]


def label(event: dict[str, Any]) -> list[int]:
    return event["outputs"][0]["data"]


def told_by(events: list[dict[str, Any]], name: str) -> list[Any]:
    return [event["parameters"].get(name) for event in events]


def without_stream_facts(event: dict[str, Any]) -> dict[str, Any]:
    """A final event without what only a stream says."""
    parameters = {
        name: value
        for name, value in event["parameters"].items()
        if name
        not in ("cascade_final", "cascade_revised", "cascade_revised_rows", "cascade_waiting_rows", "cascade_kept_rows")
    }
    return {**event, "parameters": parameters}


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (STREAM, None),
        (STREAM, "application/json"),
        ("/v2/models/fake/versions/7/infer_stream", None),
        (INFER, "text/event-stream"),
        ("/v2/models/fake/versions/7/infer", "text/event-stream, */*;q=0.1"),
    ],
)
async def test_every_answer_is_an_event_and_the_last_one_is_marked(path, accept):
    async with Served() as served, served.stream(BETTER, path=path, accept=accept, id="42") as stream:
        assert stream.status == 200
        assert stream.headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        events = await stream.rest()
    assert [label(event) for event in events] == [[1], [0], [0]]
    assert told_by(events, "cascade_final") == [False, False, True]
    assert told_by(events, "cascade_revised") == [False, True, False]
    assert told_by(events, "cascade_stage") == ["s0", "s1", "s2"]
    assert told_by(events, "cascade_cost") == [1.0, 11.0, 111.0]
    assert told_by(events, "cascade_exit_reason") == [None, None, "last_stage"]
    assert told_by(events, "cascade_degraded") == [None, None, False]
    assert all(event["id"] == "42" and event["model_name"] == "fake" for event in events)
    assert all([output["name"] for output in event["outputs"]] == ["label", "probabilities"] for event in events)


async def test_an_event_leaves_when_its_stage_has_answered():
    async with Served() as served:
        begun = asyncio.get_running_loop().time()
        async with served.stream(BETTER) as stream:
            instants = []
            while not stream.ended:
                await stream.event()
                instants.append(asyncio.get_running_loop().time() - begun)
    assert instants == pytest.approx([1.0, 2.0, 3.0], abs=0.01)


async def test_a_row_that_leaves_at_the_first_stage_is_one_event():
    async with Served() as served, served.stream((SURE, 0, 0)) as stream:
        (event,) = await stream.rest()
    assert event["parameters"]["cascade_final"]
    assert event["parameters"]["cascade_exit_reason"] == "confident"


@pytest.mark.parametrize("rule", [steady, plain])
@pytest.mark.parametrize("rows", [[(SURE, 0, 0)], [BETTER], [WORSE], [(UNSURE, -SURE, 0), BETTER, (-SURE, 0, 0)]])
async def test_the_last_event_is_the_answer_of_the_same_request_without_a_stream(rule, rows):
    async with Served(rule=rule) as served:
        whole = (await served.client.post(INFER, request(rows, id="7"))).json()
        async with served.stream(*rows, id="7") as stream:
            *_, last = await stream.rest()
    assert without_stream_facts(last) == whole


async def test_of_answers_that_agree_the_surest_is_shown_and_the_event_says_so():
    async with Served() as served:
        whole = (await served.client.post(INFER, request([AGREEING]))).json()
        async with served.stream(AGREEING) as stream:
            events = await stream.rest()
    assert [label(event) for event in events] == [[1], [1], [1]]
    assert told_by(events, "cascade_kept_rows") == [None, 1, 1]
    assert told_by(events, "cascade_stage") == ["s0", "s1", "s2"]
    first, *later = told_by(events, "cascade_confidence")
    assert later == [first, first]
    assert whole["parameters"]["cascade_confidence"] < first
    assert label(events[-1]) == label(whole)


async def test_an_answer_that_differs_is_shown_however_sure_and_the_event_says_so():
    async with Served() as served, served.stream(WORSE) as stream:
        events = await stream.rest()
    assert [label(event) for event in events] == [[1], [0], [0]]
    assert told_by(events, "cascade_revised") == [False, True, False]
    assert told_by(events, "cascade_kept_rows") == [None, None, None]
    sure = told_by(events, "cascade_confidence")
    assert sure[1] < sure[0]
    assert sure[1] < sure[2]


async def test_the_surest_answer_of_all_is_kept_where_the_spec_says_so():
    async with Served(rule=best_so_far) as served, served.stream(WORSE) as stream:
        events = await stream.rest()
    assert [label(event) for event in events] == [[1], [1], [1]]
    assert told_by(events, "cascade_kept_rows") == [None, 1, 1]
    assert len(set(told_by(events, "cascade_confidence"))) == 1


async def test_every_stages_own_answer_is_shown_where_the_spec_says_so():
    async with Served(rule=plain) as served, served.stream(AGREEING) as stream:
        events = await stream.rest()
    sure = told_by(events, "cascade_confidence")
    assert sure[1] < sure[0]
    assert told_by(events, "cascade_kept_rows") == [None, None, None]


async def test_confidence_falls_only_where_a_label_changes_and_what_is_final_stays():
    random = np.random.default_rng(3)
    rows = [tuple(each) for each in random.normal(0, 2, size=(40, 3)).tolist()]
    async with Served() as served, served.stream(*rows) as stream:
        events = await stream.rest()
    sure = np.array([np.reshape(event["outputs"][1]["data"], (-1, 2)).max(axis=1) for event in events])
    labels = np.array([label(event) for event in events])
    fell, changed = np.diff(sure, axis=0) < 0, np.diff(labels, axis=0) != 0
    assert len(events) > 2
    assert fell.any()
    assert (changed | ~fell).all()
    assert told_by(events, "cascade_revised_rows") == [0, *changed.sum(axis=1).tolist()]
    waiting = told_by(events, "cascade_waiting_rows")
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[-1] == 0


class Certified:
    """A monitor that knows bounds: of stopping at each of three stages at the latest."""

    certified_loss = 0.01
    certified_stops = (0.3, 0.1, 0.01)

    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("row", "rule", "bounds"),
    [
        (BETTER, None, [0.3, 0.1, 0.01]),
        ((SURE, 0, 0), None, [0.01]),
        (WORSE, best_so_far, [0.3, 0.3, 0.3]),  # the first stage's answer is shown throughout
        (AGREEING, steady, [0.3, 0.1, 0.01]),  # so it is here, but it is lost where the later ones are
        (BETTER, Product([STRAIGHT] * 3), [None, None, None]),
    ],
)
async def test_an_event_certifies_what_is_known_of_stopping_there(row, rule, bounds):
    async with Served(rule=rule, monitor=Certified()) as served, served.stream(row) as stream:
        events = await stream.rest()
    assert told_by(events, "cascade_certified_loss") == bounds


async def test_products_are_shown_where_the_spec_says_so():
    async with Served(rule=Product([STRAIGHT] * 3)) as served, served.stream(BETTER) as stream:
        events = await stream.rest()
    # Scores less their mean are (-z/2, z/2): the first answer drops class 0, the second class 1, and the last stands alone.
    assert [label(event) for event in events] == [[1], [0], [0]]
    assert events[0]["outputs"][1]["data"] == [0.0, 1.0]
    assert told_by(events, "cascade_exit_reason") == [None, None, "last_stage"]


# -- many rows ---------------------------------------------------------------------------------------------------------


async def test_the_first_event_of_many_rows_leaves_when_every_row_has_an_answer():
    configs = [config(a_s=1.0, slots=1, max_batch_size=2), config(a_s=1.0, cost=10.0), config(a_s=1.0, cost=100.0)]
    stages = [FakeStage(told(k), seconds=seconds) for k, seconds in enumerate((1.0, 1.0, 1.5))]
    async with Served(stages, configs) as served:
        begun = asyncio.get_running_loop().time()
        async with served.stream(BETTER, BETTER, BETTER, (SURE, 0, 0), BETTER) as stream:
            first = await stream.event()
            assert asyncio.get_running_loop().time() - begun == pytest.approx(3.0, abs=0.01)
            assert len(label(first)) == 5
            assert first["parameters"]["cascade_waiting_rows"] == 4
            *_, last = await stream.rest()
    assert label(last) == [0, 0, 0, 1, 0]
    assert last["parameters"]["cascade_waiting_rows"] == 0


async def test_events_of_many_rows_are_no_closer_together_than_their_number_allows():
    rows = 40
    configs = [config(a_s=1.0, max_batch_size=64), config(a_s=1e-4, slots=1, max_batch_size=1, cost=10.0)]
    stages = [FakeStage(told(0), seconds=1.0), FakeStage(told(1), seconds=1e-4)]
    async with Served(stages, configs) as served, served.stream(*[(UNSURE, SURE)] * rows) as stream:
        events = await stream.rest()
    # One event for each batch of one row would be 41; the 4 ms that the batches take have room for two or three gaps.
    assert rows * messages.GAP_S_PER_ROW == pytest.approx(0.004)
    assert 2 <= len(events) <= 4
    assert told_by(events, "cascade_final") == [False] * (len(events) - 1) + [True]


# -- what ends it early ------------------------------------------------------------------------------------------------


async def test_a_client_that_is_content_gets_no_more_and_that_is_not_degraded():
    row = (0.5, 2.0, SURE)  # 62 % sure, then 88 %
    async with Served() as served:
        async with served.stream(row, parameters={"cascade_min_confidence": 0.8}) as stream:
            events = await stream.rest()
        plain_answer = (await served.client.post(INFER, request([row], parameters={"cascade_min_confidence": 0.8}))).json()
        assert served.counts.degraded == 0
    assert told_by(events, "cascade_stage") == ["s0", "s1"]
    assert told_by(events, "cascade_exit_reason") == [None, "satisfied"]
    assert told_by(events, "cascade_degraded") == [None, False]
    assert plain_answer == without_stream_facts(events[-1])
    assert len(served.stages[2].calls) == 0


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "high", True])
async def test_a_confidence_that_is_none_is_refused(value):
    async with Served() as served:
        response = await served.client.post(INFER, request([BETTER], parameters={"cascade_min_confidence": value}))
    assert_problem(response, 400, "bad_request", "cascade_min_confidence must be a number above 0 and at most 1")


async def test_a_budget_ends_a_stream():
    async with Served() as served, served.stream(BETTER, parameters={"cascade_max_cost": 11}) as stream:
        events = await stream.rest()
    assert told_by(events, "cascade_stage") == ["s0", "s1"]
    assert told_by(events, "cascade_exit_reason") == [None, "budget"]
    assert told_by(events, "cascade_degraded") == [None, True]


async def test_a_deadline_ends_a_stream_with_the_best_so_far():
    stages = [FakeStage(told(0), seconds=1.0), FakeStage(told(1), seconds=1.0), FakeStage(told(2), hang=frozenset({0}))]
    configs = [config(a_s=1.0, cost=10.0**k, timeout_floor_s=900.0) for k in range(3)]
    async with Served(stages, configs) as served:
        begun = asyncio.get_running_loop().time()
        async with served.stream(BETTER, parameters={"timeout": 10_000_000}) as stream:
            events = await stream.rest()
        assert 9 < asyncio.get_running_loop().time() - begun <= 10
    assert told_by(events, "cascade_stage") == ["s0", "s1", "s1"]
    assert told_by(events, "cascade_exit_reason") == [None, None, "deadline"]
    assert [label(event) for event in events] == [[1], [0], [0]]
    assert told_by(events, "cascade_revised") == [False, True, False]


async def test_a_stage_that_fails_ends_a_stream_with_the_best_so_far():
    stages = [FakeStage(told(0), seconds=1.0), FakeStage(told(1), seconds=1.0), FakeStage(told(2), fail_first=9)]
    async with Served(stages) as served, served.stream(BETTER) as stream:
        events = await stream.rest()
    assert told_by(events, "cascade_exit_reason") == [None, None, "failure"]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "mentions"),
    [
        ({"parameters": {"binary_data_output": True}}, "JSON only"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": True}}]}, "JSON only"),
        ({"parameters": {"cascade_max_cost": -1}}, "cascade_max_cost"),
        ({"inputs": []}, "inputs"),
    ],
)
async def test_a_bad_message_is_refused_with_its_status(members, mentions):
    async with Served() as served:
        response = await served.client.post(STREAM, request([BETTER], **members))
        assert_problem(response, 400, "bad_request", mentions)
        assert served.router.requests == {"answered": 0, "refused": 1, "cancelled": 0}


async def test_what_has_no_answer_before_its_deadline_is_refused_with_its_status():
    stages = [FakeStage(told(0), hang=frozenset({0})), FakeStage(told(1))]
    async with Served(stages, [config(timeout_floor_s=900.0), config(cost=10.0)]) as served:
        response = await served.client.post(STREAM, request([(UNSURE, 0)], parameters={"timeout": 2_000_000}))
    assert_problem(response, 504, "deadline_exceeded")


async def test_a_first_stage_that_fails_is_refused_with_its_status():
    stages = [FakeStage(told(0), fail_first=9), FakeStage(told(1))]
    async with Served(stages) as served:
        response = await served.client.post(STREAM, request([(UNSURE, 0)]))
    assert_problem(response, 502, "stage_failed")


async def test_what_is_turned_away_at_the_door_is_refused_with_its_status():
    async with Served() as served:
        served.router.policy.set_slots(0, 0)
        response = await served.client.post(STREAM, request([BETTER]))
    assert_problem(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


async def test_an_error_after_the_first_event_is_an_event(caplog):
    def too_wide(before, stage, judgement, row):
        found = plain(before, stage, judgement, row)
        return found._replace(probabilities=np.zeros(3)) if (stage, row) == (1, 0) else found

    async with Served(rule=too_wide) as served, served.stream(BETTER, BETTER) as stream:
        first, problem = await stream.rest()
        assert first["parameters"]["cascade_final"] is False
        assert (problem["code"], problem["status"]) == ("internal", 500)
        assert "error" in problem
        assert (served.counts.cancelled, served.counts.live) == (2, 0)
        assert served.router.requests == {"answered": 0, "refused": 1, "cancelled": 0}
    assert "unexpected error" in caplog.text


async def test_other_methods_of_the_route_are_refused():
    async with Served() as served:
        response = await served.client.request("GET", STREAM)
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        assert (await served.client.post("/v2/models/other/infer_stream", request([BETTER]))).status == 404


@pytest.mark.parametrize(
    "accept", ["application/json", "*/*", "application/json, text/event-stream", "text/event-stream;q=0"]
)
async def test_who_does_not_prefer_a_stream_gets_the_whole_answer(accept):
    async with Served() as served:
        response = await served.client.post(INFER, request([BETTER]), accept=accept)
    assert response.headers["content-type"] == "application/json"


async def test_binary_inputs_may_be_sent_and_a_raw_body_is_answered_in_json():
    array = np.array([BETTER], dtype=np.float32)
    tensor = triton.InferInput("x", [1, 3], "FP32").set_data_from_numpy(array)
    wanted = triton.InferRequestedOutput("label", binary_data=False)
    body, length = triton.InferenceServerClient.generate_request_body([tensor], outputs=[wanted])
    raw = array.tobytes()
    async with Served() as served:
        async with EventStream(served.app, STREAM, body, {"inference-header-content-length": str(length)}) as stream:
            events = await stream.rest()
        assert [label(event) for event in events] == [[1], [0], [0]]
        async with EventStream(served.app, STREAM, raw, {"inference-header-content-length": "0"}) as stream:
            events = await stream.rest()
    assert [label(event) for event in events] == [[1], [0], [0]]


# -- slow readers, and those who leave ---------------------------------------------------------------------------------


async def test_a_slow_reader_gets_the_newest_and_nothing_piles_up():
    async with Served() as served, served.stream(BETTER) as stream:
        first = await stream.event()
        await asyncio.sleep(100.0)  # the second event waits to be taken
        assert served.counts.answered == 1, "a reader holds up nothing but what is sent to it"
        events = [first, *await stream.rest()]
    assert told_by(events, "cascade_stage") == ["s0", "s1", "s2"]
    assert told_by(events, "cascade_final") == [False, False, True]


async def test_a_reader_slower_than_several_stages_misses_those_between():
    stages = fake_stages(5, seconds=1.0)
    row = (UNSURE, -UNSURE, UNSURE, -UNSURE, SURE)
    async with Served(stages, rule=plain) as served, served.stream(row) as stream:
        events = [await stream.event()]
        await asyncio.sleep(100.0)
        events += await stream.rest()
    assert told_by(events, "cascade_stage") == ["s0", "s1", "s4"]
    assert [label(event) for event in events] == [[1], [0], [1]]
    assert told_by(events, "cascade_revised") == [False, True, True], "in view of the event that was sent before"


async def test_the_rows_of_a_client_that_leaves_go_no_further():
    async with Served() as served:
        stream = EventStream(Watched(served.app), STREAM, request([BETTER]))
        async with stream:
            await stream.event()
            stream.leave()
            await asyncio.wait_for(stream.running, 5.0)
        await asyncio.sleep(50.0)
        assert (served.counts.cancelled, served.counts.live) == (1, 0)
        assert len(served.stages[2].calls) == 0
        assert served.router.requests == {"answered": 0, "refused": 0, "cancelled": 1}


async def test_a_client_that_leaves_while_an_event_waits_for_it_ends_its_rows_too():
    async with Served() as served:
        stream = EventStream(Watched(served.app), STREAM, request([BETTER]))
        async with stream:
            await stream.event()
            await asyncio.sleep(1.5)  # the second event waits to be taken
            stream.leave()
            await asyncio.wait_for(stream.running, 5.0)
        assert (served.counts.cancelled, served.counts.live) == (1, 0)


async def test_a_quiet_stream_is_pinged():
    stages = [FakeStage(told(0), seconds=1.0), FakeStage(told(1), seconds=70.0)]
    configs = [config(a_s=1.0), config(a_s=70.0, cost=10.0, timeout_floor_s=900.0)]
    async with Served(stages, configs, anytime={"ping_s": 20.0}) as served, served.stream((UNSURE, SURE)) as stream:
        pieces = []
        while not stream.ended:
            pieces.append(await stream.piece())
    assert pieces[1:-1] == [PING] * 3
    assert json.loads(pieces[0].removeprefix(b"data: "))["parameters"]["cascade_final"] is False


async def test_what_was_waited_for_is_applied_and_said():
    async with Served() as served:
        headers = {"prefer": "wait=300"}
        async with EventStream(served.app, STREAM, request([BETTER]), headers) as stream:
            assert stream.headers["preference-applied"] == "wait=300"


async def test_streams_and_plain_requests_share_batches():
    async with Served() as served:
        streams = [served.stream(BETTER) for _ in range(3)]
        entered = await asyncio.gather(
            *(stream.__aenter__() for stream in streams), served.client.post(INFER, request([BETTER]))
        )
        for stream in streams:
            await stream.rest()
            await stream.__aexit__(None, None, None)
        assert entered[-1].status == 200
    assert [[len(call["x"]) for call in stage.calls] for stage in served.stages] == [[4], [4], [4]]
