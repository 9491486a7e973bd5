"""Where the routers' readings meet the stages' autoscaling policies: one board in the memory of Serve's controller.

Serve calls every deployment's policy in its controller, each with the statistics of its own replicas alone. But routers know
the prices, and stages are what is scaled. So the router deployment's policy posts here, and those of the stages read here.

This module is apart from the policies for a reason: Serve ships a policy's own module by value, and a board in it would be
copied along, one for each policy. Functions of any other module travel by name and meet in one place.
"""

from collections.abc import Mapping

from cascade.policy.scaling import Reading

_boards: dict[str, Mapping[str, Reading]] = {}


def post(app: str, readings: Mapping[str, Reading]) -> None:
    """Replace what an application's routers say about its stages, by stage name."""
    _boards[app] = dict(readings)


def read(app: str, stage: str) -> Reading | None:
    """What the routers said last about a stage; None if they said nothing."""
    return _boards.get(app, {}).get(stage)
