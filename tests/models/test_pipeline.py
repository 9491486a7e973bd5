"""Batches on a GPU, over a device without one: every batch gets its own rows' logits, in whatever order the device works."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cascade.models.fake_device import FakeDevice
from cascade.models.pipeline import Pipeline, Row, buckets_up_to

SOON_S = 20.0
POISON = 13.0
BUCKETS = (1, 2, 4, 8)


class Doubling:
    """Logits (x, 2 x), and the sizes and padding that it saw."""

    def __init__(self):
        self.sizes = []
        self.seen = []

    def __call__(self, x, keep):
        self.sizes.append(len(x))
        self.seen.append(torch.cat([x[:, 0], keep.float()]).tolist())
        if (x == POISON).any():
            raise ValueError("poison")
        return torch.stack([x[:, 0], 2 * x[:, 0]], dim=1) * keep[:, None]


def pipeline(device=None, network=None, **changes):
    rows = {"x": Row((3,), np.dtype(np.float32)), "keep": Row((), np.dtype(np.bool_))}
    arguments = {"buckets": BUCKETS, "in_flight": 2, **changes}
    return Pipeline(device or FakeDevice(), network or Doubling(), rows, 2, **arguments)


def batch(*values):
    x = np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)
    return {"x": x, "keep": np.ones(len(values), bool)}


def logits(*values):
    return [[value, 2 * value] for value in values]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_batches_in_flight_come_out_in_order_with_their_own_rows(seed, in_flight, graphs):
    random = np.random.default_rng(seed)
    batches = [random.integers(20, 1000, size=random.integers(1, 9)).tolist() for _ in range(25)]
    line = pipeline(FakeDevice(seed), in_flight=in_flight, graphs=graphs)
    waits, got = [], []
    for values in batches:
        waits.append(line.begin(batch(*values)))
        if len(waits) == in_flight:
            got.append(waits.pop(0)().logits.tolist())
    got += [wait().logits.tolist() for wait in waits]
    assert got == [logits(*values) for values in batches]


def test_a_batch_is_padded_with_zeros_to_the_next_bucket_and_answered_without_them():
    network = Doubling()
    line = pipeline(network=network, graphs=False)
    line.begin(batch(*range(1, 9)))()  # fills the memory that the next ones find
    line.begin(batch(9))()
    network.sizes.clear()
    network.seen.clear()
    assert line.begin(batch(5, 6, 7))().logits.tolist() == logits(5, 6, 7)
    assert network.sizes == [4]
    assert network.seen == [[5, 6, 7, 0, 1, 1, 1, 0]]


def test_the_default_buckets_are_the_powers_of_two_and_the_largest_batch():
    assert [buckets_up_to(rows) for rows in (1, 2, 3, 12, 16)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8, 12),
        (1, 2, 4, 8, 16),
    ]


def test_what_was_handed_over_may_be_changed_at_once():
    line, inputs = pipeline(), batch(1, 2)
    wait = line.begin(inputs)
    inputs["x"][:] = 99
    assert wait().logits.tolist() == logits(1, 2)


def test_an_answer_is_not_changed_by_later_batches():
    line = pipeline(in_flight=1)
    first = line.begin(batch(1, 2))().logits
    line.begin(batch(3, 4))()
    assert first.tolist() == logits(1, 2)


def test_views_on_received_bytes_and_slices_are_taken():
    line, whole = pipeline(), batch(1, 2, 3, 4)
    frozen = np.frombuffer(b"\0" + whole["x"].tobytes(), np.float32, offset=1).reshape(4, 3)
    inputs = {"x": frozen[1::2], "keep": whole["keep"][1::2]}
    assert not inputs["x"].flags.aligned
    assert line.begin(inputs)().logits.tolist() == logits(2, 4)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"x": np.zeros((2, 3), np.float64)}, False),
        ({"x": np.zeros((2, 4), np.float32)}, False),
        ({"x": np.zeros((9, 3), np.float32)}, False),
        ({"x": np.zeros((0, 3), np.float32)}, False),
        ({"other": np.zeros(2)}, True),
    ],
)
def test_only_batches_of_the_declared_rows_fit(change, fits):
    assert pipeline().fits({**batch(1, 2), **change}) is fits
    assert not pipeline().fits({"x": batch(1)["x"]})


# -- graphs ------------------------------------------------------------------------------------------------------------


def test_each_slot_has_a_graph_of_each_bucket_and_batches_run_as_graphs():
    device = FakeDevice()
    line = pipeline(device, in_flight=2)
    assert device.log.count("capture") == 2 * len(BUCKETS)
    device.log.clear()
    line.begin(batch(1, 2, 3))()
    assert line.graphed
    assert device.log == ["copy", "copy", "launch", "copy", "replay"]


def test_the_network_runs_before_it_is_recorded_the_largest_bucket_first():
    network = Doubling()
    pipeline(network=network)
    assert list(dict.fromkeys(network.sizes)) == [8, 4, 2, 1]
    assert min(network.sizes.count(size) for size in BUCKETS) >= 3


@pytest.mark.parametrize("recorded", [0, 1, 3])
def test_a_network_that_cannot_be_recorded_is_run_without_graphs_and_the_log_says_so(caplog, recorded):
    device = FakeDevice(captures=recorded)
    line = pipeline(device)
    assert not line.graphed
    assert "cannot be recorded" in caplog.text
    assert line.begin(batch(1, 2, 3))().logits.tolist() == logits(1, 2, 3)
    assert "replay" not in device.log


def test_without_graphs_nothing_is_recorded(caplog):
    device = FakeDevice()
    assert not pipeline(device, graphs=False).graphed
    assert "capture" not in device.log
    assert not caplog.records


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_that_fails_fails_alone_and_leaves_its_place_to_others(seed):
    line = pipeline(FakeDevice(seed))
    for _ in range(5):
        bad, good = line.begin(batch(1, POISON)), line.begin(batch(2, 3))
        with pytest.raises(ValueError, match="poison"):
            bad()
        assert good().logits.tolist() == logits(2, 3)
    assert not line.lost


def test_a_batch_that_cannot_even_begin_leaves_its_place_to_others():
    line = pipeline(in_flight=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="could not broadcast"):
            line.begin({**batch(1, 2), "keep": np.ones(3, bool)})
    assert line.begin(batch(4))().logits.tolist() == logits(4)


def test_a_device_that_fails_for_good_is_known_as_lost():
    warm_ups = 3 * len(BUCKETS)
    line = pipeline(FakeDevice(lost_after=warm_ups + 1))
    assert line.begin(batch(1))().logits.tolist() == logits(1)
    assert not line.lost
    for _ in range(3):
        with pytest.raises(RuntimeError, match="lost"):
            line.begin(batch(2))()
        assert line.lost


# -- several threads ---------------------------------------------------------------------------------------------------


def test_more_batches_than_may_be_in_flight_wait_for_a_place():
    line = pipeline(in_flight=2)
    first, second = line.begin(batch(1)), line.begin(batch(2))
    with ThreadPoolExecutor(1) as thread:
        third = thread.submit(line.begin, batch(3))
        assert not third.done()
        assert first().logits.tolist() == logits(1)
        assert third.result(SOON_S)().logits.tolist() == logits(3)
    assert second().logits.tolist() == logits(2)


def test_one_thread_may_begin_while_another_one_waits():
    line, waits, enough = pipeline(FakeDevice(7), in_flight=3), [], threading.Semaphore(0)
    values = list(range(100, 300))

    def begin():
        for value in values:
            waits.append(line.begin(batch(value)))
            enough.release()

    with ThreadPoolExecutor(1) as thread:
        begun = thread.submit(begin)
        got = []
        for place in range(len(values)):
            assert enough.acquire(timeout=SOON_S)
            got += waits[place]().logits[:, 0].tolist()
        begun.result(SOON_S)
    assert got == values


def test_the_seconds_of_overlapping_batches_count_once():
    now = [10.0]
    line = pipeline(in_flight=2, clock=lambda: now[0])

    def at(second, do):
        now[0] = second
        return do()

    first = at(12, lambda: line.begin(batch(1)))
    second = at(13, lambda: line.begin(batch(2)))
    seconds = [at(15, first).run_s, at(17, second).run_s]
    third = at(20, lambda: line.begin(batch(3)))
    assert [*seconds, at(21, third).run_s] == [3, 2, 1]  # from 12 to 17 and from 20 to 21
