"""However many rows wait and batches run: the decisions are those of a plain search through all of them."""

from bisect import insort
from random import Random

from builders import MS, request
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from plain_queue import PlainQueue

from cascade.policy.alarms import ALARM_SLACK, Alarms
from cascade.policy.classes import PROTECTED
from cascade.policy.commands import Batch
from cascade.policy.queue import StageQueue
from cascade.policy.ranking import Ranking
from cascade.policy.under_way import UnderWay
from cascade.policy.walk import Walk

INSTANTS = st.integers(0, 12).map(float)


def entry(place: int, key: float, usable_until_s: float = 100.0):
    """A row in a queue."""
    walk = Walk(request(place, deadline_s=usable_until_s))
    walk.place = (key, -place)
    return (key, -place, walk)


@given(st.lists(st.tuples(st.integers(0, 3), INSTANTS), max_size=60), st.randoms(use_true_random=False))
def test_a_ranking_of_small_blocks_is_a_sorted_list(rows, random):
    ranking, plain = Ranking(block=2), []
    for place, (key, until_s) in enumerate(rows):
        one = entry(place, key, until_s)
        ranking.add(one)
        insort(plain, one)
        match random.randrange(6):
            case 0:
                gone = random.choice(plain)
                ranking.remove(gone[2])
                plain.remove(gone)
            case 1:
                count, below = random.randrange(4), random.choice([0.0, 1.5, 9.0])
                expected = [each for each in plain if each[0] < below][:count]
                assert ranking.least(count, below) == expected
                plain = [each for each in plain if each not in expected]
            case 2:
                count, until_s = random.randint(1, len(plain)), random.uniform(0, 12)
                expected = plain[: -count - 1 : -1]
                if all(each[2].usable_until_s >= until_s for each in expected):
                    assert ranking.pop(count, until_s) == expected
                    plain = plain[:-count]
                else:
                    assert ranking.pop(count, until_s) is None
            case 3:
                count, until_s = random.randrange(1, 4), random.uniform(0, 12)
                expected = [each for each in reversed(plain) if each[2].usable_until_s >= until_s][:count]
                assert ranking.usable(until_s, count) == expected
        assert list(ranking) == plain
        assert len(ranking) == len(plain)


@given(st.lists(INSTANTS, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_alarms_name_each_row_that_waits_once_its_instant_has_come(instants, random):
    waiting, named, now = {}, [], 0.0
    alarms = Alarms(lambda walk: walk.usable_until_s, waiting)
    for place, at_s in enumerate(instants):
        one = entry(place, 0.0, at_s)
        waiting[one[1]] = one
        alarms.add(one)
        if random.random() < 0.3:
            del waiting[random.choice(list(waiting))]
        if random.random() < 0.3:
            now = random.uniform(0, 13)
            due = alarms.before(now)
            assert sorted(due) == sorted(e for e in waiting.values() if e[2].usable_until_s < now and e not in named)
            named += due


def test_alarms_of_rows_that_have_left_do_not_pile_up():
    waiting = {}
    alarms = Alarms(lambda walk: walk.usable_until_s, waiting)
    for place in range(10 * ALARM_SLACK):
        one = entry(place, 0.0)
        waiting[one[1]] = one
        alarms.add(one)
        if len(waiting) > 8:
            del waiting[next(iter(waiting))]
        assert len(alarms) <= ALARM_SLACK + 2 * 9 + 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=30), st.integers(0, 40), st.integers(1, 8))
def test_what_stage_0_gives_back_first_is_what_a_search_through_its_batches_finds(batches, now, a):
    under_way, running, sent_s = UnderWay(), [], 0.0
    for rows, after_s in batches:
        sent_s += after_s
        batch = Batch(0, [Walk(request())] * rows, 1, sent_s, 1e9)
        under_way.sent(batch)
        running.append(batch)
        if len(running) > 6:
            gone = running.pop(rows)
            under_way.ended(gone)
        instant, predict = sent_s + now, lambda rows: a * 0.7 + rows * 0.3
        exact = min(abs(each.started_s + predict(each.rows) - instant) for each in running)
        assert under_way.stage0_next_s(instant, predict) == exact
        for enough_s in (0.0, 2.0, 5.0):
            told = under_way.stage0_next_s(instant, predict, enough_s)
            assert told == exact or exact <= told <= enough_s


class Twins(RuleBasedStateMachine):
    """The queue and a plain one are given the same rows and asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.plain = StageQueue(), PlainQueue()
        self.rows: dict[int, tuple[Walk, Walk]] = {}
        self.tag = 0
        self.now = 0.0

    def come(self, key, tenant, priority, left, protected):
        made = []
        for queue in (self.scaled, self.plain):
            walk = Walk(request(self.tag, self.now, deadline_s=self.now + left * MS, priority=priority, tenant=tenant))
            queue.push(walk, key / 8 + PROTECTED * protected)
            made.append(walk)
        self.rows[self.tag] = (made[0], made[1])
        self.tag += 1

    def same(self, scaled, plain):
        found, expected = ([walk.request.tag for walk in walks] for walks in (scaled, plain))
        assert found == expected
        for tag in found:
            del self.rows[tag]

    @rule(
        key=st.integers(0, 6),
        tenant=st.sampled_from(["", "", "a", "b"]),
        priority=st.integers(1, 2),
        left=st.sampled_from([2, 20, 40, 400]),
        protected=st.booleans(),
    )
    def push(self, key, tenant, priority, left, protected):
        self.come(key, tenant, priority, left, protected)

    @rule(count=st.sampled_from([3, 30, 700]), seed=st.integers(0, 9), tenants=st.sampled_from(["a", "ab", "abc"]))
    def push_many(self, count, seed, tenants):
        random = Random(seed)
        for _ in range(count):
            self.come(
                random.randrange(64), random.choice(tenants), random.choice([1, 2]), random.randrange(2, 400), seed > 8
            )

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data):
        for walk, queue in zip(self.rows.pop(data.draw(st.sampled_from(list(self.rows)))), (self.scaled, self.plain)):  # noqa: B905
            queue.remove(walk)

    @rule(ms=st.sampled_from([1, 7, 50, 150]))
    def wait(self, ms):
        self.now += ms * MS

    @rule(limit=st.sampled_from([0, 2, 20, 600]))
    def evict(self, limit):
        self.same(self.scaled.evict(limit), self.plain.evict(limit))

    @rule(window=st.sampled_from([0, 5, 60, 200]))
    def leave(self, window):
        self.same(self.scaled.leave(self.now, window * MS), self.plain.leave(self.now, window * MS))

    @rule(
        size=st.sampled_from([1, 4, 8, 32]),
        a=st.sampled_from([1, 16]),
        b=st.sampled_from([0, 1, 8]),
        times=st.integers(1, 9),
    )
    def take(self, size, a, b, times):
        def predict(rows: int) -> float:
            return (a + b * rows) * MS

        for _ in range(times):
            (batch, late), (expected, expected_late) = (
                queue.take(self.now, size, predict) for queue in (self.scaled, self.plain)
            )
            self.same(batch, expected)
            self.same(late, expected_late)
            assert len(self.scaled) == len(self.plain)
            assert self.scaled.protected == self.plain.protected

    @rule()
    def drain(self):
        self.same(self.scaled.drain(), self.plain.drain())


class TestTwins(Twins.TestCase):
    """Runs the machine."""

    settings = settings(max_examples=150, stateful_step_count=40)
