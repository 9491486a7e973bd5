"""Judged tables of known truth, for the tests of everything that reads one."""

from collections.abc import Sequence

import numpy as np

from cascade.calibration.judged import JudgedTable


def difficulty_ladder(
    rows: int = 4000,
    errors: Sequence[float] = (0.9, 0.5, 0.1),
    cost: Sequence[float] = (1.0, 4.0, 16.0),
    unsolvable: float = 0.0,
    seed: int = 0,
    groups: int = 0,
) -> JudgedTable:
    """Rows of difficulty u, uniform in [0, 1]: stage k is right with probability 1 - errors_k u^2, independently.

    p_correct and gains are the true ones given u. On a share ``unsolvable`` of the rows every stage guesses (one in ten) and
    no gain is to be had.
    """
    random = np.random.default_rng(seed)
    stages = len(errors)
    u = random.random(rows)
    right_p = 1 - np.asarray(errors) * u[:, None] ** 2
    right_p[random.random(rows) < unsolvable] = 0.1
    right = random.random((rows, stages)) < right_p
    gains = np.triu(right_p[:, None, :] - right_p[:, :, None], k=1)
    group = np.array([f"group{g}" for g in random.integers(groups, size=rows)]) if groups else None
    names = tuple(f"stage{k}" for k in range(stages))
    return JudgedTable(names, np.asarray(cost, dtype=np.float64), "MAC", right, right, right_p, gains, group)
