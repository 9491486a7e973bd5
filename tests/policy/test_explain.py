"""What is written down of a request that wants to know why, and that nothing is decided otherwise because of it."""

from dataclasses import replace

import numpy as np
import pytest
from builders import MS, admit, at_stage0, batches, judged, ladder, replies, request, stage, three

from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Reply
from cascade.policy.explain import MOST_ROWS, Trail
from cascade.policy.gain import Judgement
from cascade.policy.request import ExitReason, Request


def asking(tag: object = None, **facts) -> tuple[Request, Trail]:
    trail = Trail()
    asked = request(tag, **facts)._replace(trail=trail)
    trail.request = asked
    return asked, trail


def test_a_row_that_stops_knows_what_going_on_was_worth_and_what_it_had_to_exceed():
    policy = three()
    policy.set_prices([0.0, 0.25, 0.0])
    asked, trail = asking("a")
    policy.completed(MS, at_stage0(policy, asked), judged([0.125, 0.1875], p_correct=0.75))
    (note,) = trail.notes
    assert (note.place, note.reason, note.p_correct, note.gains, note.prices) == (
        0,
        ExitReason.PRICE,
        0.75,
        (0.125, 0.1875),
        (0.25, 0.0),
    )
    assert note.onward is not None
    assert (note.onward.stage, note.onward.value, note.onward.price, note.onward.base_price) == (1, 0.1875, 0.25, 0.0)
    assert not note.onward.protected
    assert not note.onward.out
    assert (note.batch.stage, note.batch.rows, note.batch.attempt) == (0, 1, 1)
    assert (note.batch.sent_s, note.batch.back_s, note.at_s) == (0.0, MS, MS)


def test_a_row_that_climbs_has_a_note_of_every_stage():
    policy = three()
    asked, trail = asking("a")
    commands = policy.completed(MS, at_stage0(policy, asked), judged([0.3, 0.5]))
    for now, gains in ((0.125, [0.2]), (0.375, [])):
        (batch,) = batches(policy.dispatch(now))
        commands = policy.completed(now + 0.125, batch, judged(gains))
    assert [(note.batch.stage, note.queued_s, note.reason) for note in trail.notes] == [
        (0, 0.0, None),
        (1, 0.125 - MS, None),
        (2, 0.125, ExitReason.LAST_STAGE),
    ]
    assert [note.onward and note.onward.stage for note in trail.notes] == [1, 2, None]
    (reply,) = replies(commands)
    trail.left(0.5, reply.places, [reply.answer])
    assert trail.ends[0].answer.reason is ExitReason.LAST_STAGE


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"budget": 5.0}, ExitReason.BUDGET),
        ({"min_confidence": 0.5}, ExitReason.SATISFIED),
        ({"answer_by_s": 12 * MS, "deadline_s": 13 * MS}, ExitReason.DEADLINE),
    ],
)
def test_what_a_client_set_is_named_as_the_reason(facts, reason):
    policy = three()
    asked, trail = asking("a", **facts)
    policy.completed(4 * MS, at_stage0(policy, asked), judged([0.3, 0.5]))
    (note,) = trail.notes
    assert note.reason is reason
    assert note.onward is not None
    assert note.onward.affordable == (reason is not ExitReason.BUDGET)
    assert (note.onward.soonest_s > note.usable_until_s) == (reason is ExitReason.DEADLINE)


def test_a_stage_that_is_out_is_told_from_one_that_is_too_dear():
    policy = ladder(stage(), stage(cost=10))
    policy.set_slots(1, 0)
    asked, trail = asking("a")
    policy.completed(MS, at_stage0(policy, asked), judged([0.5]))
    (note,) = trail.notes
    assert (note.reason, note.onward and note.onward.out) == (ExitReason.FAILURE, True)


def test_a_class_pays_what_it_sees_and_a_floor_shows():
    classes = (ClassConfig(cap=(0.0, 0.125)), ClassConfig(0.5))
    policy = ladder(stage(), stage(cost=10), classes=classes)
    policy.set_prices([0.0, 0.25])
    first, promised = asking("a", priority=1)
    second, plain = asking("b", priority=2)
    policy.completed(MS, at_stage0(policy, first, second), judged([0.1875], [0.1875]))
    assert promised.notes[0].onward is not None
    assert plain.notes[0].onward is not None
    assert (promised.notes[0].onward.protected, promised.notes[0].reason) == (True, None)
    assert (plain.notes[0].onward.price, plain.notes[0].reason) == (0.5, ExitReason.PRICE)


def test_rows_that_walk_together_have_a_note_each_up_to_a_number():
    policy = ladder(stage(batch=64), stage(cost=10, batch=64))
    asked, trail = asking("a")
    asked = asked._replace(rows=MOST_ROWS + 4)
    gains = [[0.25 * (row % 2)] for row in range(asked.rows)]
    commands = policy.completed(MS, at_stage0(policy, asked), judged(*gains))
    assert [note.place for note in trail.notes] == list(range(MOST_ROWS))
    assert [note.reason for note in trail.notes] == [ExitReason.CONFIDENT, None] * (MOST_ROWS // 2)
    for reply in replies(commands):
        trail.left(MS, reply.places, reply.answer.of_rows(reply.rows))
    assert sorted(trail.ends) == list(range(0, MOST_ROWS, 2))


def test_requests_of_one_batch_share_its_facts_and_others_are_not_written_down():
    policy = ladder(stage(batch=8), stage(cost=10))
    (first, one), (second, other) = asking("a"), asking("b")
    one.handle, other.handle = "span a", "span b"
    policy.completed(MS, at_stage0(policy, first, request("c"), second), judged([0.0], [0.0], [0.0]))
    assert one.notes[0].batch is other.notes[0].batch
    assert one.notes[0].batch.handles == ["span a", "span b"]
    assert one.notes[0].batch.rows == 3


def test_a_trail_changes_nothing():
    """The same load, with and without trails: the same commands at the same instants."""

    def run(written: bool) -> list[tuple[object, ...]]:
        policy = ladder(stage(batch=4), stage(cost=10, batch=2), stage(cost=100, batch=1), seed=3)
        policy.set_prices([0.0, 0.125, 0.25])
        random, now, seen = np.random.default_rng(7), 0.0, []
        for number in range(200):
            now += MS * int(random.integers(1, 20))
            asked = request(number, arrived_s=now, answer_by_s=now + 0.5, deadline_s=now + 0.53125)
            admit(policy, now, asked._replace(trail=Trail()) if written else asked)
            for batch in batches(policy.dispatch(now)):
                behind = 2 - batch.stage
                gains = random.integers(0, 8, size=(batch.rows, behind)) / 16
                found = judged(*gains.tolist())
                for command in policy.completed(now + MS, batch, found):
                    assert isinstance(command, Reply)
                    seen.append((command.tag, command.answer.stage, command.answer.reason, command.answer.cost))
            now += MS
        return seen

    assert run(written=True) == run(written=False)


def test_a_recalled_answer_is_named():
    policy = ladder(stage(), stage(cost=10))
    asked, trail = asking("a")
    policy.completed(MS, at_stage0(policy, asked), judged([0.5]))
    (batch,) = batches(policy.dispatch(MS))
    found: Judgement = replace(judged([]), recalled=np.array([True]))
    policy.completed(2 * MS, batch, found)
    assert [note.recalled for note in trail.notes] == [False, True]
