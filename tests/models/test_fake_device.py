"""The device that stands in for a GPU: it lets through what streams and events order, and shows what they do not."""

import pytest
import torch

from cascade.models.fake_device import FakeDevice

SEEDS = range(40)


def copied_then_doubled(device, ordered):
    """A copy on one stream and a kernel on another one that reads it; what the kernel read."""
    copies, compute = device.stream(), device.stream()
    host, memory, out = torch.ones(2), device.empty((2,), torch.float32), device.empty((2,), torch.float32)
    device.copy(copies, memory, host)
    if ordered:
        device.wait(compute, device.record(copies))
    device.launch(compute, lambda: out.copy_(2 * memory))
    done = device.record(compute)
    assert out.tolist() == [0, 0]  # nothing happens before somebody waits
    done.synchronize()
    return out.tolist()


def test_what_an_event_orders_happens_in_that_order():
    assert all(copied_then_doubled(FakeDevice(seed), ordered=True) == [2, 2] for seed in SEEDS)


def test_what_nothing_orders_goes_wrong_sooner_or_later():
    assert [0, 0] in [copied_then_doubled(FakeDevice(seed), ordered=False) for seed in SEEDS]


def test_memory_that_is_used_again_too_early_shows():
    device = FakeDevice()
    stream, host, memory = device.stream(), torch.ones(2), device.empty((2,), torch.float32)
    device.copy(stream, memory, host)
    host.zero_()
    device.record(stream).synchronize()
    assert memory.tolist() == [0, 0]


def test_a_failure_comes_out_at_the_next_event_of_its_stream_and_of_those_that_wait_for_it_and_only_there():
    device = FakeDevice()
    first, second = device.stream(), device.stream()

    def fail():
        raise ValueError("poison")

    device.launch(first, fail)
    failed = device.record(first)
    device.launch(first, lambda: None)
    later = device.record(first)
    device.wait(second, failed)
    behind = device.record(second)
    later.synchronize()
    for event in (failed, behind):
        with pytest.raises(ValueError, match="poison"):
            event.synchronize()


def test_streams_that_wait_for_each_other_are_found_out():
    device = FakeDevice()
    one, other = device.stream(), device.stream()
    never = device.record(FakeDevice().stream())
    device.wait(one, never)
    device.wait(other, device.record(one))
    with pytest.raises(RuntimeError, match="wait for each other"):
        device.finish()
