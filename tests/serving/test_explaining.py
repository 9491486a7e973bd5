"""Why was this answered by that stage? Asked by header or parameter, in the answer and afterwards, and for a random few."""

import asyncio
import json
from random import Random

import pytest
from explained import INFER, body, serving
from ladders import SURE, UNSURE, config, told

from cascade.policy.commands import Batch
from cascade.policy.explain import BatchFacts, End, Note, Onwards
from cascade.policy.request import Answer, ExitReason
from cascade.serving.explaining import Explanations
from cascade.serving.fakes import FakeStage
from cascade.serving.watching import EXPLAIN, Watcher
from cascade.serving.why import sentence

pytestmark = pytest.mark.looptime(noop_cycles=0)

PATIENT = {"deadline": {"default_s": 400.0, "max_s": 800.0}}


def explanation(response) -> dict:
    return json.loads(response.json()["parameters"][EXPLAIN])


@pytest.mark.parametrize(
    ("headers", "members"), [({"cascade_explain": "?1"}, {}), ({}, {"parameters": {"cascade_explain": True}})]
)
async def test_a_client_that_asks_is_told_in_the_answer_and_afterwards(headers, members):
    async with serving(**PATIENT) as (client, _, _):
        response = await client.post(INFER, body([[UNSURE, SURE]], id="7", **members), x_request_id="abc", **headers)
        document = explanation(response)
        (row,) = document["rows"]
        assert (document["id"], row["stage"], row["exit_reason"], row["degraded"]) == ("abc", "s1", "last_stage", False)
        assert [visit["stage"] for visit in row["visits"]] == ["s0", "s1"]
        assert [visit["decision"] for visit in row["visits"]] == ["went on", "last_stage"]
        assert row["visits"][0]["onward"]["stage"] == "s1"
        assert row["visits"][0]["onward"]["value"] > row["visits"][0]["onward"]["price"]
        assert row["text"].startswith("answered by `s1`, the last stage")
        for request_id in ("abc", "7"):
            found = await client.get(f"/v2/models/fake/explain/{request_id}")
            assert (found.status, found.json()) == (200, document)
        latest = (await client.get("/v2/models/fake/explain")).json()
        assert [each["id"] for each in latest["requests"]] == ["abc"]


async def test_a_client_that_does_not_ask_is_told_nothing_and_nothing_is_kept():
    async with serving(**PATIENT) as (client, _, _):
        response = await client.post(INFER, body([[SURE, 0]]), x_request_id="abc")
        assert EXPLAIN not in response.json()["parameters"]
        missing = await client.get("/v2/models/fake/explain/abc")
        assert (missing.status, missing.json()["code"]) == (404, "unknown_request")
        assert "Cascade-Explain: ?1" in missing.json()["detail"]
        assert (await client.get("/v2/models/fake/explain")).json() == {"requests": []}


async def test_a_share_of_those_who_do_not_ask_is_kept_and_only_the_last_ones():
    async with serving(telemetry={"explain_share": 1.0, "explain_keep": 2}, **PATIENT) as (client, _, _):
        for number in range(4):
            response = await client.post(INFER, body([[SURE, 0]]), x_request_id=str(number))
            assert EXPLAIN not in response.json()["parameters"]
        latest = (await client.get("/v2/models/fake/explain")).json()["requests"]
        assert [each["id"] for each in latest] == ["3", "2"]
        assert (await client.get("/v2/models/fake/explain/1")).status == 404


async def test_a_request_without_an_id_gets_one_by_which_it_is_found():
    async with serving(**PATIENT) as (client, _, _):
        document = explanation(await client.post(INFER, body([[SURE, 0]]), cascade_explain="?1"))
        assert (await client.get(f"/v2/models/fake/explain/{document['id']}")).json() == document


async def test_rows_of_a_message_are_told_apart():
    async with serving(**PATIENT) as (client, _, _):
        document = explanation(await client.post(INFER, body([[SURE, 0], [UNSURE, SURE]]), cascade_explain="?1"))
        assert [(row["row"], row["stage"], row["exit_reason"]) for row in document["rows"]] == [
            (0, "s0", "confident"),
            (1, "s1", "last_stage"),
        ]
        assert document["rows_of_request"] == 2


async def test_the_last_event_of_a_stream_explains_it_too():
    async with serving(**PATIENT) as (client, _, _):
        path = "/v2/models/fake/infer_stream"
        headers = [(b"cascade-explain", b"?1"), (b"x-request-id", b"abc")]
        sent = []

        async def send(message):
            sent.append(message)

        messages = iter([{"type": "http.request", "body": body([[UNSURE, SURE]]), "more_body": False}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        await client.app(scope, receive, send)
        events = [json.loads(part["body"].removeprefix(b"data: ")) for part in sent[1:] if part.get("body")]
        assert [EXPLAIN in event["parameters"] for event in events] == [False] * (len(events) - 1) + [True]
        assert (await client.get("/v2/models/fake/explain/abc")).status == 200


async def test_a_row_that_waits_until_its_time_is_up_says_so():
    stages = [FakeStage(told(0)), FakeStage(told(1), hang=frozenset({0, 1, 2, 3}))]
    configs = [config(), config(cost=10.0, slots=1, timeout_floor_s=90.0)]
    async with serving(stages, configs, deadline={"default_s": 20.0}) as (client, _, _):
        (row,) = explanation(await client.post(INFER, body([[UNSURE, SURE]]), cascade_explain="?1"))["rows"]
        assert (row["exit_reason"], row["degraded"]) == ("deadline", True)
        assert "its time was up before the answer came" in row["text"]
        assert row["visits"][-1]["decision"] == "went on"


async def test_a_refused_request_keeps_nothing():
    stages = [FakeStage(told(0), fail_first=2), FakeStage(told(1))]
    async with serving(stages, **PATIENT) as (client, _, _):
        response = await client.post(INFER, body([[SURE, 0]]), cascade_explain="?1", x_request_id="abc")
        assert response.status == 502
        assert (await client.get("/v2/models/fake/explain/abc")).status == 404


def test_shares_are_drawn_at_random():
    explanations = Explanations(["a"], ["p1"], share=0.25, random=Random(4))
    assert 200 < sum(explanations.drawn() for _ in range(1000)) < 300
    assert Watcher(explanations).tracing is None


# -- sentences ---------------------------------------------------------------------------------------------------------


def note(reason: ExitReason | None, out: bool = False) -> Note:
    facts = BatchFacts(Batch(0, (), 1, 1.0, 9.0), 1.5, [])
    onward = Onwards(1, 0.004, 0.011, 0.002, False, 1.75, 3, True, out)
    return Note(0, facts, 0.25, 1.5, 1.625, 0.9, 0.91, False, (0.004,), (0.011,), onward, reason)


@pytest.mark.parametrize(
    ("reason", "waited", "words"),
    [
        (ExitReason.CONFIDENT, False, "going on to `small` was worth 0.0040, no more than its base price 0.0020"),
        (ExitReason.PRICE, False, "worth 0.0040, not above its price 0.0110 (base price 0.0020, load 2.3x)"),
        (ExitReason.EVICTED, True, "waited 0.500 s for `small`, but rows with more to gain took its place"),
        (ExitReason.DEADLINE, False, "`small` needs 0.250 s and 0.125 s were left"),
        (ExitReason.DEADLINE, True, "waited 0.500 s for `small`, but its time was up"),
        (ExitReason.BUDGET, False, "`small` would have cost more than the 5 that the client allows"),
        (ExitReason.SATISFIED, False, "the client is content with 0.8"),
        (ExitReason.FAILURE, True, "`small` failed or went out"),
        (ExitReason.LAST_STAGE, False, "answered by `tiny`, the last stage"),
    ],
)
def test_every_reason_has_a_sentence_with_the_numbers_that_decided(reason, waited, words):
    end = End(2.0, Answer(0, reason, None, 0, 1.0, 1, 0, ()))  # type: ignore[arg-type]
    text = sentence(["tiny", "small"], note(None if waited else reason), end, load=2.3, wanted=0.8, budget=5.0)
    assert words in text
    assert "right with probability 0.910" in text


def test_a_ladder_whose_dearer_stages_are_all_out_says_that():
    end = End(1.5, Answer(0, ExitReason.FAILURE, None, 0, 1.0, 1, 0, ()))  # type: ignore[arg-type]
    text = sentence(["tiny", "small"], note(ExitReason.FAILURE, out=True), end, load=None, wanted=2.0, budget=5.0)
    assert "no dearer stage has a healthy replica" in text
