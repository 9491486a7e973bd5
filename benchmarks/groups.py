"""What a stack frame, a thread or a process is for: the grouping of profiles, all of it. Data and one look-up.

A frame belongs to the first rule whose text its path contains; a stack to its innermost frame that any rule knows, so that a
call into the standard library, or into C, is charged to whoever made it.
"""

from collections.abc import Sequence

TORCH = "torch"
CODEC = "our HTTP surface and codec"
POLICY = "our policy"
ROUTER = "our router"
RULE = "exit rule"
HTTP = "HTTP"
WRAPPER = "Serve's replica wrapper"
HANDLES = "Serve's handles"
RPC = "calls between processes"
METRICS = "metrics and tracing"
LOOP = "event loop and sockets"
OTHER = "other"

FRAMES = (
    ("torch/", TORCH),
    ("cascade/models/", TORCH),
    ("cascade/wire/", CODEC),
    ("cascade/serving/ingress.py", CODEC),
    ("cascade/policy/gain.py", RULE),
    ("cascade/policy/price.py", RULE),
    ("cascade/policy/", POLICY),
    ("cascade/serving/telemetry.py", METRICS),
    ("cascade/serving/", ROUTER),
    ("benchmarks/peers/predict.py", RULE),
    ("benchmarks/peers/http_floor.py", "its own application"),
    ("benchmarks/", "its own code"),
    ("opentelemetry/", METRICS),
    ("prometheus_client/", METRICS),
    ("opencensus/", METRICS),
    ("ray/util/metrics.py", METRICS),
    ("ray/serve/metrics.py", METRICS),
    ("ray/serve/_private/metrics", METRICS),
    ("uvicorn/", HTTP),
    ("starlette/", HTTP),
    ("fastapi/", HTTP),
    ("aiohttp/", HTTP),
    ("h11/", HTTP),
    ("ray/serve/batching.py", "@serve.batch"),
    ("ray/serve/handle.py", HANDLES),
    ("ray/serve/_private/router.py", HANDLES),
    ("ray/serve/_private/request_router/", HANDLES),
    ("ray/serve/_private/replica_result.py", HANDLES),
    ("ray/serve/_private/proxy", "Serve's Python proxy"),
    ("ray/serve/", WRAPPER),
    ("grpc/", RPC),
    ("zmq/", RPC),
    ("multiprocessing/", RPC),
    ("ray/", RPC),
    ("litserve/", "LitServe"),
    ("_bentoml_impl/", "BentoML"),
    ("_bentoml_sdk/", "BentoML"),
    ("bentoml/", "BentoML"),
    ("simple_di/", "BentoML"),
    ("pydantic/", "validation"),
    ("anyio/", "thread hops"),
    ("concurrent/futures/", "thread hops"),
    ("mosec/", "mosec's worker"),
    ("asyncio/", LOOP),
    ("selectors.py", LOOP),
    ("threading.py", LOOP),
)
"""Text of a path, and its group; the first that fits counts."""

THREADS = (
    ("grpc", RPC),
    ("event_engine", RPC),
    ("nexting_thread", RPC),
    ("server.poll", RPC),
    ("client.poll", RPC),
    ("worker.io", RPC),
    ("gcs_client", RPC),
    ("ZMQ", RPC),
    ("jemalloc", "allocator"),
)
"""Beginnings of the names of threads that run no Python."""

PROCESSES = (
    ("haproxy", "HAProxy"),
    ("mosec", "mosec's Rust server"),
    ("raylet", "Ray's daemons"),
    ("gcs_server", "Ray's daemons"),
    ("ray::ServeController", "Ray's daemons"),
    ("ray::ProxyActor", "Serve's Python proxy"),
    ("ray::", "other processes of Ray"),
    ("python", "other Python processes"),
)
"""Beginnings of the kinds of processes whose stacks are not sampled."""


def of_stack(paths: Sequence[str]) -> str:
    """The group of a stack, from the paths of its frames, outermost first."""
    for path in reversed(paths):
        for text, group in FRAMES:
            if text in path:
                return group
    return OTHER


def of_thread(name: str) -> str:
    """The group of a thread that runs no Python."""
    return next((group for beginning, group in THREADS if name.startswith(beginning)), "native threads")


def of_process(kind: str) -> str:
    """The group of a process whose stacks are not sampled."""
    return next((group for beginning, group in PROCESSES if kind.startswith(beginning)), kind)
