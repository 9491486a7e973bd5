"""Which rows a busy stage will not come to in time: those below what it has taken for a while. Knows keys and instants.

While a stage is *crowded*, that is while its batches are full and leave rows waiting, what it takes is decided by the keys
of those who come, not by how long one has waited. A row below every key that was taken within the last ``window_s`` would
wait for its deadline in vain.
"""

from collections import deque
from math import inf


class Reach:
    """The least key that one stage has taken within a window of time."""

    __slots__ = ("_crowded_since_s", "_least")

    def __init__(self) -> None:
        self._crowded_since_s = inf
        # Instants and keys, both ascending: a key that a later, lower one has outlived can never be the least again.
        self._least: deque[tuple[float, float]] = deque()

    def taken(self, now: float, least_key: float, *, crowded: bool) -> None:
        """A batch was taken.

        Args:
            now: present instant.
            least_key: the least key in it.
            crowded: whether it was full and rows were left behind.
        """
        if not crowded:
            self._crowded_since_s = inf
            self._least.clear()
            return
        if self._crowded_since_s == inf:
            self._crowded_since_s = now
        while self._least and self._least[-1][1] >= least_key:
            self._least.pop()
        self._least.append((now, least_key))

    def key(self, now: float, window_s: float) -> float:
        """Rows below this key will not be reached; minus infinity where nothing can be said.

        Args:
            now: present instant.
            window_s: how far back to look, and how long the stage must have been crowded before anything is said.
        """
        if now - self._crowded_since_s < window_s:
            return -inf
        while self._least and self._least[0][0] < now - window_s:
            self._least.popleft()
        return self._least[0][1] if self._least else -inf
