"""The queue of one stage: order, eviction, and batches that can be back in time."""

from collections.abc import Sequence

import pytest
from builders import request
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.queue import StageQueue
from cascade.policy.walk import Walk


def walk(tag: object, usable_until_s: float = 100.0) -> Walk:
    return Walk(request(tag, deadline_s=usable_until_s))


def filled(*rows: tuple[object, float] | tuple[object, float, float]) -> StageQueue:
    """A queue of (tag, value) or (tag, value, usable until)."""
    queue = StageQueue()
    for tag, value, *until in rows:
        queue.push(walk(tag, *until), value)
    return queue


def tags(walks: Sequence[Walk]) -> list[object]:
    return [one.request.tag for one in walks]


def one_second_a_row(rows: int) -> float:
    return float(rows)


def test_the_most_valuable_row_goes_first():
    queue = filled(("low", 0.1), ("high", 0.9), ("middle", 0.5))
    assert tags(queue.drain()) == ["high", "middle", "low"]
    assert len(queue) == 0


def test_among_equals_the_first_come_is_the_first_taken_and_the_last_evicted():
    queue = filled(("a", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.5))
    assert tags(queue.evict(3)) == ["d"]
    assert tags(queue.take(0.0, 2, one_second_a_row)[0]) == ["a", "b"]
    assert tags(queue.drain()) == ["c"]


def test_eviction_takes_the_least_valuable_and_only_what_is_too_much():
    queue = filled(("a", 0.3), ("b", 0.1), ("c", 0.2))
    assert queue.evict(3) == []
    assert tags(queue.evict(1)) == ["b", "c"]
    assert tags(queue.evict(0)) == ["a"]
    assert queue.evict(0) == []


def test_a_row_can_be_taken_out_from_anywhere():
    queue = StageQueue()
    rows = [walk(i) for i in range(5)]
    for row in rows:
        queue.push(row, 0.5)
    queue.remove(rows[3])
    queue.remove(rows[0])
    assert tags(queue.drain()) == [1, 2, 4]


def test_an_empty_queue_gives_no_batch():
    assert StageQueue().take(0.0, 8, one_second_a_row) == ([], [])


def test_a_batch_that_is_back_in_time_is_the_most_valuable_rows():
    queue = filled(("a", 0.3), ("b", 0.9), ("c", 0.6))
    assert tags(queue.take(0.0, 2, one_second_a_row)[0]) == ["b", "c"]
    assert len(queue) == 1


def test_a_batch_is_late_by_its_own_size_and_not_by_that_of_a_full_one():
    # Eight rows would take eight seconds; the three that are there take three.
    queue = filled(("a", 0.9, 3.0), ("b", 0.8, 3.0), ("c", 0.7, 3.0))
    assert tags(queue.take(0.0, 8, one_second_a_row)[0]) == ["a", "b", "c"]


def test_the_size_is_that_of_the_rows_that_can_still_be_in_time():
    # Beside them waits one that is late already: it must not make the others' batch look like one of four.
    queue = filled(("a", 0.9, 12.0), ("b", 0.8, 12.0), ("c", 0.7, 12.0), ("late", 0.95, 0.5))
    batch, late = queue.take(0.0, 8, lambda rows: 9.0 + rows)
    assert (tags(batch), tags(late)) == (["a", "b", "c"], ["late"])


def test_a_smaller_batch_keeps_a_valuable_urgent_row():
    queue = filled(("urgent", 10.0, 1.5), ("b", 0.2), ("c", 0.2), ("d", 0.2))
    batch, late = queue.take(0.0, 4, one_second_a_row)
    assert (tags(batch), late) == (["urgent"], [])
    assert len(queue) == 3


def test_a_larger_batch_leaves_an_urgent_row_behind_that_is_worth_little():
    queue = filled(("urgent", 0.1, 6.5), ("b", 0.9), ("c", 0.9), ("d", 0.9))
    batch, late = queue.take(0.0, 4, lambda rows: 6.0 + rows / 4)
    assert (tags(batch), late) == (["b", "c", "d"], [])
    assert tags(queue.drain()) == ["urgent"]


def test_rows_of_no_value_still_make_as_large_a_batch_as_can_be_in_time():
    queue = filled(*((i, 0.0, 12.0) for i in range(8)))
    assert tags(queue.take(0.0, 8, lambda rows: 9.0 + rows)[0]) == [0, 1]


def test_among_rows_of_no_value_the_batch_that_serves_most_of_them_a_second_wins():
    # All eight together would be in time for the last of them only; four are in time together.
    queue = filled(*((i, 0.0, 13.0) for i in range(7)), ("patient", 0.0))
    assert tags(queue.take(0.0, 8, lambda rows: 9.0 + rows)[0]) == [0, 1, 2, 3]


def test_rows_that_no_batch_could_bring_back_are_handed_out_as_late():
    queue = filled(("late", 0.9, 0.5), ("later", 0.1, 0.25))
    batch, late = queue.take(0.0, 4, one_second_a_row)
    assert (batch, set(tags(late)), len(queue)) == ([], {"late", "later"}, 0)


def test_a_row_that_can_be_back_at_the_very_last_instant_is_in_time():
    assert tags(filled(("a", 0.5, 11.0)).take(10.0, 4, one_second_a_row)[0]) == ["a"]


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=24)


@given(ROWS, st.integers(1, 9), st.integers(0, 4), st.integers(1, 3), st.integers(0, 8))
def test_take_loses_no_row_and_every_batch_is_in_time_at_its_size(rows, size, a, b, limit):
    queue = StageQueue()
    walks = {}
    for tag, (value, until) in enumerate(rows):
        walks[tag] = walk(tag, float(until))
        queue.push(walks[tag], value / 4)

    def predict(count: int) -> float:
        return float(a + b * count)

    out = tags(queue.evict(limit + size))
    assert len(queue) <= limit + size
    while len(queue):
        batch, late = queue.take(1.0, size, predict)
        assert batch or late
        assert len(batch) <= size
        values = [row.place for row in batch]
        assert values == sorted(values, reverse=True)
        assert all(row.usable_until_s >= 1.0 + predict(len(batch)) for row in batch)
        assert all(row.usable_until_s < 1.0 + predict(1) for row in late)
        out += tags(batch) + tags(late)
    assert sorted(out) == sorted(walks)


@given(ROWS, st.data())
def test_the_order_holds_after_any_removals(rows, data):
    queue = StageQueue()
    walks = [walk(tag) for tag in range(len(rows))]
    for row, (value, _) in zip(walks, rows, strict=True):
        queue.push(row, value / 4)
    removed = data.draw(st.sets(st.sampled_from(range(len(rows))))) if rows else set()
    for tag in removed:
        queue.remove(walks[tag])
    expected = sorted((tag for tag in range(len(rows)) if tag not in removed), key=lambda tag: (-rows[tag][0], tag))
    assert tags(queue.drain()) == expected


def test_removing_a_row_that_is_not_there_is_a_mistake():
    queue = filled(("a", 0.5), ("b", 0.7))
    with pytest.raises(AssertionError):
        queue.remove(walk("c"))
