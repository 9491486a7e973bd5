"""What is kept for later stages: handed out once, in any order, and dropped when it is old, unwanted or too much."""

import numpy as np
import torch
from hypothesis import given, settings
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


def test_rows_of_several_batches_are_handed_out_in_the_order_asked_for_and_only_once():
    kept, _ = store()
    first, second = kept.keep(state(1, 2, 3)), kept.keep(state(4, 5))
    asked = np.array([second[1], first[0], first[2], second[0]])
    found_state, found = kept.take(asked)
    assert found.all()
    assert found_state["features"][:, 0].tolist() == [5, 1, 3, 4]
    assert kept.rows == 1
    again, found = kept.take(asked)
    assert again is None
    assert not found.any()


def test_rows_that_differ_in_shape_are_padded():
    kept, _ = store()
    slots = np.concatenate([kept.keep(state(1, width=1)), kept.keep(state(2, width=3))])
    found_state, _ = kept.take(slots)
    assert found_state["features"].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert found_state["lengths"].tolist() == [1, 3]


def test_what_is_lost_is_said_and_the_others_keep_their_order():
    kept, _ = store()
    slots = kept.keep(state(1, 2, 3))
    kept.free(slots[1:2])
    found_state, found = kept.take(slots[::-1])
    assert found.tolist() == [True, False, True]
    assert found_state["features"][:, 0].tolist() == [3, 1]


def test_the_oldest_is_dropped_when_there_is_too_much_and_when_it_is_old():
    one = sum(tensor.numel() * tensor.element_size() for tensor in state(1).values())
    kept, clock = store(max_bytes=2 * one, max_age_s=10.0)
    slots = [kept.keep(state(value)) for value in (1, 2, 3)]
    assert (kept.rows, kept.dropped, kept.bytes) == (2, 1, 2 * one)
    assert kept.take(slots[0])[0] is None
    clock.now = 11.0
    kept.keep(state(4))
    assert (kept.rows, kept.dropped) == (1, 3)


def test_a_batch_of_which_little_is_wanted_gives_its_memory_back():
    kept, _ = store()
    slots = kept.keep(state(*range(10)))
    whole = kept.bytes
    kept.free(slots[:6])
    assert kept.bytes < whole / 2
    found_state, _ = kept.take(slots[6:])
    assert found_state["features"][:, 0].tolist() == [6, 7, 8, 9]
    assert (kept.bytes, kept.rows) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_asked_for_every_row_is_its_own(data):
    kept, _ = store()
    alive: dict[int, int] = {}
    value = 0
    for _ in range(data.draw(st.integers(1, 8))):
        rows = data.draw(st.integers(1, 6))
        slots = kept.keep(state(*(float(value + k) for k in range(rows))))
        alive |= {int(slot): value + k for k, slot in enumerate(slots)}
        value += rows
        gone = data.draw(st.lists(st.sampled_from(sorted(alive)), unique=True)) if alive else []
        kept.free(np.array(gone, dtype=np.int64))
        for slot in gone:
            del alive[slot]
        asked = data.draw(st.lists(st.sampled_from(sorted(alive)), unique=True)) if alive else []
        found_state, found = kept.take(np.array(asked, dtype=np.int64))
        assert found.all()
        assert ([] if found_state is None else found_state["features"][:, 0].tolist()) == [alive[slot] for slot in asked]
        for slot in asked:
            del alive[slot]
        assert kept.rows == len(alive)
    kept.free(np.array(sorted(alive), dtype=np.int64))
    assert (kept.bytes, kept.rows) == (0, 0)
