"""A loop that is always behind shows its lag; one that paused once and caught up does not."""

import asyncio
import time

import pytest

from cascade.serving.lag import BEAT_S, BEATS, LoopLag


@pytest.mark.looptime(noop_cycles=0)
async def test_an_idle_loop_has_no_lag():
    loop = asyncio.get_running_loop()
    lag = LoopLag(loop.time)
    await asyncio.sleep(1.0)
    assert lag.seconds == pytest.approx(0.0, abs=1e-6)
    lag.close()


async def beats(lag: LoopLag, count: int) -> None:
    """Wait until so many beats have been taken down."""
    seen, last = 0, lag._due_s
    while seen < count:
        await asyncio.sleep(0)
        if lag._due_s != last:
            seen, last = seen + 1, lag._due_s


async def test_work_that_never_ends_shows_as_at_least_its_own_length():
    lag = LoopLag(time.perf_counter)
    stop = False

    async def busy() -> None:
        while not stop:
            time.sleep(2 * BEAT_S)
            await asyncio.sleep(0)

    task = asyncio.create_task(busy())
    await beats(lag, BEATS)
    assert lag.seconds >= BEAT_S
    stop = True
    await task
    lag.close()


async def test_a_single_pause_is_no_lag():
    lag = LoopLag(time.perf_counter)
    await beats(lag, BEATS)
    before = lag.seconds
    time.sleep(10 * BEAT_S)
    await beats(lag, 1)
    assert max(lag._recent) >= 5 * BEAT_S
    assert lag.seconds <= before + 5 * BEAT_S
    lag.close()


async def test_a_closed_meter_beats_no_more():
    lag = LoopLag(time.perf_counter)
    lag.close()
    due = lag._due_s
    await asyncio.sleep(3 * BEAT_S)
    assert lag._due_s == due
