"""Rows that fail alone: their batch-mates are answered, they are told apart from a stage that fails on everything."""

from collections.abc import Collection
from math import ceil, log2

from builders import MS, admit, at_stage0, batches, defer, judged, ladder, replies, request, stage, three
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.again import OUT_OF_ORDER, halves
from cascade.policy.commands import Batch, Command, Expire, Fail, Reply, Run
from cascade.policy.policy import Policy
from cascade.policy.quarantine import MOST_INPUTS, QUARANTINE_S, Quarantine
from cascade.policy.request import ExitReason, Request
from cascade.policy.walk import Walk

NOW = 0.0


def play(policy: Policy, commands: list[Command], poison: Collection[object]) -> tuple[list[Command], list[Batch]]:
    """Let batches that hold a row of ``poison`` fail and the others come back confident; returns endings and batches."""
    ended: list[Command] = []
    ran: list[Batch] = []
    waiting = list(commands)
    while waiting:
        command = waiting.pop(0)
        if not isinstance(command, Run):
            ended.append(command)
            continue
        batch = command.batch
        ran.append(batch)
        if any(walk.request.tag in poison for walk in batch.walks):
            waiting += policy.failed(NOW, batch)
        else:
            gains = [0.0] * (len(policy.capacities) - 1 - batch.stage)
            waiting += policy.completed(NOW, batch, judged(*[gains] * batch.rows))
        waiting += policy.dispatch(NOW)
    return ended, ran


def crowd(count: int) -> list[Request]:
    return [request(tag, answer_by_s=900.0, deadline_s=1000.0) for tag in range(count)]


def policy_of(rows: int, slots: int = 1) -> Policy:
    return ladder(stage(slots=slots, batch=rows))


# -- one row among others -----------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 40), poison=st.sets(st.integers(0, 39), max_size=6), slots=st.integers(1, 4))
def test_every_other_row_of_a_batch_is_answered_and_few_calls_are_needed(rows, poison, slots):
    poison = {tag for tag in poison if tag < rows}
    policy = policy_of(rows, slots)
    admit(policy, NOW, *crowd(rows))
    ended, ran = play(policy, policy.dispatch(NOW), poison)
    assert {command.tag for command in ended if isinstance(command, Reply)} == set(range(rows)) - poison
    assert {command.tag for command in ended if isinstance(command, Fail)} == poison
    assert len(ended) == rows
    halvings = ceil(log2(rows)) if rows > 1 else 1
    assert len(ran) <= 1 + 2 * len(poison) * halvings
    assert policy.capacities[0].busy == policy.counts.live == policy.waiting(0) == 0


def test_a_row_that_fails_alone_while_others_come_back_is_poisoned():
    policy = policy_of(4)
    admit(policy, NOW, *crowd(4))
    ended, _ = play(policy, policy.dispatch(NOW), {2})
    assert [command for command in ended if isinstance(command, Fail)] == [Fail(2, poisoned=True)]
    assert policy.counts.stages[0].poisoned == 1


def test_a_row_that_fails_twice_while_nothing_comes_back_is_not_blamed():
    policy = policy_of(4)
    admit(policy, NOW, *crowd(1))
    ended, ran = play(policy, policy.dispatch(NOW), {0})
    assert (ended, len(ran)) == ([Fail(0)], 2)
    assert policy.counts.stages[0].poisoned == 0


def test_a_poisoned_row_that_has_an_answer_leaves_with_it():
    policy = three()
    defer(policy, NOW, [[0.5, 0.5]] * 4, crowd(4))
    ended, _ = play(policy, policy.dispatch(NOW), {1})
    answers = {reply.tag: reply.answer for reply in replies(ended)}
    assert {tag: answer.stage for tag, answer in answers.items()} == {0: 1, 1: 0, 2: 1, 3: 1}
    assert (answers[1].reason, answers[1].degraded, answers[1].cost) == (ExitReason.FAILURE, True, 11.0)
    assert policy.counts.stages[1].poisoned == 1


def test_rows_of_one_message_are_parted_where_halving_cuts_it():
    policy = policy_of(8)
    message = Request("m", NOW, 900.0, 1000.0, rows=6)
    policy.arrived(NOW, [message])
    (batch,) = batches(policy.dispatch(NOW))
    (first,) = batches(policy.failed(NOW, batch))
    (second,) = batches(policy.completed(NOW, first, judged([], [], [])) + policy.dispatch(NOW))[-1:]
    assert [list(walk.places) for walk in (*first.walks, *second.walks)] == [[0, 1, 2], [3, 4, 5]]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_halves_hold_all_rows_in_order_and_differ_by_one_at_most(sizes):
    walks = [Walk(Request(tag, 0.0, 1.0, 1.0, rows=rows)) for tag, rows in enumerate(sizes)]
    wanted = [(tag, place) for tag, rows in enumerate(sizes) for place in range(rows)]
    parts = halves(walks)
    assert [(walk.request.tag, place) for part in parts for walk in part for place in walk.places] == wanted
    counts = [sum(walk.rows for walk in part) for part in parts]
    assert len(counts) == min(2, sum(sizes))
    assert counts[0] - counts[-1] in (0, 1)


# -- rows that come back without evidence -------------------------------------------------------------------------------


def test_rows_without_evidence_end_at_once_and_their_batch_mates_are_judged():
    policy = three()
    batch = at_stage0(policy, *crowd(3))
    commands = policy.completed(NOW, batch, judged([0.0, 0.0], [0.0, 0.0], [0.5, 0.5]), poisoned=[0])
    assert commands[0] == Fail(0, poisoned=True)
    assert [reply.tag for reply in replies(commands)] == [1]
    assert (policy.waiting(1), policy.counts.stages[0].failures) == (1, 0)


def test_of_rows_that_walk_together_those_without_evidence_part():
    policy = three()
    policy.arrived(NOW, [Request("m", NOW, 900.0, 1000.0, rows=4)])
    (batch,) = batches(policy.dispatch(NOW))
    commands = policy.completed(NOW, batch, judged(*[[0.0, 0.0]] * 4), poisoned=[0, 2])
    assert [command for command in commands if isinstance(command, Fail)] == [
        Fail("m", (0,), poisoned=True),
        Fail("m", (2,), poisoned=True),
    ]
    (reply,) = replies(commands)
    assert (list(reply.places), reply.rows) == ([1, 3], [1, 3])
    assert policy.counts.live == 0


# -- a stage that fails on everything -----------------------------------------------------------------------------------


def test_a_stage_that_fails_on_everything_is_asked_no_more_than_twice_for_a_batch():
    policy = ladder(stage(slots=8, batch=8))
    everything = set(range(400))
    admit(policy, NOW, *crowd(80))
    _, before = play(policy, policy.dispatch(NOW), everything)
    assert len(before) >= OUT_OF_ORDER
    admit(policy, NOW, *[request(100 + tag, answer_by_s=900.0, deadline_s=1000.0) for tag in range(64)])
    commands = policy.dispatch(NOW)
    ended, ran = play(policy, commands, everything)
    assert len(ended) == 64
    # Seven batches are tried once more; one at a time is still halved, to find out whether it was the rows.
    assert len(ran) <= 7 * 2 + 2 * (2 * 8 - 1)


def test_a_stage_that_gives_something_back_is_trusted_again():
    policy = policy_of(4)
    admit(policy, NOW, *crowd(64))
    play(policy, policy.dispatch(NOW), set(range(64)))
    admit(policy, NOW, *[request(100 + tag, answer_by_s=900.0, deadline_s=1000.0) for tag in range(4)])
    ended, _ = play(policy, policy.dispatch(NOW), {101})
    assert {command.tag for command in ended if isinstance(command, Reply)} == {100, 102, 103}


def test_what_hangs_is_tried_once_more_and_not_halved():
    policy = ladder(stage(timeout_floor_s=0.125))
    batch = at_stage0(policy, *crowd(4))
    (again,) = batches(policy.tick(batch.give_up_s))
    assert (again.attempt, again.walks) == (2, [*batch.walks])
    ended = policy.tick(again.give_up_s)[1:]
    assert ended == [Fail(tag) for tag in range(4)]


# -- time, clients and stages that go -----------------------------------------------------------------------------------


def test_a_part_waits_for_a_place_and_goes_before_rows_that_came_later():
    policy = policy_of(4)
    batch = at_stage0(policy, *crowd(4))
    admit(policy, NOW, request("later"))
    (first,) = batches(policy.failed(NOW, batch))
    assert policy.dispatch(NOW) == []
    assert policy.waiting(0) == 2 + 1
    (second,) = batches(policy.completed(NOW, first, judged([], [])) + policy.dispatch(NOW))
    assert [walk.request.tag for walk in second.walks] == [2, 3]


def test_rows_that_wait_to_be_sent_again_end_with_their_stage():
    policy = policy_of(4)
    batch = at_stage0(policy, *crowd(4))
    policy.failed(NOW, batch)
    assert policy.set_slots(0, 0) == [Fail(2), Fail(3)]


def test_rows_that_wait_to_be_sent_again_expire_and_are_sent_no_more():
    policy = ladder(stage(timeout_floor_s=4.0))
    batch = at_stage0(policy, *[request(tag) for tag in range(4)])
    (first,) = batches(policy.failed(NOW, batch))
    assert policy.tick(1.0) == [Expire(tag) for tag in range(4)]
    assert policy.completed(1.0, first, judged([], [])) == policy.dispatch(1.0) == []
    assert policy.waiting(0) == policy.capacities[0].busy == 0


def test_a_part_that_would_be_too_late_once_there_is_a_place_is_given_up():
    policy = ladder(stage(timeout_floor_s=4.0))
    batch = at_stage0(policy, *[request(tag, deadline_s=30 * MS) for tag in range(4)])
    (first,) = batches(policy.failed(NOW, batch))
    commands = policy.completed(20 * MS, first, judged([], [])) + policy.dispatch(20 * MS)
    assert commands[2:] == [Fail(2), Fail(3)]


# -- inputs that are not let in again -----------------------------------------------------------------------------------


def test_an_input_that_failed_twice_is_turned_away_for_a_while():
    quarantine = Quarantine()
    found = lambda now: quarantine.first_refused(now, [b"s", b"s"], lambda place: [b"other", b"bad"][place])  # noqa: E731
    quarantine.poisoned(0.0, b"s", b"bad")
    assert not quarantine.active(0.0)
    assert found(0.0) is None
    quarantine.poisoned(1.0, b"s", b"bad")
    assert quarantine.active(1.0)
    assert found(1.0) == 1
    assert found(1.0 + QUARANTINE_S) is None
    assert not quarantine.active(1.0 + QUARANTINE_S)


def test_a_failure_long_ago_does_not_count():
    quarantine = Quarantine()
    quarantine.poisoned(0.0, b"s", b"bad")
    quarantine.poisoned(QUARANTINE_S, b"s", b"bad")
    assert quarantine.first_refused(QUARANTINE_S, [b"s"], lambda _: b"bad") is None


def test_no_digest_is_made_of_an_input_whose_sample_is_another():
    quarantine = Quarantine()
    for _ in range(2):
        quarantine.poisoned(0.0, b"s", b"bad")
    assert quarantine.first_refused(0.0, [b"t"] * 3, lambda _: 1 / 0) is None  # type: ignore[arg-type, return-value]


def test_only_so_many_inputs_are_remembered():
    quarantine = Quarantine()
    for number in range(3 * MOST_INPUTS):
        for _ in range(2):
            quarantine.poisoned(0.0, b"%d" % number, b"%d" % number)
    assert len(quarantine._failures) == len(quarantine._samples) == MOST_INPUTS


def test_a_trial_whose_part_fails_while_its_stage_is_out_keeps_no_other_from_halving():
    policy = ladder(stage(slots=1, batch=4))
    patient = {"answer_by_s": 900.0, "deadline_s": 999.0}

    def fail(rows: int) -> list[Batch]:
        """Fail a batch of new rows; what is sent again at once."""
        admit(policy, 0.0, *(request(f"row {k}", **patient) for k in range(rows)))
        (batch,) = batches(policy.dispatch(0.0))
        return batches(policy.failed(0.0, batch))

    for _ in range(OUT_OF_ORDER):
        for batch in fail(1):
            policy.failed(0.0, batch)
    (half,) = fail(4)
    assert half.rows == 2
    policy.set_slots(0, 0)
    policy.failed(0.0, half)
    policy.set_slots(0, 1)
    assert [batch.rows for batch in fail(4)] == [2]
