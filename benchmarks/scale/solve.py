"""How long the slow loop and the offline plan take, by stages and classes. Knows a made-up ladder of any number of stages.

Latent difficulty z ~ N(0, 1); stage k is right with probability Phi((M_k - z) / WIDTH) and sees M_k - z with noise, which is
smaller for a dearer stage. What the router knows of a row follows by Bayes, as in `benchmarks.laws.synthetic`.
"""

from time import process_time
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from cascade.calibration.deployment import Deployment, StageInputs
from cascade.calibration.judged import JudgedTable
from cascade.calibration.judging import market_of
from cascade.calibration.plan import PlanSources, make_plan
from cascade.policy.classes import ClassConfig
from cascade.policy.market import Group, Market
from cascade.policy.policy import Policy, StageConfig
from cascade.serving.slow_loop import Control, SlowLoop, StagePlaces

WIDTH = 0.4
STAGES = (3, 5, 10)
CLASSES = (1, 5)
PLAN_ROWS = 5_000
"""Rows of the table that a plan is made from: those of the calibration split that is shipped."""
ACCURACY = (0.6, 0.95)
"""Of the cheapest stage and the dearest."""
LOAD = 8.0
"""Multiple of what the top stage can do: a surcharge on several stages."""


REPLICAS = 100
"""Of every stage. No figure here depends on it, since all of them know a stage only by its rows a second."""
BATCH_S, BATCH_ROWS, GROWTH = 0.002, 32, 2.0
"""Full batch of the first stage, and how much longer that of the next takes."""
REPEATS = 20
"""Of what takes milliseconds, within a round."""


class Solved(NamedTuple):
    """CPU time of one round.

    Attributes:
        stages: stages of the ladder.
        classes: classes, each with a weight and, but for the last, a floor; the offline plan knows none.
        market_ms: to clear the market once.
        slow_loop_ms: a whole round of a router's slow loop, twice a second: replicas, rates, market, prices.
        plan_s: to make the offline plan; 0 where it was not made.
        plan_rates: arrival rates in the plan.
    """

    stages: int
    classes: int
    market_ms: float
    slow_loop_ms: float
    plan_s: float
    plan_rates: int


def ladder(stages: int, rows: int, seed: int = 0) -> JudgedTable:
    """A judged table of so many stages, each four times as dear as the one before."""
    rng = np.random.default_rng(seed)
    accuracy = np.linspace(*ACCURACY, stages)
    margins = norm.ppf(accuracy) * np.hypot(1.0, WIDTH)
    noise = np.geomspace(0.6, 0.3, stages)
    z = rng.standard_normal(rows)
    right = rng.random((rows, stages)) < norm.cdf((margins - z[:, None]) / WIDTH)
    look = z[:, None] + rng.standard_normal((rows, stages)) * noise
    p_correct = np.empty((rows, stages))
    gains = np.zeros((rows, stages, stages))
    for k in range(stages):
        variance = 1.0 / (1.0 + 1.0 / noise[k] ** 2)
        mean = variance * look[:, k] / noise[k] ** 2
        knows = norm.cdf((margins - mean[:, None]) / np.hypot(WIDTH, np.sqrt(variance)))
        p_correct[:, k] = knows[:, k]
        gains[:, k, k + 1 :] = knows[:, k + 1 :] - knows[:, [k]]
    names = tuple(f"s{k}" for k in range(stages))
    return JudgedTable(names, 4.0 ** np.arange(stages), "rows of the first", right, right, p_correct, gains)


def solve(stages: int, classes: int) -> Solved:
    """Time all of it once."""
    judged = ladder(stages, PLAN_ROWS)
    base = [0.0] + [0.002] * (stages - 1)
    market = market_of(judged, base)
    batch_s = [BATCH_S * GROWTH**k for k in range(stages)]
    rows_per_s = [REPLICAS * BATCH_ROWS / seconds for seconds in batch_s]
    rate = LOAD * rows_per_s[-1]
    configs = [ClassConfig(1.0 / (k + 1), (0.2,) * stages if k + 1 < classes else None) for k in range(classes)]
    groups = [Group(rate / classes, config.weight, config.cap) for config in configs]
    market.clear(groups, rows_per_s)  # values of the rows are computed once for each set of open stages
    began = process_time()
    for _ in range(REPEATS):
        market.clear(groups, rows_per_s)
    market_ms = 1e3 * (process_time() - began) / REPEATS
    slow_loop_ms = _slow_loop_ms(market, configs, batch_s, rate)
    plan_s, rates = 0.0, 0
    if classes == 1:
        inputs = (
            StageInputs(name, 0.0, seconds / BATCH_ROWS, BATCH_ROWS, REPLICAS, base_price=price)
            for name, seconds, price in zip(judged.stages, batch_s, base, strict=True)
        )
        deployment = Deployment(tuple(inputs), deadline_s=4 * sum(batch_s))
        began = process_time()
        plan = make_plan(judged, deployment, ladder="made up", sources=PlanSources(rows=judged.rows))
        plan_s, rates = process_time() - began, len(plan.points)
    return Solved(stages, classes, market_ms, slow_loop_ms, plan_s, rates)


def _slow_loop_ms(market: Market, configs: list[ClassConfig], batch_s: list[float], rate: float) -> float:
    """A round of the slow loop, with steady arrivals of all classes."""
    stages = [
        StageConfig(REPLICAS, BATCH_ROWS, 4.0**k, price, 0.0, seconds / BATCH_ROWS)
        for k, (seconds, price) in enumerate(zip(batch_s, market.base_prices, strict=True))
    ]
    policy = Policy(stages, usual_deadline_s=4 * sum(batch_s), classes=configs)
    places = [StagePlaces(REPLICAS, slots=lambda count: count, running=lambda: REPLICAS) for _ in stages]
    loop = SlowLoop(policy, Control(configs, places, market), lambda _: None, 0.0)
    for step in range(100):
        for priority in range(1, len(configs) + 1):
            loop.arrived(step / 100, priority, max(1, round(rate / len(configs) / 100)))
    loop.step(1.0)
    began = process_time()
    for _ in range(REPEATS):
        loop.step(1.0)
    return 1e3 * (process_time() - began) / REPEATS
