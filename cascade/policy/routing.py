"""Where a row may go after a stage has judged it, and what that is worth. Knows gains and prices; no queue and no time.

cascade   the next open stage only. Its value is the best over all dearer stages, less the base prices of the stages between
          (`cascade.policy.price`): a row pays for every stage on its way, and may learn on it.
direct    any open stage j behind the present one k, at the value of going straight there and stopping: its gain g_kj. The
          row goes to the j of the largest net gain g_kj - price_j, the nearest such, if that is above 0.

Direct routing looks no further than one step: what a row may learn at a cheaper stage on its way counts for nothing, so that
it visits too few of them where they are cheap. What it is good for is a stage that is full: the rows that it is least likely
to mend leave it to others. Looking ahead at base prices, as a cascade does, would make the next stage seem worth as much
as any behind it, and no row would skip it.

A row that skips a stage never hears it. So with direct routing no stage may look back at the answers of others: what it
says, and what it would gain, must not depend on the way that led to it.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from cascade.policy.gain import Floats
from cascade.policy.price import continuation_value

Routing = Literal["cascade", "direct"]


class Ways:
    """The ways that the rows of a batch have before them.

    Args:
        targets: stages that they may go to, ascending.
        values: value of going to each, before its own price, [n] for each target.

    Attributes:
        targets: see above.
        only: the values where there is one target, else None; most routers have one way, and many rows.
    """

    __slots__ = ("_values", "only", "targets")

    def __init__(self, targets: Sequence[int], values: Sequence[Sequence[float]]) -> None:
        self.targets = tuple(targets)
        self._values = values
        self.only = values[0] if len(targets) == 1 else None

    @classmethod
    def behind(
        cls, routing: Routing, gains: Floats, stage: int, open_stages: Sequence[int], lookahead: Sequence[float]
    ) -> "Ways":
        """The ways from one stage.

        Args:
            routing: see the module.
            gains: gain of each stage behind ``stage``, [n, stages - 1 - stage].
            stage: the stage that has judged the rows.
            open_stages: dearer stages that can be called, ascending, not empty.
            lookahead: [stages] price of a visit beyond the next one, for a cascade: the base prices.
        """
        if routing == "cascade":
            return cls(open_stages[:1], [continuation_value(gains, stage, open_stages, lookahead).tolist()])
        return cls(open_stages, [gains[:, j - stage - 1].tolist() for j in open_stages])

    def worth(self, base_prices: Sequence[float]) -> tuple[Sequence[float], float]:
        """What going on is worth to each row, [n], and the price that it must exceed for some way to be worth its own."""
        if self.only is not None:
            return self.only, base_prices[self.targets[0]]
        prices = [base_prices[j] for j in self.targets]
        return [max(v - p for v, p in zip(row, prices, strict=True)) for row in zip(*self._values, strict=True)], 0.0

    def best(self, row: int, price: Callable[[int], float], barred: Callable[[int], bool]) -> tuple[int, float]:
        """The stage of a row's largest net gain, the nearest such, and the value of going there.

        Args:
            row: which row of the batch.
            price: what a visit to a stage costs this row at present.
            barred: whether a stage is none for this row, being too dear or too slow; such a one is the answer only where no
                other is worth its price.
        """
        if self.only is not None:
            return self.targets[0], self.only[row]
        nets = [value[row] - price(j) for j, value in zip(self.targets, self._values, strict=True)]
        places = [place for place, j in enumerate(self.targets) if nets[place] > 0 and not barred(j)]
        place = max(places or range(len(nets)), key=nets.__getitem__)
        return self.targets[place], self._values[place][row]

    def any_above(self, row: int, limit: Callable[[int, float], bool]) -> bool:
        """Whether ``limit(stage, value)`` holds for some way of a row."""
        if self.only is not None:
            return limit(self.targets[0], self.only[row])
        return any(limit(j, value[row]) for j, value in zip(self.targets, self._values, strict=True))
