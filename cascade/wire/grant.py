"""What a key gives whoever sends it. A plain value; it does not hold the key."""

from typing import NamedTuple


class Grant(NamedTuple):
    """What a key gives its bearer.

    Attributes:
        name: of the key.
        tenant: for whom its requests are, whatever they say.
        priority: their class: requests that claim a more important one get this one, and so do those that claim none.
        admin: whether it opens what is for operators.
        max_under_way: requests that may be under way at a time in one router; None for the server's own limit.
        max_streams: the same of streams.
    """

    name: str
    tenant: str
    priority: int
    admin: bool = False
    max_under_way: int | None = None
    max_streams: int | None = None
