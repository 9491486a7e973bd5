"""One policy takes over from another, of the same stages and classes, while rows of the old one are still on their way.

Each row stays with the policy that admitted it, whose tables, prices and queues decide about it to its end: no row is ever
judged by two. What the two share is what there is only once: the places at the stages, and the counters.
"""

from cascade.policy.policy import Policy


def take_over(after: Policy, before: Policy) -> None:
    """Let a policy that has admitted nobody yet go on where another one stops admitting.

    A place that one of them takes is taken for both, so together they never have more batches at a stage than it has places;
    what has been learned of service times is kept. A driver lets either dispatch when a place comes free.

    Args:
        after: the policy that admits from now on.
        before: the policy that has rows left.

    Raises:
        ValueError: they have different stages or classes.
    """
    shape, other = ((len(each.capacities), len(each.counts.classes)) for each in (after, before))
    if shape != other:
        raise ValueError(f"a policy of {shape} stages and classes cannot take over from one of {other}")
    after.count_into(before.counts)
    after.capacities[:] = before.capacities
