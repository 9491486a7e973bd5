"""What an escalation must be worth. Knows gains, prices and which stages are open; not why a price is what it is.

A price is the gain that a visit to a stage must promise. The base price is the operator's own preference for low cost; the
present price is the base price or, under load, what it takes for demand to fit the stage's capacity, whichever is higher.

Two uses, two prices: a row's value of going on looks ahead at *base* prices; whether it is enough is judged by the *present*
price of the next stage alone. What a visit may teach, and so lead to, is worth something even where a stage further on is
full today; looking ahead at present prices would keep rows from a cheap stage that has room.
"""

from collections.abc import Sequence

import numpy as np

from cascade.policy.gain import Floats


def continuation_value(gains: Floats, stage: int, open_stages: Sequence[int], prices: Sequence[float]) -> Floats:
    """Value of going on from ``stage`` to the next open stage, before that stage's own price.

    A row may pass the next stage only to reach one behind it, so the value is the best over all dearer open stages j of
    the gain of j less the prices of the stages between:

        value = max_j ( g_j - sum over open i, next < i <= j, of price_i )

    This is the one-step form of optimal stopping with the gain tables as terminal values; the row goes on while
    ``value > price_next``.

    Args:
        gains: gain of each stage behind ``stage``, [n, stages - 1 - stage].
        stage: index of the stage that has just answered.
        open_stages: indices of the dearer stages that can be called, ascending, not empty.
        prices: price of every stage of the ladder, [stages].

    Returns:
        The value of each row, [n].
    """
    passed = [0.0]
    for target in open_stages[1:]:
        passed.append(passed[-1] + prices[target])
    if len(gains) == 1:  # most batches at low load, where numpy's own overhead is several times the work
        row = gains[0].tolist()
        return np.array([max(row[target - stage - 1] - less for target, less in zip(open_stages, passed, strict=True))])
    whole = len(open_stages) == gains.shape[1]
    behind = gains if whole else gains[:, [target - stage - 1 for target in open_stages]]
    value: Floats = (behind - np.array(passed)).max(axis=1)
    return value
