"""Where log lines of this package go in a replica: into Serve's own log of it, in the form that Serve was told."""

import logging
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from cascade.spec import CascadeSpec

SERVES = "ray.serve"


class ToServe(logging.Handler):
    """Hands records to Serve's logger, whose handlers may change while the replica lives.

    Args:
        name: of that logger.
    """

    def __init__(self, name: str = SERVES) -> None:
        super().__init__()
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record over."""
        logger = logging.getLogger(self._name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
            for handler in logger.handlers:
                handler.flush()  # on its fast path Serve holds a thousand lines back, and these are few


def log_to_serve() -> None:
    """Let the log lines of this package go to Serve's log; does nothing outside a replica, or the second time."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return
    ours = logging.getLogger("cascade")
    if any(isinstance(handler, ToServe) for handler in ours.handlers):
        return
    ours.addHandler(ToServe())
    ours.setLevel(logging.INFO)
    ours.propagate = False  # else each line would also go to the worker's stderr


def logging_config(spec: CascadeSpec) -> LoggingConfig:
    """How replicas log: no line for a request, which would cost about a tenth of its CPU; counters tell the same."""
    form: dict[str, Any] = {"encoding": "JSON"} if spec.telemetry.logs == "json" else {}  # else what Serve has
    return LoggingConfig(enable_access_log=False, **form)
