"""Where the parameters of the laws of comparison come from: grids, tried on seeds that the comparison does not use."""

from collections.abc import Sequence
from functools import partial
from itertools import product

from benchmarks.laws.laws import GEAR_PERIOD_S, LIFO, NO_SLACK, Aimd, Law, PiDimmer, Plain, QueuePrice
from benchmarks.laws.queue_law import Options

SEEDS = (100, 101)
RHOS = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
GEARS = {"gear": Options(), "gear-lifo": LIFO, "gear-noslack": NO_SLACK}
SCENARIOS = ("x4", "x10", "step", "burst", "slow2", "down2")


def variants() -> Sequence[Law]:
    """All that is tried; a name begins with that of the law, then come the parameters."""
    return (
        *(
            Law(f"aimd {up:g} {down:g} {target:g}", "", partial(Aimd, increase=up, decrease=down, target=target))
            for up, down, target in product((0.005, 0.01, 0.02, 0.04), (0.6, 0.7, 0.8, 0.9), (0.15, 0.3, 0.5))
        ),
        *(
            Law(f"pi {kp:g} {ki:g} {target:g}", "", partial(PiDimmer, kp=kp, ki=ki, target=target))
            for kp, ki, target in product((0.5, 1.5, 4.0), (0.1, 0.3, 1.0), (0.15, 0.3, 0.5))
        ),
        *(
            Law(f"{name} {rho:g}", "", partial(Plain, options=options), rho, GEAR_PERIOD_S)
            for (name, options), rho in product(GEARS.items(), RHOS)
        ),
        *(
            Law(f"gear-drain {rho:g} {drain_s:g}", "", Plain, rho, GEAR_PERIOD_S, drain_s=drain_s)
            for rho, drain_s in product((1.0, 1.05, 1.1, 1.2), (0.25, 0.5, 1.0))
        ),
        *(Law(f"queue-price {horizon:g}", "", partial(QueuePrice, horizon=horizon)) for horizon in (0.5, 1.0, 2.0, 4.0)),
    )
