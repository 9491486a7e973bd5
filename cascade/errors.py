"""Every error that cascade shows to a person or a client. Knows nothing of HTTP, Ray or torch.

CascadeError                     500 internal
├── BadRequest                   400 bad_request          the client's message is wrong
│   ├── PayloadTooLarge          413 payload_too_large
│   ├── UnsupportedMediaType     415 unsupported_media_type
│   ├── UnprocessableRow         422 unprocessable_row    the first stage fails on this row and on no others
│   ├── HeadersTooLarge          431 headers_too_large
│   └── TooSlow                  408 request_timeout      headers or body did not come in time
├── Unauthorized                 401 unauthorized         no key, or one that is not known
├── Forbidden                    403 forbidden            the key does not open this
├── TooManyRequests              429 too_many_requests    of one client at a time; carries retry_after_s
├── UnknownModel                 404 unknown_model
├── UnknownRoute                 404 unknown_route
├── UnknownRequest               404 unknown_request      no explanation of it is kept here
├── MethodNotAllowed             405 method_not_allowed   carries the allowed methods
├── NotReady                     503 not_ready
├── Overloaded                   503 overloaded           shed before stage 0; carries retry_after_s
├── DeadlineExceeded             504 deadline_exceeded    passed before any stage had answered
├── StageFailed                  502 stage_failed         the first stage failed, more than once, and there is no answer
├── ServerUnreachable            (exit code 2)            a command asked a server or a cluster that does not answer
└── ConfigError                  (exit code 2)            a file the operator wrote or made is wrong
    ├── SpecError                invalid_spec
    ├── TableError               invalid_table
    └── CalibrationMismatch      calibration_mismatch     made from other weights or another spec

The status is what an HTTP client sees; the code is stable and is what programs should match on.
"""

from typing import ClassVar


class CascadeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        detail: one sentence for a person, naming what was expected and what came.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(CascadeError):
    """The client's message is malformed or does not fit the model's signature."""

    status = 400
    code = "bad_request"
    title = "Bad request"


class PayloadTooLarge(BadRequest):
    """The body, or what it inflates to, is over the configured limit."""

    status = 413
    code = "payload_too_large"
    title = "Payload too large"


class UnsupportedMediaType(BadRequest):
    """A content encoding that the server does not decode."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class UnprocessableRow(BadRequest):
    """The first stage fails on this row and not on others: to send it again is of no use."""

    status = 422
    code = "unprocessable_row"
    title = "Unprocessable row"


class HeadersTooLarge(BadRequest):
    """Request line and headers are over the configured limit."""

    status = 431
    code = "headers_too_large"
    title = "Request header fields too large"


class TooSlow(BadRequest):
    """The headers or the body of a request did not come in time."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class Unauthorized(CascadeError):
    """The server asks for a key, and the request has none, or one that is not known."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class Forbidden(CascadeError):
    """The key is known and does not open this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"


class TooManyRequests(CascadeError):
    """One client has more requests under way than it may have.

    Args:
        detail: one sentence.
        retry_after_s: when to come back, whole seconds.
    """

    status = 429
    code = "too_many_requests"
    title = "Too many requests"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class UnknownModel(CascadeError):
    """No such model or version is served here."""

    status = 404
    code = "unknown_model"
    title = "Unknown model"


class UnknownRoute(CascadeError):
    """No such path."""

    status = 404
    code = "unknown_route"
    title = "Not found"


class UnknownRequest(CascadeError):
    """No explanation of a request with this id is kept by this router."""

    status = 404
    code = "unknown_request"
    title = "Unknown request"


class MethodNotAllowed(CascadeError):
    """The path exists, the method does not.

    Args:
        detail: one sentence.
        allowed: the methods that do exist, for the ``Allow`` header.
    """

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"

    def __init__(self, detail: str, allowed: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class NotReady(CascadeError):
    """The cheapest stage has not finished loading."""

    status = 503
    code = "not_ready"
    title = "Not ready"


class Overloaded(CascadeError):
    """Shed at the door: stage 0 could not have begun in time.

    Args:
        detail: one sentence.
        retry_after_s: when to come back, whole seconds, already jittered.
        hold_s: seconds for which the server keeps this answer back.
    """

    status = 503
    code = "overloaded"
    title = "Overloaded"

    def __init__(self, detail: str, retry_after_s: int, hold_s: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.hold_s = hold_s


class DeadlineExceeded(CascadeError):
    """The deadline passed before any stage had an answer."""

    status = 504
    code = "deadline_exceeded"
    title = "Deadline exceeded"


class StageFailed(CascadeError):
    """The first stage failed, was tried again, and failed again; no answer exists."""

    status = 502
    code = "stage_failed"
    title = "Stage failed"


class ServerUnreachable(CascadeError):
    """A server or cluster that a command was pointed at does not answer, or is something else; commands exit with code 2."""

    code = "server_unreachable"
    title = "Not reachable"


class ConfigError(CascadeError):
    """A file that an operator wrote or made cannot be used; commands exit with code 2."""

    code = "invalid_config"
    title = "Invalid configuration"


class SpecError(ConfigError):
    """The YAML spec is wrong; the message names field, value and what is allowed."""

    code = "invalid_spec"
    title = "Invalid spec"


class TableError(ConfigError):
    """An outcome table is wrong; the message names the array and the row."""

    code = "invalid_table"
    title = "Invalid outcome table"


class CalibrationMismatch(ConfigError):
    """A calibration was made from other weights, other stages or another precision."""

    code = "calibration_mismatch"
    title = "Calibration does not belong to this ladder"
