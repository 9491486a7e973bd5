"""The simulator, driving the real policy, against queues whose mean latency is known.

Each value is the mean over independent runs; its standard error comes from their spread, and 4 of them are allowed: a right
simulator fails one of the six tests with probability below 0.001 (and, seeds being fixed, it does not).
"""

from math import sqrt

import numpy as np
import pytest
from simulation_cases import mean_latency, one_stage, run

from cascade.simulation.cluster import Noise, StageServers


def latency(servers: StageServers, batch: int, rate: float, runs: int, requests: int, cv: float, noise: Noise):
    """Mean latency and its standard error."""
    means = [
        mean_latency(
            run(
                f"poisson:{rate}",
                seconds=requests / rate,
                servers=[servers],
                batch=[batch],
                table=one_stage(),
                deadline_s=10_000.0,
                cv=cv,
                noise=noise,
                seed=seed,
            )[0]
        )
        for seed in range(runs)
    ]
    return float(np.mean(means)), float(np.std(means, ddof=1) / sqrt(runs))


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_exponential_service_gives_the_latency_of_m_m_1(rho):
    # 1 / (mu - lambda); 12 runs of 3,000 requests
    found, error = latency(StageServers(0.01, 0.0), 1, 100 * rho, 12, 3000, cv=1.0, noise="gamma")
    exact = 1 / (100 - 100 * rho)
    assert abs(found - exact) < 4 * error
    assert error < 0.1 * exact


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_constant_service_gives_the_latency_of_m_d_1(rho):
    # 1 / mu + rho / (2 mu (1 - rho)), Pollaczek and Khinchine; 12 runs of 3,000 requests
    found, error = latency(StageServers(0.01, 0.0), 1, 100 * rho, 12, 3000, cv=0.0, noise="lognormal")
    exact = 0.01 + rho / (2 * 100 * (1 - rho))
    assert abs(found - exact) < 4 * error
    assert error < 0.1 * exact


@pytest.mark.parametrize(("rate", "known_ms", "bound_ms"), [(100, 12.96, 13.91), (500, 25.66, 25.67)])
def test_batches_of_all_that_waits_keep_the_bound_on_mean_latency(rate, known_ms, bound_ms):
    # Service 8 ms + 1 ms a row, no limit on the batch. The bound is Inoue's (Queueing Systems 2021, arXiv 1912.06322):
    # the lesser of (b + a) / (2 (1 - l b)) (1 + 2 l a + (1 - l a) / (1 + l b))
    # and 1.5 a / (1 - l b) + b / 2 (l b + 2) / (1 - l^2 b^2), for a + b n seconds of n rows at l requests a second.
    # 10 runs of 4,000 requests; known_ms are values of another simulation, given to a hundredth.
    found, error = latency(StageServers(0.008, 0.001), 10**6, rate, 10, 4000, cv=0.0, noise="lognormal")
    assert abs(found * 1e3 - known_ms) < 4 * error * 1e3 + 0.005 + 0.002 * known_ms
    assert found * 1e3 < bound_ms + 4 * error * 1e3
