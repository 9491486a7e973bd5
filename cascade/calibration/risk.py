"""Exact tests and bounds for the share of rows on which something is lost, and the losses they are applied to.

Knows counts, p-values and the rows of a judged table; no prices beyond those it is given, no file, no load. Everything
here holds for rows that are exchangeable with the ones counted, at any number of rows.

Of the arguments: ``rows`` n is the number of rows counted, ``losses`` how many of them lost (an integer), ``max_loss`` the
share alpha that may be lost, ``delta`` the probability with which a statement may be wrong.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from cascade.calibration.judged import JudgedTable
from cascade.errors import ConfigError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SLACK = 1e-9
"""Rounding error forgiven in a sum of losses before it is rounded up; 1e-9 of a row."""


def check_level(name: str, value: float) -> None:
    """Refuse a share or a confidence that is not strictly between 0 and 1.

    Raises:
        ConfigError: naming the argument.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} must lie strictly between 0 and 1, got {value!r}")


def _counts(rows: int, losses: ArrayLike) -> NDArray[Any]:
    counted = np.asarray(losses)
    if rows < 1:
        raise ConfigError(f"rows must be at least 1, got {rows}")
    if counted.size and (counted.min() < 0 or counted.max() > rows):
        raise ConfigError(f"losses must lie between 0 and {rows} rows, got {counted.min()} to {counted.max()}")
    return counted


def binomial_p(rows: int, losses: ArrayLike, max_loss: float) -> Floats:
    """Exact p-value of "the risk exceeds max_loss" for losses of 0 or 1: P[Bin(n, alpha) <= k].

    Args:
        rows: n.
        losses: k, of any shape.
        max_loss: alpha.

    Returns:
        p-values, of the shape of ``losses``.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_level("max_loss", max_loss)
    return np.asarray(stats.binom.cdf(_counts(rows, losses), rows, max_loss))


def hoeffding_p(rows: int, total_loss: ArrayLike, max_loss: float) -> Floats:
    """p-value of "the risk exceeds max_loss" for losses anywhere in [0, 1] (Hoeffding 1963).

        p = exp(-n kl(min(r, alpha) || alpha)),   r = total_loss / n,   kl the relative entropy of two coins

    Args:
        rows: n.
        total_loss: sum of the losses, of any shape.
        max_loss: alpha.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_level("max_loss", max_loss)
    r = np.minimum(_counts(rows, total_loss) / rows, max_loss)
    # Of two terms that cancel where r is alpha: rounding may leave less than nothing.
    divergence = np.maximum(special.rel_entr(r, max_loss) + special.rel_entr(1 - r, 1 - max_loss), 0.0)
    return np.asarray(np.exp(-rows * divergence))


def hoeffding_bentkus_p(rows: int, total_loss: ArrayLike, max_loss: float) -> Floats:
    """p-value of "the risk exceeds max_loss" for losses anywhere in [0, 1], the smaller of two (Bates et al. 2021).

        p = min( hoeffding_p,  e P[Bin(n, alpha) <= ceil(n r)] ),   n r = total_loss

    For losses of 0 or 1 `binomial_p` is exact and smaller.

    Args:
        rows: n.
        total_loss: sum of the losses, of any shape.
        max_loss: alpha.

    Returns:
        p-values, at most 1.

    Raises:
        ConfigError: an argument is out of range.
    """
    # A sum such as 7.0000000001 means 7 losses; rounded up to 8 it would cost power for nothing.
    whole = np.ceil(np.asarray(total_loss) - SLACK)
    return np.minimum(hoeffding_p(rows, total_loss, max_loss), np.e * stats.binom.cdf(whole, rows, max_loss))


def clopper_pearson(rows: int, losses: ArrayLike, delta: float) -> Floats:
    """Upper confidence bound of a risk: the smallest a with P[Bin(n, a) <= k] <= delta (Clopper and Pearson 1934).

    The bound is below the true risk with probability at most delta. It is the (1 - delta) quantile of
    Beta(k + 1, n - k), and 1 where every row lost.

    Args:
        rows: n.
        losses: k, of any shape.
        delta: 1 - confidence, for each bound alone; share it out where several are to hold at once.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_level("delta", delta)
    k = _counts(rows, losses)
    return np.where(k == rows, 1.0, stats.beta.isf(delta, k + 1, np.maximum(rows - k, 1)))


def rows_needed(max_loss: float, confidence: float) -> int:
    """Fewest rows that certify max_loss when none of them loses: the smallest n with (1 - alpha)^n <= 1 - confidence.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_level("max_loss", max_loss)
    check_level("confidence", confidence)
    return int(stats.geom.ppf(confidence, max_loss))


def fixed_sequence(p_values: ArrayLike, delta: float) -> int:
    """How many hypotheses, counted from the first, are rejected before the first that is not.

    Fixed-sequence testing, the form of Learn then Test (Angelopoulos et al. 2021) for settings that were ordered before
    the rows were looked at: with probability 1 - delta none of the rejected is true, whatever the risks do along the
    order. The boldest certified setting is therefore the one at ``count - 1``; the one at ``count`` is the first that
    failed, and taking it (a slip in published code) gives up the guarantee.

    Args:
        p_values: [G] in the order of testing.
        delta: probability that any rejected one is true, at most.
    """
    passed = np.asarray(p_values) <= delta
    return len(passed) if passed.all() else int(np.argmin(passed))


def pareto_order(loss: Floats, cost: Floats) -> NDArray[np.intp]:
    """Settings that no other beats in both loss and cost, from the least loss to the least cost.

    Args:
        loss: [G].
        cost: [G].

    Returns:
        Indices; along them the loss rises strictly and the cost falls strictly. Of equal settings the first.
    """
    order = np.lexsort((np.arange(len(loss)), cost, loss))
    cheapest_before = np.minimum.accumulate(np.concatenate(([np.inf], cost[order][:-1])))
    return order[cost[order] < cheapest_before]


def pareto_test(order: NDArray[np.intp], rows: int, losses: NDArray[Any], max_loss: float, delta: float) -> int | None:
    """Cheapest certified setting of several that have no natural order: Pareto testing (Laufer-Goldshtein et al. 2023).

    The order comes from other rows than the losses: `pareto_order` of one part of the data makes it, the counts of the
    other part are tested down it. With probability 1 - delta the risk of the setting returned is at most max_loss.

    Args:
        order: indices of settings, from the least loss to the least cost, found on rows that are not counted here.
        rows: n, the rows counted.
        losses: [G] losses of each setting among them.
        max_loss: alpha.
        delta: 1 - confidence.

    Returns:
        Index of the setting, or None where not even the safest passes.
    """
    count = fixed_sequence(binomial_p(rows, losses[order], max_loss), delta)
    return int(order[count - 1]) if count else None


def simultaneous_bounds(rows: int, losses: NDArray[Any], delta: float) -> Floats:
    """Upper bounds of the risks of G operating points that hold all at once: Clopper-Pearson at delta / G.

    With probability 1 - delta every r_g is at least the risk of its point. Hence for any schedule that moves between the
    points without regard to how hard the present row is, the long-run risk is at most sum_g w_g r_g, with w_g the share
    of rows served at point g.

    Args:
        rows: n, the same rows at every point.
        losses: [G] losses at each point.
        delta: probability that any of the bounds is wrong, at most.

    Returns:
        [G] bounds r_g.
    """
    return clopper_pearson(rows, losses, delta / len(losses))


def covering_losses(judged: JudgedTable) -> Bools:
    """The least loss of each row and exit that never falls when the row exits earlier, [N, S].

        m[n, k] = 1[ the whole ladder would be right about n, and some stage j >= k would serve n a wrong answer ]

    The loss itself is not monotone: a row may be served right by stage 1, wrong by stage 2 and right by stage 3. m is the
    largest loss over the exits j >= k. A row that stops at stage k at some prices stops at k or later at any lower
    prices, so its loss there is at most m[n, k], row by row: the mean of m at one price vector bounds the risk of every
    vector componentwise below, and of every way to move among them, even one that looks at the row.
    """
    losses = np.column_stack([judged.stop_at(stage).losses for stage in range(len(judged.stages))])
    return np.asarray(np.logical_or.accumulate(losses[:, ::-1], axis=1)[:, ::-1])


def losses_if_stopping(judged: JudgedTable, prices: Floats) -> Bools:
    """The same where rows may skip stages: whether a row would lose at a stage at which it would stop, [N].

        m[n] = 1[ the whole ladder would be right about n, and some stage at which n would stop, if it came there at these
                  prices, would serve it a wrong answer ]

    Where rows skip stages, a lower price may lead a row to a cheaper stage, so that it stops earlier, and `covering_losses`
    does not hold. But a row that goes on from a stage at some prices goes on from there at any lower ones: its largest net
    gain is no less. So it stops at one of the stages at which it would stop now, whichever way it takes.

    Args:
        judged: rows with direct routing.
        prices: [S].
    """
    losses = np.column_stack([judged.stop_at(stage).losses for stage in range(len(judged.stages))])
    return np.asarray((losses & judged.would_stop(prices)).any(axis=1))


def price_families(cost: Floats) -> list[Floats]:
    """Price vectors worth trying where each stage may have its own price.

    Families x (cost_k / cost_last)^e, from equal prices (e = 0) to steeper than cost (e = 1.25), each from where the least
    changes to where every row stops at the first stage. Prices in proportion to cost are best for true gains; the others
    make up for gains that were fitted badly.

    Args:
        cost: [S] cost of one row at each stage alone.
    """
    if len(cost) == 1:
        return []
    shapes = [(cost / cost[-1]) ** exponent for exponent in (0.0, 0.25, 0.5, 0.75, 1.25)]
    return [x * shape for shape in shapes for x in np.geomspace(1e-4, 1 / shape[1], 40)]
