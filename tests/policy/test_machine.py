"""The policy under a driver with any schedule: whatever comes, in whatever order, what the policy promises holds.

The machine keeps its own books from the commands alone and compares them with the policy's after every step.
"""

from collections.abc import Collection
from math import ceil, inf, log2

import pytest
from builders import MS, judged, stage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine_rows import CLASSES, COST, GAIN, Row

from cascade.policy.classes import ClassConfig
from cascade.policy.commands import Abandon, Batch, Command, Expire, Fail, Preliminary, Reply, Run, Shed
from cascade.policy.gain import Judgement
from cascade.policy.policy import Policy
from cascade.policy.price import continuation_value
from cascade.policy.request import DEGRADING, ExitReason, Request
from cascade.policy.walk import OUTCOMES, State, Walk


class Driver(RuleBasedStateMachine):
    """A driver that does its duties, and otherwise whatever it likes."""

    @initialize(
        stages=st.lists(
            st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.125])), min_size=1, max_size=4
        ),
        wait_share=st.sampled_from([0.2, 1.0]),
        usual_deadline_s=st.sampled_from([4 * MS, 64 * MS, 1.0]),
        finish_by=st.sampled_from(["completing", "failing", "hanging"]),
        begin_s=st.sampled_from([0.0, 4096.0]),
        classes=st.sampled_from(CLASSES),
    )
    def begin(self, stages, wait_share, usual_deadline_s, finish_by, begin_s, classes):
        self.stages = [
            stage(slots, batch, cost, price, timeout_floor_s=64 * MS)
            for cost, (slots, batch, price) in zip(COST, stages, strict=False)
        ]
        self.caps = [cap for _, cap, _ in classes or [(1.0, None, "wait")]]
        configs = classes and [
            ClassConfig(weight, None if cap is None else (cap,) * len(stages), beyond) for weight, cap, beyond in classes
        ]
        self.policy = Policy(self.stages, usual_deadline_s=usual_deadline_s, wait_share=wait_share, classes=configs)
        self.usual_deadline_s = usual_deadline_s
        self.now = begin_s
        self.rows: list[Row] = []
        self.of: dict[Walk, Row] = {}
        self.shed = 0
        self.shed_of = [0 for _ in self.caps]
        self.running: list[Batch] = []
        self.given_up: list[Batch] = []
        self.returned = [[0, 0, 0.0, 0.0] for _ in stages]
        self.failures = [0 for _ in stages]
        self.failed_rows: dict[tuple[Walk, int], int] = {}
        self.late_tick = False
        self.finish_by = finish_by

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(
        rows=st.lists(st.sampled_from([inf, inf, inf, 1.0, 11.0, 111.0, 101.0, 0.5]), min_size=1, max_size=6),
        time=st.sampled_from([0, 1, 10, 11, 20, 40, 100, 400]),
        priority=st.integers(1, 4),
        tenant=st.sampled_from(["", "", "a", "b"]),
        lag=st.sampled_from([0, 0, 0, 30]),
        wishes=st.tuples(st.sampled_from([inf, inf, 0.5, 0.75]), st.booleans()),
        dispatch=st.booleans(),
    )
    def arrive(self, rows, time, priority, tenant, lag, wishes, dispatch):
        self.come(rows, time, priority, tenant, lag, dispatch, *wishes)

    def come(self, rows, time, priority, tenant, lag, dispatch, min_confidence=inf, refine=False):
        deadline_s = self.now + time * MS
        answer_by_s = max(self.now, deadline_s - MS)
        first = len(self.rows) + self.shed
        requests = [
            Request(first + i, self.now, answer_by_s, deadline_s, priority, budget, tenant, min_confidence, refine)
            for i, budget in enumerate(rows)
        ]
        at_door = self.policy.door(self.now, deadline_s - self.now, priority, lag * MS, tenant, len(rows))
        if at_door is not None:
            self.turned_away(at_door, time, priority, len(rows))
            return
        walks = self.policy.arrived(self.now, requests, lag * MS)
        if isinstance(walks, Shed):
            # The message is a part of its tenant's rate by now, which may have taken it over its fair share.
            assert self.policy._tenants.several
            self.turned_away(walks, time, priority, len(rows))
            return
        for one, walk in zip(requests, walks, strict=True):
            assert walk.request is one
            row = Row(one, walk)
            self.rows.append(row)
            self.of[walk] = row
        self.settle(dispatch)

    def turned_away(self, shed: Shed, time: int, priority: int, rows: int) -> None:
        assert shed.retry_after_s >= 1
        assert time or not self.policy.capacities[0].slots, "too late is not overload"
        self.shed += rows
        self.shed_of[self.place(priority)] += rows

    def place(self, priority: int) -> int:
        return min(priority, len(self.caps)) - 1

    @precondition(lambda self: self.running)
    @rule(data=st.data(), p_correct=st.sampled_from([0.25, 0.5, 0.75]), poison=st.booleans(), dispatch=st.booleans())
    def complete(self, data, p_correct, poison, dispatch):
        batch = data.draw(st.sampled_from(self.running))
        width = len(self.stages) - 1 - batch.stage
        rows = st.lists(st.lists(GAIN, min_size=width, max_size=width), min_size=len(batch.walks), max_size=len(batch.walks))
        poisoned = data.draw(st.sets(st.sampled_from(range(batch.rows)))) if poison else ()
        self.come_back(batch, judged(*data.draw(rows), p_correct=p_correct), poisoned)
        self.settle(dispatch)

    @rule(
        rows=st.integers(6, 16), priority=st.integers(1, 4), tenant=st.sampled_from(["", "a", "b"]), gain=st.integers(2, 16)
    )
    def a_crowd_comes(self, rows, priority, tenant, gain):
        """Many rows with much time come and pass stage 0, so that the queues behind it fill."""
        self.come([inf] * rows, 400, priority, tenant, 0, dispatch=True)
        gain /= 16
        for _ in range(100):
            first = next((batch for batch in self.running if batch.stage == 0), None)
            if first is None:
                break
            self.come_back(first, judged(*[[gain] * (len(self.stages) - 1)] * len(first.walks)))
            self.settle(dispatch=True)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), dispatch=st.booleans())
    def fail(self, data, dispatch):
        self.break_down(data.draw(st.sampled_from(self.running)))
        self.settle(dispatch)

    @precondition(lambda self: self.given_up)
    @rule(data=st.data(), completes=st.booleans())
    def return_after_being_given_up(self, data, completes):
        batch = data.draw(st.sampled_from(self.given_up))
        before = repr(self.policy.counts)
        if completes:
            gains = [[0.5] * (len(self.stages) - 1 - batch.stage)] * len(batch.walks)
            assert self.policy.completed(self.now, batch, judged(*gains)) == []
        else:
            assert self.policy.failed(self.now, batch) == []
        assert repr(self.policy.counts) == before

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data):
        row = data.draw(st.sampled_from(self.rows))
        self.policy.cancelled(row.walk)
        row.outcome = row.outcome or "cancelled"

    @rule(data=st.data(), slots=st.integers(0, 3), dispatch=st.booleans())
    def change_slots(self, data, slots, dispatch):
        self.obey(self.policy.set_slots(data.draw(st.sampled_from(range(len(self.stages)))), slots))
        self.note_protected()
        self.settle(dispatch)

    @rule(data=st.data(), uncongested_rate=st.sampled_from([inf, 1.0, 1e6]))
    def change_prices(self, data, uncongested_rate):
        prices = data.draw(st.lists(st.sampled_from([0.0, 0.0625, 0.25, 0.75]), min_size=1, max_size=4))
        prices = (prices * 4)[: len(self.stages)]
        self.policy.set_prices(prices, uncongested_rate)
        assert self.policy.prices == tuple(max(p, s.base_price) for p, s in zip(prices, self.stages, strict=True))

    @rule(steps=st.integers(1, 40))
    def pass_time(self, steps):
        """Time passes, and every timer is served at its instant."""
        until = self.now + steps * MS
        for _ in range(10_000):
            timer = self.policy.next_timer()
            if timer is None or timer > until:
                break
            self.now = max(self.now, timer)
            self.obey(self.policy.tick(self.now))
            self.settle(dispatch=True)
            following = self.policy.next_timer()
            assert following is None or following > self.now, "a timer that was served must not ask again at once"
        else:
            pytest.fail("timers without end")
        self.now = until

    @rule(steps=st.integers(1, 200))
    def oversleep(self, steps):
        """Time passes, and the driver is late."""
        self.now += steps * MS
        self.late_tick = True
        self.obey(self.policy.tick(self.now))
        self.settle(dispatch=True)
        self.late_tick = False

    # -- how the driver does its part --------------------------------------------------------------------------------

    def settle(self, dispatch: bool) -> None:
        if not dispatch:
            return
        self.obey(self.policy.dispatch(self.now))
        for index, capacity in enumerate(self.policy.capacities):
            waiting = self.policy.waiting(index)
            assert not (capacity.free and waiting), "a free slot and a row that waits for it"
            if index:
                share = 0.5 if index == len(self.stages) - 1 else 0.25
                work = share * self.usual_deadline_s * capacity.rows_per_s
                protected = sum(row.protected and row.walk.state is State.DEFERRED for row in self.rows)
                again = self.policy._again[index].rows  # these have been sent before, and are not evicted
                assert waiting - again <= max(work, capacity.slots * capacity.max_batch_size, protected)

    def come_back(self, batch: Batch, judgement: Judgement, poisoned: Collection[int] = ()) -> None:
        self.running.remove(batch)
        books = self.returned[batch.stage]
        books[0] += 1
        books[1] += len(batch.walks)
        books[2] += sum(walk.queued_s for walk in batch.walks)
        books[3] += self.now - batch.started_s
        for place, walk in enumerate(batch.walks):
            if self.of[walk].outcome is None and place not in poisoned:
                self.of[walk].answers.append((batch.stage, judgement, place))
                self.of[walk].first_answer_s = min(self.of[walk].first_answer_s, self.now)
        self.obey(self.policy.completed(self.now, batch, judgement, poisoned=poisoned))
        self.note_protected()
        assert all(self.of[walk].outcome for place, walk in enumerate(batch.walks) if place in poisoned)
        for row in (self.of[walk] for walk in batch.walks):
            if row.request.refine and row.outcome is None:
                assert row.shown == row.answers, "a row that goes on has not shown what it has"

    def value(self, row: Row) -> tuple[float, int]:
        """What going on is worth to a row, and the stage that it would go to."""
        stage, judgement, place = row.answers[-1]
        behind = [j for j in range(stage + 1, len(self.stages)) if self.policy.capacities[j].slots]
        prices = [s.base_price for s in self.stages]
        return float(continuation_value(judgement.gains[place : place + 1], stage, behind, prices)[0]), behind[0]

    def within_floor(self, row: Row) -> bool:
        cap = self.caps[self.place(row.request.priority)]
        value, target = self.value(row)
        return cap is not None and value > max(cap, self.stages[target].base_price)

    def note_protected(self) -> None:
        for row in self.rows:
            if row.walk.state is State.DEFERRED and row.waits_for != row.walk.stage:
                row.waits_for = row.walk.stage
                row.protected = self.within_floor(row)

    def break_down(self, batch: Batch) -> None:
        self.running.remove(batch)
        self.note_failure(batch)
        self.obey(self.policy.failed(self.now, batch))

    def note_failure(self, batch: Batch) -> None:
        self.failures[batch.stage] += 1
        for walk in batch.walks:
            failed = self.failed_rows.get((walk, batch.stage), 0)
            assert failed == batch.attempt - 1
            self.failed_rows[walk, batch.stage] = failed + 1

    def obey(self, commands: list[Command]) -> None:
        for place, command in enumerate(commands):
            match command:
                case Run(batch):
                    # A batch given up after this one was sent has changed the prediction.
                    learned = any(isinstance(c, Abandon) and c.batch.stage == batch.stage for c in commands[place:])
                    self.check_run(batch, learned)
                    self.running.append(batch)
                case Abandon(batch):
                    assert batch.give_up_s <= self.now
                    self.running.remove(batch)
                    self.given_up.append(batch)
                    self.note_failure(batch)
                case Reply(tag, answer):
                    row = self.end(tag, "answered")
                    self.check_reply(row, answer)
                case Preliminary(tag, so_far):
                    (row,) = (row for row in self.rows if row.request.tag == tag)
                    assert row.request.refine
                    assert row.outcome is None, "shown after its end"
                    row.shown.append((so_far.stage, so_far.judgement, so_far.row))
                    assert row.shown == row.answers, "not the best answer so far, or shown twice"
                    assert so_far.cost == row.cost
                case Expire(tag):
                    row = self.end(tag, "expired")
                    assert not row.answers, "a row with an answer expired"
                case Fail(tag):
                    row = self.end(tag, "failed")
                    assert not row.answers, "a row with an answer failed"

    def end(self, tag: object, outcome: str) -> Row:
        (row,) = (row for row in self.rows if row.request.tag == tag)
        assert row.outcome is None, f"{row.outcome} and then {outcome}"
        row.outcome = outcome
        return row

    def check_run(self, batch: Batch, learned: bool) -> None:
        capacity = self.policy.capacities[batch.stage]
        assert 1 <= len(batch.walks) <= capacity.max_batch_size
        assert capacity.slots, "work was begun on a stage that is out"
        if batch.attempt == 1:
            assert sum(one.stage == batch.stage for one in self.running) < capacity.slots
        assert batch.started_s == self.now < batch.give_up_s
        assert len(set(batch.walks)) == len(batch.walks)
        for walk in batch.walks:
            row = self.of[walk]
            assert row.outcome is None, "work was begun for a row that has its outcome"
            if batch.attempt == 1:
                assert not row.called or batch.stage > row.called[-1], "stages must ascend"
                row.called.append(batch.stage)
                if batch.stage:
                    assert row.cost <= row.request.budget
            else:
                assert self.failed_rows[walk, batch.stage] == batch.attempt - 1
                assert batch.attempt <= 2 + ceil(log2(capacity.max_batch_size))
                assert row.called[-1] == batch.stage
            limit_s = row.request.answer_by_s if row.answers else row.request.deadline_s
            assert learned or self.now + capacity.service.predict(len(batch.walks)) <= limit_s

    def check_reply(self, row: Row, answer) -> None:
        assert (answer.stage, answer.judgement, answer.row) == row.answers[-1], "not the best answer so far"
        wanted = row.request.min_confidence
        if answer.reason is ExitReason.SATISFIED:
            assert answer.confidence >= wanted, "a client was said to be content"
        elif answer.reason is ExitReason.PRICE:
            assert answer.confidence < wanted, "a client that was content was said to be priced out"
        assert row.shown in ([], row.answers[:-1], row.answers)
        assert bool(row.shown) <= row.request.refine
        if answer.reason is ExitReason.PRICE:
            assert not self.within_floor(row), "a price stopped a protected row"
        assert answer.reason is not ExitReason.EVICTED or not row.protected, "a protected row was evicted"
        assert answer.cost == row.cost
        visited = [span.stage for span in answer.spans]
        assert visited == [stage for stage, _, _ in row.answers] == sorted(set(visited))
        assert visited[0] == 0
        assert all(span.queued_s >= 0 and span.run_s >= 0 for span in answer.spans)
        assert answer.cost >= sum(COST[stage] for stage in visited)
        assert answer.degraded == (answer.reason in DEGRADING)
        assert answer.deferrals - answer.escalations == answer.degraded
        assert answer.escalations == len(visited) - 1
        assert (answer.reason is ExitReason.LAST_STAGE) == (answer.stage == len(self.stages) - 1)
        if row.first_answer_s < self.now and not self.late_tick:
            assert self.now <= row.request.answer_by_s, "an answer that existed left late"

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self):
        counts = self.policy.counts
        ended = [row.outcome for row in self.rows]
        assert counts.arrived == len(self.rows) + self.shed
        assert counts.live == ended.count(None) >= 0
        assert counts.shed == self.shed
        for name in ("answered", "expired", "failed", "cancelled"):
            assert getattr(counts, name) == ended.count(name), name
        answers = [row.walk.answer for row in self.rows if row.outcome == "answered"]
        for place, of_class in enumerate(counts.classes):
            mine = [row for row in self.rows if self.place(row.request.priority) == place and row.outcome == "answered"]
            degraded = sum(row.walk.answer.degraded for row in mine)
            assert (of_class.answered, of_class.degraded, of_class.shed) == (len(mine), degraded, self.shed_of[place])
            assert of_class.below_floor <= (0 if self.caps[place] is None else degraded)
        assert counts.cost == sum(answer.cost for answer in answers)
        assert counts.degraded == sum(answer.degraded for answer in answers)
        for index, books in enumerate(counts.stages):
            here = [answer for answer in answers if answer.stage == index]
            assert books.answers == {reason: sum(a.reason is reason for a in here) for reason in ExitReason}
            left_for_more = sum(any(span.stage == index for span in a.spans[:-1]) for a in answers)
            assert books.escalations == left_for_more
            assert books.deferrals == left_for_more + sum(a.degraded for a in here)
            assert [books.batches, books.rows] == self.returned[index][:2]
            assert [books.queued_s, books.run_s] == pytest.approx(self.returned[index][2:])
            assert (sum(books.waits.counts), sum(books.runs.counts)) == (books.rows, books.batches)
            assert books.failures == self.failures[index]

    @invariant()
    def every_row_is_in_one_place(self):
        waiting = [0 for _ in self.stages]
        for row in self.rows:
            walk = row.walk
            assert (row.outcome is not None) == walk.done
            assert row.outcome is None or (row.outcome == walk.state and walk.state in OUTCOMES)
            with_stage = sum(walk in batch.walks for batch in self.running)
            if walk.state in (State.WAITING, State.DEFERRED):
                waiting[walk.stage] += 1
                assert with_stage == 0
            elif walk.state in (State.RUNNING, State.ESCALATED):
                waiting[walk.stage] += not with_stage  # to be sent again
                assert with_stage == 1 or (walk, walk.stage) in self.failed_rows
            assert walk.done or walk.has_answer == (walk.state in (State.DEFERRED, State.ESCALATED))
        assert waiting == [self.policy.waiting(index) for index in range(len(self.stages))]

    @invariant()
    def slots_are_taken_by_the_batches_that_run(self):
        for index, capacity in enumerate(self.policy.capacities):
            assert capacity.busy == sum(batch.stage == index for batch in self.running)

    @invariant()
    def no_timer_is_lost(self):
        due = [
            row.request.answer_by_s if row.answers else row.request.deadline_s for row in self.rows if row.outcome is None
        ]
        due += [batch.give_up_s for batch in self.running]
        timer = self.policy.next_timer()
        assert (timer is None) == (not due)
        assert timer is None or timer <= min(due)

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "policy"):
            return
        for _ in range(10_000):
            if not self.policy.counts.live and not self.running:
                break
            if self.running and self.finish_by != "hanging":
                batch = self.running[0]
                if self.finish_by == "failing":
                    self.break_down(batch)
                else:
                    gains = [[0.5] * (len(self.stages) - 1 - batch.stage)] * len(batch.walks)
                    self.come_back(batch, judged(*gains))
            else:
                timer = self.policy.next_timer()
                assert timer is not None, "rows are left and nothing will ever happen to them"
                self.now = max(self.now, timer)
                self.obey(self.policy.tick(self.now))
            self.settle(dispatch=True)
            self.the_books_agree()
        assert self.policy.counts.live == 0
        assert self.policy.next_timer() is None
        assert not self.running
        assert all(capacity.busy == 0 for capacity in self.policy.capacities)
        assert all(self.policy.waiting(index) == 0 for index in range(len(self.stages)))


class TestDriver(Driver.TestCase):
    """Runs the machine."""

    settings = settings(max_examples=120, stateful_step_count=30)
