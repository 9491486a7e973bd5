"""Makes a certificate: lets a table's rows walk at many prices, counts what is lost, and puts tests and bounds together.

Knows the judged rows only, not where they came from; no file, no load. What each number then promises stands at
`Certificate`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import cascade
from cascade.calibration.artefact import TableSource
from cascade.calibration.certificate import Certificate, GroupBound, ParetoChoice, PathPoint
from cascade.calibration.fitting import Progress
from cascade.calibration.judged import JudgedTable, Walked, price_path
from cascade.calibration.risk import (
    Floats,
    binomial_p,
    check_level,
    clopper_pearson,
    covering_losses,
    fixed_sequence,
    losses_if_stopping,
    pareto_order,
    pareto_test,
    price_families,
    rows_needed,
    simultaneous_bounds,
)
from cascade.errors import ConfigError, TableError
from cascade.policy.routing import Routing


def certify(
    judged: JudgedTable,
    *,
    max_loss: float,
    confidence: float,
    path: Sequence[Floats] | None = None,
    prices_grid: Sequence[Floats] | None = None,
    seed: int = 0,
    table: TableSource | None = None,
    calibration: str | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Bound what is lost against the whole ladder, along a path of prices and at the cheapest of many settings.

    The loss of a row is 1[whole ladder right, served answer wrong]; its mean is the risk, and at least the accuracy
    lost. Tests are exact binomial ones in a fixed order, bounds are Clopper-Pearson; see `Certificate` for the seven
    statements that come of them and what they rest on. Every statement has its own confidence; to rely on several at
    once, add up their deltas.

    Args:
        judged: rows on which nothing was fitted; walking them costs O(N S) a price vector.
        max_loss: the risk alpha that may not be exceeded, in (0, 1).
        confidence: 1 - delta, in (0, 1).
        path: price vectors [S] from safest to boldest, fixed before the rows were looked at, no price falling along it;
            default `price_path`. A point at which every row stops at the first stage is put at its end.
        prices_grid: price vectors that the Pareto choice tries beside the path; default `price_families`.
        seed: of the division into halves for the Pareto choice.
        table: where the rows came from, to be noted.
        calibration: digest of the calibration by which they were judged, to be noted.
        progress: told about each price vector.

    Raises:
        ConfigError: ``max_loss`` or ``confidence`` is not in (0, 1), or a price of ``path`` falls.
        TableError: fewer rows than could certify ``max_loss`` even if none of them lost.
    """
    check_level("max_loss", max_loss)
    check_level("confidence", confidence)
    delta = round(1 - confidence, 12)
    rows, needed = judged.rows, rows_needed(max_loss, confidence)
    if rows < needed:
        raise TableError(
            f"{rows} rows can certify nothing at a loss of {max_loss:.3g} with confidence {confidence:.3g}: "
            f"at least {needed} are needed, more if any of them loses"
        )
    points = _closed(price_path(judged.cost) if path is None else path)
    vectors = [*points, *(price_families(judged.cost) if prices_grid is None else prices_grid)]
    walks = [_step(judged, prices, done, len(vectors), progress) for done, prices in enumerate(vectors)]
    losing = np.array([walked.losses for walked in walks])
    along = losing[: len(points)]
    counts = along.sum(axis=1)
    covers, exits = covering_losses(judged), np.array([walked.exits for walked in walks[: len(points)]])
    if judged.routing == "direct":
        covering = np.array([losses_if_stopping(judged, prices) for prices in points]).sum(axis=1)
    else:
        covering = covers[np.arange(rows), exits].sum(axis=1)
    bounds, bounds_below = simultaneous_bounds(rows, counts, delta), simultaneous_bounds(rows, covering, delta)
    stopping = _stopping(covers, exits, bounds_below, delta, judged.routing)
    certified = fixed_sequence(binomial_p(rows, counts, max_loss), delta)
    capped = fixed_sequence(binomial_p(rows, covering, max_loss), delta)
    chosen = certified - 1 if certified else None
    return Certificate(
        format_version=1,
        created_by=f"cascade {cascade.__version__}",
        table=table,
        calibration=calibration,
        stages=judged.stages,
        routing=judged.routing,
        cost_unit=judged.cost_unit,
        rows=rows,
        max_loss=max_loss,
        delta=delta,
        seed=seed,
        smallest_max_loss=float(clopper_pearson(rows, counts[0], delta)),
        path=tuple(
            PathPoint(
                prices=tuple(map(float, prices)),
                accuracy=walks[index].accuracy,
                cost=walks[index].cost,
                losses=int(counts[index]),
                loss=int(counts[index]) / rows,
                bound=float(bounds[index]),
                bound_below=float(bounds_below[index]),
                certified=index < certified,
                bounds_stopping=tuple(stopping[index].tolist()),
            )
            for index, prices in enumerate(points)
        ),
        chosen=chosen,
        price_cap=capped - 1 if capped else None,
        pareto=_pareto(judged, vectors, walks, losing, max_loss, delta, needed, seed),
        groups=() if chosen is None else _groups(judged, along, walks[chosen], chosen, max_loss, delta),
    )


def path_through(cost: Floats, prices: Sequence[float]) -> list[Floats]:
    """The default path with one more point, such as the operator's base prices, so that it has bounds of its own.

    Args:
        cost: [S] cost of one row at each stage alone.
        prices: [S]; left out where they lie on no such path, being above a point in one component and below in another.
    """
    path, extra = price_path(cost), np.asarray(prices, dtype=np.float64)
    before = [point for point in path if np.all(point[1:] <= extra[1:])]
    after = path[len(before) :]
    return [*before, extra, *after] if all(np.all(extra[1:] <= point[1:]) for point in after) else path


def _closed(path: Sequence[Floats]) -> list[Floats]:
    """The path with a last point at which every row stops at the first stage: no gain exceeds a price of 1."""
    for index in range(1, len(path)):
        if np.any(path[index][1:] < path[index - 1][1:]):
            raise ConfigError(f"path: a price falls from point {index - 1} to point {index}")
    end = path[-1].copy()
    end[1:] = np.maximum(end[1:], 1.0)
    # The last point of a computed path may miss 1 by a rounding error, and is then meant, not followed.
    return [*(path[:-1] if np.allclose(end, path[-1]) else path), end]


def _step(judged: JudgedTable, prices: Floats, done: int, total: int, progress: Progress | None) -> Walked:
    if progress is not None:
        progress(done, total, "walk rows")
    return judged.walk(prices)


def _stopping(
    covers: NDArray[np.bool_], exits: NDArray[np.intp], bounds_below: Floats, delta: float, routing: Routing
) -> Floats:
    """Bounds where rows stop at each stage at the latest, [G, S]; see `Certificate`, statement 7."""
    rows, stages = covers.shape
    if stages == 1:
        return bounds_below[:, None]
    if routing == "direct":
        # At lower prices a row may come to a cheaper stage than here, and stop there: only the bound for any stage holds.
        return np.column_stack([np.full((len(bounds_below), stages - 1), bounds_below[-1]), bounds_below])
    between = [covers[np.arange(rows), np.minimum(exits, stage)].sum(axis=1) for stage in range(1, stages - 1)]
    bounds = [np.full_like(bounds_below, bounds_below[-1])]
    if between:
        bounds += list(simultaneous_bounds(rows, np.array(between).ravel(), delta).reshape(len(between), -1))
    return np.column_stack([*bounds, bounds_below])


def _pareto(
    judged: JudgedTable,
    vectors: Sequence[Floats],
    walks: Sequence[Walked],
    losing: NDArray[np.bool_],
    max_loss: float,
    delta: float,
    needed: int,
    seed: int,
) -> ParetoChoice | None:
    """Order all price vectors by one half of the rows, test them on the other."""
    order = np.random.default_rng(seed).permutation(judged.rows)
    first, second = order[: judged.rows // 2], order[judged.rows // 2 :]
    if len(second) < needed or not len(first):
        return None
    cost = np.array([walked.costs[first].mean() for walked in walks])
    front = pareto_order(losing[:, first].mean(axis=1), cost)
    losses = losing[:, second].sum(axis=1)
    choice = pareto_test(front, len(second), losses, max_loss, delta)
    if choice is None:
        return None
    return ParetoChoice(
        prices=tuple(map(float, vectors[choice])),
        tried=len(vectors),
        front=len(front),
        rows=len(second),
        accuracy=float(walks[choice].right[second].mean()),
        cost=float(walks[choice].costs[second].mean()),
        losses=int(losses[choice]),
        loss=int(losses[choice]) / len(second),
    )


def _groups(
    judged: JudgedTable, losing: NDArray[np.bool_], walked: Walked, chosen: int, max_loss: float, delta: float
) -> tuple[GroupBound, ...]:
    """Bounds of each group at the chosen point; see `Certificate`, statement 6."""
    if judged.group is None:
        return ()
    names = np.unique(judged.group)
    found = []
    for name in names:
        members = judged.group == name
        rows, losses = int(members.sum()), losing[:, members].sum(axis=1)
        found.append(
            GroupBound(
                name=str(name),
                rows=rows,
                accuracy=float(walked.right[members].mean()),
                losses=int(losses[chosen]),
                loss=int(losses[chosen]) / rows,
                # The point was chosen by its losses, so the bound must hold wherever the choice had fallen.
                bound=float(clopper_pearson(rows, losses[chosen], delta / (len(names) * len(losing)))),
                certified=fixed_sequence(binomial_p(rows, losses, max_loss), delta / len(names)) > chosen,
            )
        )
    return tuple(found)
