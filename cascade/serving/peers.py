"""The routers of one application as they reach each other over Serve, for people's questions and never for a client's.

Serve has a call to every replica of a deployment, about 2 ms of CPU each; routers decide by what they see themselves.
"""

import os
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cascade.wire.status import RouterReading

_handles: dict[tuple[str, str], DeploymentHandle[Any]] = {}


def replica_name() -> str:
    """What this router process is called in Serve's own lists; after the process where there is no Serve."""
    try:
        return serve.get_replica_context().replica_tag
    except RayServeException:
        return f"process-{os.getpid()}"


async def ask_all() -> Sequence[RouterReading]:
    """The readings of every router of this application that runs, this one among them."""
    context = serve.get_replica_context()
    own = context.deployment, context.app_name
    if own not in _handles:
        _handles[own] = serve.get_deployment_handle(*own)
    replies = await _handles[own].broadcast("reading").results_async(return_exceptions=True)
    return [reply for reply in replies if isinstance(reply, RouterReading)]
