"""How many replicas of each stage are healthy, as Serve last said. A registry that handles write and the router reads.

A process that has handles is a router of one application, so a stage's name alone will do.

It lives apart from the class that writes it, because Serve ships that class's own module by value: a variable there would
be a copy.
"""

_running: dict[str, int] = {}


def note(deployment: str, replicas: int) -> None:
    """Take down the number of running replicas of a deployment; called by the handles' request routers."""
    _running[deployment] = replicas


def running(deployment: str) -> int | None:
    """Running replicas of a deployment; None until a handle of this process has heard of it."""
    return _running.get(deployment)
