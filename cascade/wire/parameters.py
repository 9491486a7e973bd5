"""Parameters of a request, of its tensors and of its outputs: what they may be, and what cascade reads from them.

Knows values that a codec has made, JSON's or protobuf's; nothing of messages, stages or time. Parameters that would change
the answer in ways this server cannot are refused rather than ignored; others that it does not know are ignored.
"""

from collections.abc import Mapping
from math import isnan
from typing import Final, NamedTuple, TypeAlias

from cascade.errors import BadRequest
from cascade.wire.http import MAX_TENANT_CHARS
from cascade.wire.tensors import brief

Parameter: TypeAlias = str | int | float | bool

_UNSUPPORTED: Final = ("shared_memory_region", "classification")
_MICROSECONDS: Final = 1_000_000


class Wishes(NamedTuple):
    """What a request asks for beside its answer; None where it says nothing.

    Attributes:
        timeout_s: the parameter ``timeout`` in seconds; None if 0, too, which means the default.
        priority: the parameter ``priority``, 1 to the number of classes; None if 0, too.
        max_cost: the parameter ``cascade_max_cost``, most that each of its rows may spend.
        tenant: the parameter ``cascade_tenant``, for whom this is.
        min_confidence: the parameter ``cascade_min_confidence``, probability of being right with which each row is content.
        explain: the parameter ``cascade_explain``, whether the client wants to know why it is answered as it is.
    """

    timeout_s: float | None = None
    priority: int | None = None
    max_cost: float | None = None
    tenant: str | None = None
    min_confidence: float | None = None
    explain: bool = False


def read_wishes(parameters: Mapping[str, Parameter], priorities: int, max_timeout_s: int) -> Wishes:
    """Reads the parameters of a request.

    Args:
        parameters: their names and values.
        priorities: number of classes.
        max_timeout_s: longest time limit that is taken for meant, seconds.

    Raises:
        BadRequest: one of them is of another type or out of its range.
    """
    return Wishes(
        _timeout_s(parameters["timeout"], max_timeout_s) if "timeout" in parameters else None,
        _priority(parameters["priority"], priorities) if "priority" in parameters else None,
        _max_cost(parameters["cascade_max_cost"]) if "cascade_max_cost" in parameters else None,
        _tenant(parameters["cascade_tenant"]) if "cascade_tenant" in parameters else None,
        _min_confidence(parameters["cascade_min_confidence"]) if "cascade_min_confidence" in parameters else None,
        "cascade_explain" in parameters and flag(parameters, "cascade_explain", "parameters", default=False),
    )


def refuse_unsupported(parameters: Mapping[str, Parameter], where: str) -> None:
    """Refuses parameters of a tensor that would change the answer.

    Args:
        parameters: the tensor's.
        where: what to call the tensor.

    Raises:
        BadRequest: there is one.
    """
    for unsupported in _UNSUPPORTED:
        if unsupported in parameters:
            raise BadRequest(f"{where}: the parameter {unsupported} is not supported")


def flag(parameters: Mapping[str, Parameter], name: str, where: str, default: bool) -> bool:
    """A parameter that is true or false.

    Raises:
        BadRequest: it is something else.
    """
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise BadRequest(f"{where}: {name} must be true or false, got {brief(value)}")
    return value


def _timeout_s(value: Parameter, max_timeout_s: int) -> float | None:
    limit = max_timeout_s * _MICROSECONDS
    if type(value) is not int or not 0 <= value <= limit:
        raise BadRequest(f"parameters: timeout must be an integer of 0 to {limit} microseconds, got {brief(value)}")
    return value / _MICROSECONDS if value else None


def _priority(value: Parameter, priorities: int) -> int | None:
    if type(value) is not int or not 0 <= value <= priorities:
        raise BadRequest(
            f"parameters: priority must be an integer of 1 (most important) to {priorities}, or 0 for the default, "
            f"got {brief(value)}"
        )
    return value or None


def _max_cost(value: Parameter) -> float:
    # JSON has no NaN; protobuf has.
    if type(value) not in (int, float) or isnan(float(value)) or float(value) <= 0:
        raise BadRequest(f"parameters: cascade_max_cost must be a number above 0, got {brief(value)}")
    return float(value)


def _min_confidence(value: Parameter) -> float:
    if type(value) not in (int, float) or not 0 < float(value) <= 1:  # NaN is neither
        raise BadRequest(f"parameters: cascade_min_confidence must be a number above 0 and at most 1, got {brief(value)}")
    return float(value)


def _tenant(value: Parameter) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_TENANT_CHARS:
        raise BadRequest(
            f"parameters: cascade_tenant must be a string of 1 to {MAX_TENANT_CHARS} characters, got {brief(value)}"
        )
    return value
