"""Queueing formulas against worked values and against a simulation of batch service."""

from heapq import heapify, heappop, heappush

import numpy as np
import pytest

from cascade.calibration.queueing import (
    Delay,
    batch_capacity,
    batch_latency,
    batched_delay,
    erlang_c,
    mixture_quantile,
    wait_quantile,
    wait_tail,
)
from cascade.errors import ConfigError


def simulated_latencies(
    rate: float, a_s: float, b_s: float, most: int, servers: int, calls: int = 1, arrivals: int = 20_000, seed: int = 0
) -> np.ndarray:
    """Latencies of Poisson arrivals at servers with ``calls`` places each: a place that falls free takes all that waits."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, arrivals))
    latencies = np.empty(arrivals)
    places = [(0.0, server) for server in range(servers) for _ in range(calls)]
    heapify(places)
    busy_until = [0.0] * servers
    first = 0
    while first < arrivals:
        start = max(places[0][0], times[first])
        free = []
        while places and places[0][0] <= start:
            free.append(heappop(places))
        taken = min(free, key=lambda place: busy_until[place[1]])
        free.remove(taken)
        for place in free:
            heappush(places, place)
        last = min(int(np.searchsorted(times, start, side="right")), first + most)
        done = max(start, busy_until[taken[1]]) + a_s + b_s * (last - first)
        latencies[first:last] = done - times[first:last]
        busy_until[taken[1]] = done
        heappush(places, (done, taken[1]))
        first = last
    return latencies[arrivals // 10 :]


def test_erlang_c_has_the_worked_value():
    assert erlang_c(4, 3.0) == pytest.approx(0.509434, abs=5e-7)


def test_with_one_server_an_arrival_waits_with_the_probability_that_it_is_busy():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)


def test_everything_waits_at_saturation():
    assert erlang_c(3, 3.0) == erlang_c(3, 5.0) == 1.0
    assert wait_tail(10.0, 3.0, 1.0, 3) == 1.0
    assert wait_quantile(0.5, 3.0, 1.0, 3) == np.inf


def test_the_wait_has_the_worked_quantiles():
    assert wait_quantile(0.95, 3.0, 1.0, 4) == pytest.approx(2.321277, abs=5e-7)
    # Deterministic service, Poisson arrivals: half the variability.
    assert wait_quantile(0.95, 3.0, 1.0, 4, variability=0.5) == pytest.approx(1.161, abs=5e-4)
    assert wait_quantile(0.99, 3.0, 1.0, 4, variability=0.5) == pytest.approx(1.965, abs=5e-4)
    assert wait_quantile(0.95, 3.6, 1.0, 4, variability=0.5) == pytest.approx(3.446, abs=5e-4)


def test_the_tail_at_a_quantile_is_what_lies_beyond_it():
    for variability in (0.5, 1.0, 2.0):
        wait = wait_quantile(0.9, 3.0, 1.0, 4, variability)
        assert wait_tail(wait, 3.0, 1.0, 4, variability) == pytest.approx(0.1)


def test_a_light_load_waits_for_nothing_at_low_levels():
    assert wait_quantile(0.5, 0.1, 1.0, 4) == 0.0


@pytest.mark.parametrize(("rate", "worked_ms"), [(100, 13.91), (300, 18.41), (500, 25.67), (700, 42.65), (900, 127.6)])
def test_batch_latency_has_the_worked_values(rate, worked_ms):
    assert batch_latency(rate, 0.008, 0.001) * 1e3 == pytest.approx(worked_ms, abs=0.005 if rate < 900 else 0.05)


def test_batch_latency_is_endless_where_no_batch_keeps_up():
    assert batch_latency(1000, 0.008, 0.001) == np.inf


@pytest.mark.parametrize(("rate", "tolerance"), [(300, 0.02), (500, 0.02), (700, 0.04)])
def test_batch_latency_agrees_with_a_simulation(rate, tolerance):
    # 18,000 latencies each, seed 0; correlated, so a few percent is what they resolve.
    assert simulated_latencies(rate, 0.008, 0.001, 10**6, 1).mean() == pytest.approx(
        batch_latency(rate, 0.008, 0.001), rel=tolerance
    )


def test_batch_latency_bounds_a_light_load():
    simulated = simulated_latencies(100, 0.008, 0.001, 10**6, 1).mean()
    assert simulated < batch_latency(100, 0.008, 0.001) < 1.1 * simulated


def test_full_batches_give_the_capacity():
    assert batch_capacity(0.008, 0.001, 32) == pytest.approx(800.0)
    assert batch_capacity(0.008, 0.001, 32, servers=3) == pytest.approx(2400.0)


@pytest.mark.parametrize("servers", [1, 4])
@pytest.mark.parametrize("most", [2, 8, 32])
@pytest.mark.parametrize("calls", [1, 2])
def test_the_estimated_99th_percentile_stays_near_a_simulation(servers, most, calls):
    # Three loads each; 7,200 latencies, seed 0.
    capacity = batch_capacity(0.008, 0.001, most, servers)
    for load in (0.2, 0.6, 0.95):
        simulated = simulated_latencies(load * capacity, 0.008, 0.001, most, servers, calls, arrivals=8000)
        estimate = batched_delay(load * capacity, 0.008, 0.001, most, servers, calls)
        assert estimate is not None
        assert 0.8 < estimate.quantile(0.99) / np.quantile(simulated, 0.99) < 1.65


def test_a_second_batch_on_a_server_adds_latency():
    one, two = (batched_delay(400, 0.008, 0.001, 32, 1, calls) for calls in (1, 2))
    assert one is not None
    assert two is not None
    simulated = [simulated_latencies(400, 0.008, 0.001, 32, 1, calls).mean() for calls in (1, 2)]
    assert two.mean_s / one.mean_s == pytest.approx(simulated[1] / simulated[0], rel=0.1)


def test_no_delay_is_estimated_at_saturation():
    assert batched_delay(800, 0.008, 0.001, 32, 1) is None


def test_a_mixture_lies_between_its_parts():
    fast, slow = Delay(0.01, 1e-6), Delay(0.1, 1e-4)
    assert mixture_quantile(0.99, [1.0, 0.0], [fast, slow]) == pytest.approx(fast.quantile(0.99))
    assert mixture_quantile(0.5, [0.9, 0.1], [fast, slow]) < 0.02
    assert mixture_quantile(0.99, [0.9, 0.1], [fast, slow]) == pytest.approx(slow.quantile(0.9), rel=1e-3)


def test_fixed_delays_have_quantiles_at_their_atoms():
    assert mixture_quantile(0.9, [0.8, 0.2], [Delay(1.0), Delay(2.0)]) == 2.0
    assert mixture_quantile(0.8, [0.8, 0.2], [Delay(1.0), Delay(2.0)]) == 1.0


def test_shares_need_not_sum_to_one():
    parts = [Delay(0.01, 1e-6), Delay(0.1, 1e-4)]
    assert mixture_quantile(0.95, [0.45, 0.05], parts) == pytest.approx(mixture_quantile(0.95, [0.9, 0.1], parts))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: erlang_c(0, 1.0),
        lambda: erlang_c(2, -1.0),
        lambda: wait_quantile(1.0, 1.0, 1.0, 2),
        lambda: wait_tail(1.0, -1.0, 1.0, 2),
        lambda: batch_latency(1.0, -0.1, 0.2),
        lambda: batch_latency(1.0, 0.0, 0.0),
        lambda: mixture_quantile(0.5, [0.0], [Delay(1.0)]),
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
