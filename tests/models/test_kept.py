"""What is kept for later stages: handed out once, in any order, and dropped when it is old, unwanted or too much."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cascade.models.kept import KeptStates


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def state(*values: float, width: int = 2) -> dict[str, torch.Tensor]:
    return {"features": torch.tensor(values)[:, None].repeat(1, width), "lengths": torch.full((len(values),), width)}


def store(max_bytes: int = 1 << 20, max_age_s: float = 10.0) -> tuple[KeptStates, Clock]:
    clock = Clock()
    return KeptStates(max_bytes, max_age_s, clock), clock


def in_order(found_state, places) -> dict[int, float]:
    """First feature of every row that was found, by its place among those that were asked for."""
    assert len(found_state["features"]) == len(places)
    return dict(zip(places.tolist(), found_state["features"][:, 0].tolist(), strict=True))


def test_rows_of_several_batches_are_handed_out_once_and_it_is_said_which_is_which():
    kept, _ = store()
    first, second = kept.keep(state(1, 2, 3)), kept.keep(state(4, 5))
    asked = np.array([second[1], first[0], first[2], second[0]])
    assert in_order(*kept.take(asked)) == {0: 5, 1: 1, 2: 3, 3: 4}
    assert kept.rows == 1
    again, found = kept.take(asked)
    assert again is None
    assert not len(found)


def test_rows_that_differ_in_shape_are_padded():
    kept, _ = store()
    slots = np.concatenate([kept.keep(state(1, width=1)), kept.keep(state(2, width=3))])
    found_state, _ = kept.take(slots)
    assert found_state["features"].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert found_state["lengths"].tolist() == [1, 3]


def test_what_is_lost_is_not_among_them():
    kept, _ = store()
    slots = kept.keep(state(1, 2, 3))
    kept.free(slots[1:2])
    assert in_order(*kept.take(slots[::-1])) == {0: 3, 2: 1}


def test_the_oldest_is_dropped_when_there_is_too_much_and_when_it_is_old():
    one = sum(tensor.numel() * tensor.element_size() for tensor in state(1).values())
    kept, clock = store(max_bytes=2 * one, max_age_s=10.0)
    slots = [kept.keep(state(value)) for value in (1, 2, 3)]
    assert (kept.rows, kept.dropped, kept.bytes) == (2, 1, 2 * one)
    assert kept.take(slots[0])[0] is None
    clock.now = 11.0
    kept.keep(state(4))
    assert (kept.rows, kept.dropped) == (1, 3)


def test_where_memory_runs_short_a_batch_of_which_little_is_wanted_gives_it_back():
    one = sum(tensor.numel() * tensor.element_size() for tensor in state(1).values())
    kept, _ = store(max_bytes=20 * one)
    slots = kept.keep(state(*range(10)))
    kept.free(slots[:6])
    assert kept.bytes == 10 * one
    others = kept.keep(state(*range(10, 20)))
    assert (kept.bytes, kept.rows, kept.dropped) == (14 * one, 14, 0)
    assert in_order(*kept.take(slots[6:])) == {0: 6, 1: 7, 2: 8, 3: 9}
    kept.free(others)
    assert (kept.bytes, kept.rows) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_asked_for_every_row_is_its_own(data):
    kept, _ = store(max_bytes=data.draw(st.sampled_from([1 << 20, 1500])))
    alive: dict[int, int] = {}
    value = 0
    for _ in range(data.draw(st.integers(1, 8))):
        rows = data.draw(st.integers(1, 6))
        slots = kept.keep(state(*(float(value + k) for k in range(rows))))
        assume(not kept.dropped)
        alive |= {int(slot): value + k for k, slot in enumerate(slots)}
        value += rows
        gone = data.draw(st.lists(st.sampled_from(sorted(alive)), unique=True)) if alive else []
        kept.free(np.array(gone, dtype=np.int64))
        for slot in gone:
            del alive[slot]
        asked = data.draw(st.lists(st.sampled_from(sorted(alive)), unique=True)) if alive else []
        found = kept.take(np.array(asked, dtype=np.int64))
        assert (in_order(*found) if asked else {}) == {place: alive[slot] for place, slot in enumerate(asked)}
        for slot in asked:
            del alive[slot]
        assert kept.rows == len(alive)
    kept.free(np.array(sorted(alive), dtype=np.int64))
    assert (kept.bytes, kept.rows) == (0, 0)
