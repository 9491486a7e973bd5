"""Which stages a row can get to where some resume others: only a row that a stage has just answered is resumed from it.

Knows which stages are there and which resume the one before; not why, nor what that costs.
"""

from collections.abc import Sequence


def behind(stage: int, there: Sequence[bool], resumes: Sequence[bool], *, answered: bool = True) -> list[int]:
    """The stages behind one that a row at that one can get to, ascending.

    Args:
        stage: where it is.
        there: [S] whether each stage can be called.
        resumes: [S] whether each stage goes on from what the one before left.
        answered: whether that stage has answered the row.
    """
    found, before = [], stage if answered else -1
    for target in range(stage + 1, len(there)):
        if there[target] and (before == target - 1 or not resumes[target]):
            found.append(target)
            before = target
    return found


def reachable(there: Sequence[bool], resumes: Sequence[bool]) -> tuple[bool, ...]:
    """[S] whether new rows can get to each stage: it is there, and so is every one that it resumes."""
    beyond = behind(0, there, resumes, answered=there[0])
    return (there[0], *(stage in beyond for stage in range(1, len(there))))
