"""Where rows that walk together part: after a stage has judged them. Knows values and one price; not what they are for.

The rows of a message come at one instant, with one deadline, class, tenant and budget, and wait and run together; most of
them need nothing more than an answer. To move each of them by itself costs several times what the cheapest stage does.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from cascade.policy.walk import Walk


def placed(walks: Iterable[Walk]) -> Iterator[tuple[int, Walk]]:
    """The walks of a batch, each with the place in the batch of its first row."""
    place = 0
    for walk in walks:
        yield place, walk
        place += walk.rows


def apart(judged: Iterable[tuple[int, Walk]], values: Sequence[float], price: float) -> Iterator[tuple[int, Walk]]:
    """Part the rows that may go on from those that stop: these leave together, as they came.

    Args:
        judged: walks that have just been judged, each with the place of its first row in the batch.
        values: what going on is worth to each row of the batch.
        price: rows of no larger value stop.

    Yields:
        All walks that these have become, in the same form; one of several rows holds only rows that stop.
    """
    for place, walk in judged:
        if walk.rows == 1:
            yield place, walk
            continue
        shift = place - walk.places[0]
        going_on = [row for row in walk.places if values[row + shift] > price]
        for each in walk.part_each(going_on):
            yield each.places[0] + shift, each


def set_aside(judged: Iterable[tuple[int, Walk]], rows: Collection[int]) -> tuple[list[tuple[int, Walk]], list[Walk]]:
    """Part some rows of a batch that came back from the others.

    Args:
        judged: walks, each with the place of its first row in the batch.
        rows: places in the batch of the rows to be parted.

    Returns:
        The others in the same form, and the walks of those.
    """
    others: list[tuple[int, Walk]] = []
    aside: list[Walk] = []
    for place, walk in judged:
        shift = place - walk.places[0]
        wanted = [row for row in walk.places if row + shift in rows]
        if len(wanted) == walk.rows:
            aside.append(walk)
            continue
        if wanted:
            aside += walk.part_each(wanted)[1:]
        others.append((walk.places[0] + shift, walk))
    return others, aside
