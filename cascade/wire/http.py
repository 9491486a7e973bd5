"""What a request's headers say and what an answer's headers say.

Knows header fields; nothing of sockets, ASGI, clocks or stages. Time limits are relative seconds: turning one into a
deadline needs a clock and is the server's business. Headers that only advise (time limits, priority, tracing) are ignored
when malformed, because a proxy may have put them there; the one that frames the body is not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Final, NamedTuple, TypeAlias

from cascade.errors import BadRequest
from cascade.wire.event_stream import prefers_event_stream
from cascade.wire.grant import Grant
from cascade.wire.tensors import brief

Headers: TypeAlias = list[tuple[bytes, bytes]]

_URGENCIES: Final = 8
_MAX_DIGITS: Final = 18
MAX_REQUEST_ID_CHARS: Final = 200
"""Longest id of a request that is taken over."""
MAX_TENANT_CHARS: Final = 200
"""Longest name of a tenant."""
_HEX: Final = b"0123456789abcdef"
_TRACE_FIELD_CHARS: Final = (2, 32, 16, 2)
_GRPC_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_GRPC_DIGITS: Final = 8
_TOKEN_CHARS: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class TraceParent(NamedTuple):
    """A W3C trace context: where this request hangs in a trace."""

    trace_id: str
    parent_id: str
    sampled: bool


class HeaderFacts(NamedTuple):
    """What cascade reads from a request's headers.

    Attributes:
        inference_header_length: ``Inference-Header-Content-Length`` as it came, for ``parse_json_length``.
        content_length: length of the body on the wire, None if not given.
        content_encoding: how the body is encoded, empty if it is not.
        accept_encoding: how the answer may be encoded, empty if not given.
        timeout_s: the shortest time limit in any header, None if there is none.
        wait_s: what ``Prefer: wait`` asked for (it is in ``timeout_s`` too), None if absent.
        urgency: ``Priority: u``, 0 (most urgent) to 7; None if absent.
        incremental: ``Priority: i``, the client can use an answer in parts.
        request_id: ``X-Request-Id`` where it is short printable ASCII, else None.
        trace: ``Traceparent``, None if absent or malformed.
        tenant: ``Cascade-Tenant`` where it is short printable ASCII, else None.
        event_stream: ``Accept`` prefers an event stream to JSON.
        explain: ``Cascade-Explain: ?1``, the client wants to know why it is answered as it is.
        grant: what its key gives it, put in by whoever knows the keys; None where none is asked for.
    """

    inference_header_length: bytes | None = None
    content_length: int | None = None
    content_encoding: str = ""
    accept_encoding: str = ""
    timeout_s: float | None = None
    wait_s: int | None = None
    urgency: int | None = None
    incremental: bool = False
    request_id: str | None = None
    trace: TraceParent | None = None
    tenant: str | None = None
    event_stream: bool = False
    explain: bool = False
    grant: Grant | None = None


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> HeaderFacts:
    """Collects what cascade reads from a request's headers, in one pass.

    A field given twice reads as its values joined by a comma (RFC 9110, section 5.3).

    Args:
        headers: lower-case names and values, as ASGI gives them.

    Returns:
        The facts. Never fails, whatever the values are.
    """
    given: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            given[name] = given[name] + b", " + value if name in given else value
    limits = [_TIME_LIMITS[name](value) for name, value in given.items() if name in _TIME_LIMITS]
    wait_s = _wait_s(given[b"prefer"]) if b"prefer" in given else None
    if wait_s is not None:
        limits.append(float(wait_s))
    urgency, incremental = _priority(given[b"priority"]) if b"priority" in given else (None, False)
    return HeaderFacts(
        given.get(b"inference-header-content-length"),
        _whole(given[b"content-length"]) if b"content-length" in given else None,
        given.get(b"content-encoding", b"").decode("latin-1"),
        given.get(b"accept-encoding", b"").decode("latin-1"),
        _shortest(limits),
        wait_s,
        urgency,
        incremental,
        _printable(given[b"x-request-id"], MAX_REQUEST_ID_CHARS) if b"x-request-id" in given else None,
        _trace(given[b"traceparent"]) if b"traceparent" in given else None,
        _printable(given[b"cascade-tenant"], MAX_TENANT_CHARS) if b"cascade-tenant" in given else None,
        b"accept" in given and prefers_event_stream(given[b"accept"]),
        b"cascade-explain" in given and given[b"cascade-explain"].strip() == b"?1",
    )


def _shortest(limits: list[float]) -> float | None:
    """The shortest limit that is one: zero and less switch a limit off, and so does NaN."""
    return min((limit for limit in limits if 0.0 < limit < inf), default=None)


def _whole(value: bytes) -> int | None:
    # isdigit is ASCII-only for bytes; the bound keeps int() clear of its own limit on digits.
    value = value.strip()
    return int(value) if value.isdigit() and len(value) <= _MAX_DIGITS else None


def _seconds(value: bytes) -> float:
    try:
        return float(value)
    except ValueError:
        return inf


def _milliseconds(value: bytes) -> float:
    whole = _whole(value)
    return inf if whole is None else whole / 1000.0


def _grpc_seconds(value: bytes) -> float:
    digits, unit = value[:-1], value[-1:]
    if not digits.isdigit() or len(digits) > _GRPC_DIGITS:
        return inf
    return int(digits) * _GRPC_UNITS_S.get(unit, inf) if int(digits) else inf


_TIME_LIMITS: Final[dict[bytes, Callable[[bytes], float]]] = {
    b"x-request-timeout-seconds": _seconds,
    b"x-envoy-expected-rq-timeout-ms": _milliseconds,
    b"grpc-timeout": _grpc_seconds,
    b"x-stainless-read-timeout": _seconds,
}
"""Headers by which clients and proxies say how long they will wait."""

_READ: Final = frozenset(
    {
        b"inference-header-content-length",
        b"accept",
        b"content-length",
        b"content-encoding",
        b"accept-encoding",
        b"prefer",
        b"priority",
        b"x-request-id",
        b"traceparent",
        b"cascade-tenant",
        b"cascade-explain",
        *_TIME_LIMITS,
    }
)


def _wait_s(value: bytes) -> int | None:
    """``wait`` out of a ``Prefer`` header (RFC 7240); the first one counts."""
    for preference in value.split(b","):
        name, _, argument = preference.partition(b";")[0].partition(b"=")
        if name.strip().lower() == b"wait":
            return _whole(argument.strip().strip(b'"')) or None
    return None


def _priority(value: bytes) -> tuple[int | None, bool]:
    """Urgency and incremental out of a ``Priority`` header (RFC 9218); the last of each counts."""
    urgency: int | None = None
    incremental = False
    for member in value.split(b","):
        key, _, argument = member.partition(b";")[0].strip().partition(b"=")
        if key == b"u":
            level = _whole(argument)
            urgency = level if level is not None and level < _URGENCIES else urgency
        elif key == b"i":
            incremental = argument in (b"", b"?1")
    return urgency, incremental


def _printable(value: bytes, most_chars: int) -> str | None:
    text = value.decode("latin-1").strip()
    return text if 0 < len(text) <= most_chars and text.isascii() and text.isprintable() else None


def _trace(value: bytes) -> TraceParent | None:
    fields = value.strip().split(b"-")
    lengths = tuple(map(len, fields[:4]))
    if lengths != _TRACE_FIELD_CHARS or any(field.translate(None, _HEX) for field in fields[:4]):
        return None
    version, trace_id, parent_id, flags = fields[:4]
    if version == b"ff" or (version == b"00" and len(fields) > 4) or not (int(trace_id, 16) and int(parent_id, 16)):
        return None
    return TraceParent(trace_id.decode(), parent_id.decode(), bool(int(flags, 16) & 1))


def parse_json_length(value: bytes | None) -> int | None:
    """Length of the JSON part of a request's body.

    Args:
        value: ``HeaderFacts.inference_header_length``.

    Returns:
        Bytes; None if the header is absent, which means that all of the body is JSON.

    Raises:
        BadRequest: not a whole number.
    """
    if value is None:
        return None
    length = _whole(value)
    if length is None:
        raise BadRequest(
            f"inference-header-content-length must be a whole number of bytes, got {brief(value.decode('latin-1'))}"
        )
    return length


def time_limit_s(facts: HeaderFacts, requested_s: float | None, default_s: float, max_s: float) -> float:
    """How long a request may take: the shortest of what its headers and its parameters say.

    Args:
        facts: the request's headers.
        requested_s: the OIP parameter ``timeout`` in seconds, None if absent.
        default_s: the limit when nobody says anything.
        max_s: the longest limit that the server grants.

    Returns:
        Seconds from the request's arrival, above 0 and at most ``max_s``.
    """
    limit = facts.timeout_s
    if requested_s is not None and (limit is None or requested_s < limit):
        limit = requested_s
    return min(default_s if limit is None else limit, max_s)


def priority_of(facts: HeaderFacts, requested: int | None, priorities: int, default: int) -> int:
    """The class of a request.

    The OIP parameter is taken as it is. The eight urgencies of RFC 9218 are spread evenly, ``1 + u * P // 8``: with four
    classes the RFC's default ``u=3`` is class 2.

    Args:
        facts: the request's headers.
        requested: the OIP parameter ``priority``, None if absent.
        priorities: number of classes P.
        default: the class when nobody says anything.

    Returns:
        1 (most important) to ``priorities``; of a request with a key not above the key's class, which is also the default.
    """
    claimed = requested
    if claimed is None and facts.urgency is not None:
        claimed = 1 + facts.urgency * priorities // _URGENCIES
    if facts.grant is not None:
        return facts.grant.priority if claimed is None else max(claimed, facts.grant.priority)
    return default if claimed is None else claimed


def tenant_of(facts: HeaderFacts, requested: str | None) -> str:
    """For whom a request is: its key's tenant, else what the request says, its parameter before its header.

    Args:
        facts: the request's headers.
        requested: the OIP parameter, None if absent.

    Returns:
        A name; empty if nobody is named.
    """
    if facts.grant is not None:
        return facts.grant.tenant
    return requested or facts.tenant or ""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer came from, for its headers.

    Attributes:
        stage: the stage that answered.
        exit_reason: why the request stopped there.
        degraded: whether the unloaded rule would have asked a dearer stage.
        timings_s: name and seconds of each part of the work, in order.
    """

    stage: str
    exit_reason: str
    degraded: bool
    timings_s: tuple[tuple[str, float], ...] = ()


def answer_headers(
    body_length: int,
    json_length: int | None,
    provenance: Provenance | None = None,
    content_encoding: str | None = None,
    wait_s: int | None = None,
) -> Headers:
    """Headers of a successful answer.

    Args:
        body_length: bytes of the body as sent.
        json_length: bytes of its JSON part before compression, None if all of it is JSON.
        provenance: where the answer came from; None for documents that no stage made.
        content_encoding: how the body is compressed, None if it is not.
        wait_s: the ``Prefer: wait`` that was honoured, None if there was none.

    Returns:
        Names and values for ASGI. Header values cannot be forged through stage names: what a token may not hold becomes
        an underscore.
    """
    headers = [_JSON if json_length is None else _BINARY, (b"content-length", b"%d" % body_length)]
    if json_length is not None:
        headers.append((b"inference-header-content-length", b"%d" % json_length))
    if content_encoding is not None:
        headers.append((b"content-encoding", content_encoding.encode("ascii")))
    if provenance is not None:
        headers.append((b"cascade-stage", _token(provenance.stage)))
        headers.append((b"cascade-exit-reason", _token(provenance.exit_reason)))
        headers.append((b"cascade-degraded", b"?1" if provenance.degraded else b"?0"))
        if provenance.timings_s:
            timings = b", ".join([b"%b;dur=%.2f" % (_token(name), 1e3 * t_s) for name, t_s in provenance.timings_s])
            headers.append((b"server-timing", timings))
    if wait_s is not None:
        headers.append((b"preference-applied", b"wait=%d" % wait_s))
    return headers


_JSON: Final = (b"content-type", b"application/json")
_BINARY: Final = (b"content-type", b"application/octet-stream")


@lru_cache(maxsize=256)
def _token(name: str) -> bytes:
    """A name as an HTTP token (RFC 9110, section 5.6.2)."""
    return "".join(char if char in _TOKEN_CHARS else "_" for char in name).encode("ascii")
