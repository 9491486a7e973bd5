"""One row's way in words: why it was answered by the stage that answered it. Knows notes and names; decides nothing.

Every sentence holds the numbers that decided, so that it can be checked against the figures beside it.
"""

from collections.abc import Sequence
from math import isfinite

from cascade.policy.explain import End, Note, Onwards
from cascade.policy.request import ExitReason


def sentence(stages: Sequence[str], note: Note, end: End, *, load: float | None, wanted: float, budget: float) -> str:
    """Why a row left where it left.

    Args:
        stages: their names.
        note: what the last stage that judged it found.
        end: how it left.
        load: arrival rate over what the ladder could take at base prices; None where that is not known.
        wanted: probability of being right with which the client is content; above 1 for no such wish.
        budget: what the client allowed its stages to cost; infinite for no such wish.
    """
    here, sure = stages[note.batch.stage], f"right with probability {note.p_correct:.3f}"
    if end.answer.reason is ExitReason.LAST_STAGE or note.onward is None:
        return f"answered by `{here}`, the last stage ({sure})"
    onward = note.onward
    there = f"`{stages[onward.stage]}`"
    left = f"left at `{here}` ({sure})"
    waited = f"waited {end.at_s - note.at_s:.3f} s for {there}"
    worth = f"going on to {there} was worth {onward.value:.4f}"
    match end.answer.reason:
        case ExitReason.CONFIDENT:
            return f"{left}: {worth}, no more than its base price {onward.base_price:.4f}"
        case ExitReason.SATISFIED:
            return f"{left}: the client is content with {wanted:g}, though {worth}"
        case ExitReason.PRICE:
            return f"{left}: {worth}, not above its price {onward.price:.4f} ({_conditions(onward, load)})"
        case ExitReason.EVICTED:
            return f"{left}: {worth}, and it {waited}, but rows with more to gain took its place"
        case ExitReason.BUDGET:
            return f"{left}: {worth}, but {there} would have cost more than the {budget:g} that the client allows"
        case ExitReason.DEADLINE if note.reason is not None:
            needs_s, has_s = onward.soonest_s - note.at_s, note.usable_until_s - note.at_s
            return f"{left}: {worth}, but {there} needs {needs_s:.3f} s and {max(has_s, 0.0):.3f} s were left"
        case ExitReason.DEADLINE:
            return f"{left}: {worth}, and it {waited}, but its time was up before the answer came"
        case _ if onward.out:
            return f"{left}: no dearer stage has a healthy replica"
        case _:
            return f"{left}: {worth}, and it went on, but {there} failed or went out"


def _conditions(onward: Onwards, load: float | None) -> str:
    base = f"base price {onward.base_price:.4f}"
    return base if load is None or not isfinite(load) else f"{base}, load {load:.1f}x"
