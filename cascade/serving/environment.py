"""The environment variables that put Ray Serve on its fast path. Imports nothing of Ray, which reads them when imported.

They belong to the processes that start Ray, on every node, before it starts: `cascade serve` sets them itself, a cluster
gets them from ``deployments/serve.env``. Without the fast path everything works and each request costs about ten times the
CPU.
"""

import secrets
import socket
from collections.abc import Mapping, MutableMapping

CALLS: dict[str, str] = {
    # Router and user code share one event loop, handle calls travel by gRPC, request logs are buffered.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
FAST_PATH: dict[str, str] = CALLS | {
    # Clients speak through HAProxy to the router's HTTP port, past Serve's Python proxy. Of no use to a router that listens
    # itself.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
}

GRPC: dict[str, str] = {
    # Calls beyond this many on one connection, which is all that a gRPC client has, would wait in the client, where no
    # deadline and no class counts. Serve's default is 100.
    "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1000",
    # gRPC reads, and inflates, a message to its end before anybody can refuse it; Serve's default is 2 GiB. This is twice
    # the default of the spec's max_body_bytes, which a router checks afterwards: raise this with it.
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 << 20),
}

ONE_MACHINE: dict[str, str] = {
    # Nobody balances load over a server that a person stops with Ctrl-C: no need to drain for Serve's 30 s.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    # HAProxy's own figures, which nobody reads here, and its four threads cost a tenth of the CPU of a small request.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Ray starts its workers at nice 15: beside anything else that computes, such as a load client, a thirtieth of a core.
    "RAY_worker_niceness": "0",
}

HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def apply_local(environ: MutableMapping[str, str], *, through_serve: bool = False) -> None:
    """Set what a server on this machine wants, where the operator has not: fast path, bounds, quick stop, an own token.

    Args:
        environ: the environment to change.
        through_serve: whether clients come in through Serve, and not to routers that listen themselves.
    """
    for name, value in ((FAST_PATH | GRPC if through_serve else CALLS) | ONE_MACHINE).items():
        environ.setdefault(name, value)
    for name in HAPROXY_PORTS:
        # Serve's defaults are fixed ports, which a second server on the machine, or one that is just stopping, holds.
        environ.setdefault(name, str(free_port()))
    if "RAY_AUTH_MODE" not in environ:
        # Left to itself Ray writes a token into the home directory, which changes how the next `ray start` behaves there.
        environ["RAY_AUTH_MODE"] = "token"
        environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def slow_path_warning(environ: Mapping[str, str], *, listens: bool = False) -> str | None:
    """What to tell an operator whose Ray was started without the fast path; None if it was.

    Args:
        environ: the environment of a replica.
        listens: whether routers listen themselves.
    """
    missing = [name for name, value in (CALLS if listens else FAST_PATH).items() if environ.get(name) != value]
    if not missing:
        return None
    return (
        f"Ray was started without {' and '.join(missing)}: the server works, but each request costs several times the CPU; "
        "start Ray with the variables of deployments/serve.env"
    )
