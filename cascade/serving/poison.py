"""Rows that are their own undoing: which of a batch's logits are no numbers, and inputs that are not let in again.

Knows arrays and digests; decides nothing. That such a row ends alone is the policy's doing, see
docs/decisions/0024-poisoned-rows-end-alone.md.
"""

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from cascade.errors import UnprocessableRow
from cascade.models.stage import Arrays
from cascade.policy.quarantine import Quarantine

DIGEST_BYTES = 16
SAMPLED = 16
"""Elements of each input of a row that its sample holds, spread evenly."""


def readable(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[int]]:
    """Logits that can be judged, and the rows that cannot: theirs are zeros.

    Args:
        logits: [n, classes].

    Raises:
        ValueError: no row is finite, which says more of the network than of the rows.
    """
    if np.isfinite(logits).all():
        return logits, []
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    if not finite.any():
        raise ValueError(f"none of {len(logits)} rows has finite logits")
    return np.where(finite[:, None], logits, np.float32(0)), np.flatnonzero(~finite).tolist()


class Wards:
    """What a router remembers of inputs on which its first stage failed.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._quarantine = Quarantine()

    def check(self, inputs: Arrays, rows: int) -> None:
        """Raise if a row is not to be tried again.

        Args:
            inputs: one array [rows, *row] for each input.
            rows: rows.

        Raises:
            UnprocessableRow: it is not.
        """
        now = self._clock()
        if self._quarantine.active(now):
            place = self._quarantine.first_refused(now, samples(inputs, rows), partial(digest, inputs))
            if place is not None:
                raise UnprocessableRow(f"the first stage has failed on row {place} again and again; it is not tried now")

    def poisoned(self, inputs: Arrays, places: Sequence[int]) -> UnprocessableRow:
        """Note rows on which the first stage failed; returns what to tell their client."""
        now = self._clock()
        sampled = samples(inputs, max(places) + 1)
        for place in places:
            self._quarantine.poisoned(now, sampled[place], digest(inputs, place))
        return UnprocessableRow(f"the first stage fails on row {places[0]} of the message, and on no others")


def samples(inputs: Arrays, rows: int) -> list[bytes]:
    """Some bytes of each of the first rows, alike where the rows are, and cheap: one gather for a whole message."""
    parts: list[list[bytes]] = []
    for name in sorted(inputs):
        flat = inputs[name][:rows].reshape(rows, -1)
        some = flat[:, :: max(1, flat.shape[1] // SAMPLED)]
        if some.dtype == object:
            parts.append([b"".join(_content(each) for each in row) for row in some])
        else:
            data, size = np.ascontiguousarray(some).tobytes(), some[0].nbytes
            parts.append([data[place * size : (place + 1) * size] for place in range(rows)])
    return [b"".join(each) for each in zip(*parts, strict=True)]


def digest(inputs: Arrays, place: int) -> bytes:
    """The digest of one row: alike where names, types, shapes and bytes of its inputs are."""
    made = blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(inputs):
        row = np.asarray(inputs[name][place])
        made.update(f"{name}:{row.dtype.str}:{row.shape};".encode())
        if row.dtype != object:
            made.update(row.tobytes())
        else:
            for each in row.ravel():
                made.update(_content(each))
    return made.digest()


def _content(element: object) -> bytes:
    """The bytes of an element of a BYTES input, their number before them."""
    content = element if isinstance(element, bytes) else repr(element).encode()
    return b"%d:" % len(content) + content
