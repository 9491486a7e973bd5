"""Which systems stand beside each other, how each is started, and the settings of it that are worth comparing. Data, mostly.

Knows commands, environments and forms of requests; starts nothing and measures nothing. The first setting of a system is the
one that is measured; ``--tune`` compares it with the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ladders import Bench
from benchmarks.peers.settings import BATCH, LATENCY_MS, SPEC, WORKERS
from cascade.serving.environment import FAST_PATH, HAPROXY_PORTS, free_port

ROOT = Path(__file__).resolve().parents[1]
"""On the path of every process that is started, in whichever environment."""


@dataclass(frozen=True)
class Setting:
    """What a user may choose in a system.

    Attributes:
        name: how the system's own documents call it.
        arguments: for its command line.
        environ: for its environment.
    """

    name: str
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """How to start a system: a command, and what to add to its environment."""

    command: list[str]
    environ: dict[str, str]


@dataclass(frozen=True)
class Contender:
    """One system.

    Attributes:
        name: as in ``--only``, in tables and in the document.
        what: what it is, for a reader of the tables.
        start: from the interpreter to use, the ladder, the port and the setting, how to start it.
        form: which of a ladder's messages it takes.
        settings: those to compare, the one that is measured first.
        peer: name of its environment; None if it runs in ours.
        settle_s: seconds from its first answer until it has settled.
        answers: whether it answers with labels; a floor need not.
        whole_ladder: whether it is measured on the whole ladder too.
    """

    name: str
    what: str
    start: Callable[[str, Bench, int, Setting], Start]
    form: str
    settings: tuple[Setting, ...] = (Setting("defaults"),)
    peer: str | None = None
    settle_s: float = 0.5
    answers: bool = True
    whole_ladder: bool = True


HAPROXY_SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of the router; the old one closes its connections."""
ONE_MACHINE = {
    # As `cascade serve` sets them: none of these three is to make the difference.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.2",
}
DIRECT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Throughput-optimised without HAProxy: clients speak to the one router's own port."""


def _module(python: str, name: str, *arguments: str) -> list[str]:
    return [python, "-m", name, *arguments]


def _cascade(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    return Start(_module(python, "cascade.cli", "serve", str(bench.spec), "--port", str(port), *setting.arguments), {})


def _by_hand(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    return Start(
        _module(python, "benchmarks.handwritten", str(bench.spec), "--port", str(port), *setting.arguments),
        dict(setting.environ),
    )


def _by_hand_tuned(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    direct = "RAY_SERVE_ENABLE_HA_PROXY" not in setting.environ
    # With direct ingress the router itself listens where the client asks, and Serve's proxy, which starts all the same,
    # somewhere else.
    start = _by_hand(python, bench, free_port() if direct else port, setting)
    start.environ.update(ONE_MACHINE)
    if direct:
        start.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(port)
    else:
        start.environ.update({name: str(free_port()) for name in HAPROXY_PORTS})
    start.command.append("--lean")
    return start


def _litserve(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    command = _module(python, "benchmarks.peers.litserve_server", str(bench.spec), "--port", str(port))
    return Start([*command, *setting.arguments], {})


def _mosec(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    command = _module(python, "benchmarks.peers.mosec_server", str(bench.spec), "--port", str(port))
    return Start([*command, *setting.arguments], {})


def _bentoml(python: str, bench: Bench, port: int, setting: Setting) -> Start:
    service = "benchmarks.peers.bentoml_service:Cascade"
    command = _module(python, "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port))
    own = {SPEC: str(bench.spec), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(bench.spec.parent / "bentoml")}
    return Start([*command, "--working-dir", str(ROOT)], {**own, **setting.environ})


def _http_floor(python: str, bench: Bench, port: int, _setting: Setting) -> Start:
    spec = bench.ladder.spec
    arguments = ["--model", spec.name, "--stage", spec.stages[0].name, "--port", str(port)]
    return Start(_module(python, "benchmarks.peers.http_floor", *arguments), {})


def _ongoing(count: int, wait_s: float | None, environ: Mapping[str, str] | None = None) -> Setting:
    """A setting of the hand-written cascade; ``wait_s`` None for stages without `@serve.batch`."""
    name, arguments = f"max_ongoing_requests={count}", ["--stage-ongoing", str(count)]
    if wait_s is None:
        name, arguments = f"{name}, no @serve.batch", [*arguments, "--no-batched"]
    else:
        name, arguments = f"{name}, batch_wait_timeout_s={wait_s:g}", [*arguments, "--wait-s", str(wait_s)]
    if environ is not None:
        name = f"{'HAProxy' if 'RAY_SERVE_ENABLE_HA_PROXY' in environ else 'direct ingress'}, {name}"
    return Setting(name, arguments, environ or {})


def _lit(workers: int, batch: int, wait_s: float, zmq: bool) -> Setting:
    name = f"workers_per_device={workers}, max_batch_size={batch}, batch_timeout={wait_s:g}, fast_queue={zmq}"
    arguments = ["--workers", str(workers), "--batch", str(batch), "--wait-s", str(wait_s), "--zmq" if zmq else "--no-zmq"]
    return Setting(name, arguments)


def _rust(workers: int, batch: int, wait_ms: int) -> Setting:
    name = f"num={workers}, max_batch_size={batch}, max_wait_time={wait_ms}"
    return Setting(name, ["--workers", str(workers), "--batch", str(batch), "--wait-ms", str(wait_ms)])


def _bento(workers: int, batch: int, latency_ms: int) -> Setting:
    name = f"workers={workers}, max_batch_size={batch}, max_latency_ms={latency_ms}"
    return Setting(name, (), {WORKERS: str(workers), BATCH: str(batch), LATENCY_MS: str(latency_ms)})


ROSTER = (
    Contender(
        "by-hand",
        "Ray Serve as its user would write it, with its defaults: a router deployment that calls one stage deployment a "
        "rung for each request, `@serve.batch` in the stages",
        _by_hand,
        "raw",
        (_ongoing(128, 0.0), _ongoing(128, 0.005), _ongoing(32, 0.0), _ongoing(32, 0.01)),
        settle_s=HAPROXY_SETTLE_S,
    ),
    Contender(
        "by-hand-tuned",
        "the same with every setting by which Serve promises throughput: throughput-optimised, no access log, plain pickle "
        "and gRPC between the deployments, no Python proxy",
        _by_hand_tuned,
        "raw",
        (
            _ongoing(128, None, DIRECT),
            _ongoing(128, 0.0, DIRECT),
            _ongoing(128, 0.002, DIRECT),
            _ongoing(128, None, FAST_PATH),
            _ongoing(32, None, DIRECT),
        ),
        settle_s=HAPROXY_SETTLE_S,
    ),
    Contender(
        "litserve",
        "LitServe, the cascade in `predict`, its own batches, ZeroMQ between its processes",
        _litserve,
        "raw",
        (
            _lit(1, 128, 0.0, True),
            _lit(1, 128, 0.001, True),
            _lit(1, 128, 0.005, True),
            _lit(2, 128, 0.001, True),
            _lit(1, 128, 0.001, False),
        ),
        peer="litserve",
    ),
    Contender(
        "bentoml",
        "BentoML, the cascade in a batchable method, its own adaptive batches; images as base64 in JSON",
        _bentoml,
        "base64",
        (_bento(2, 128, 60_000), _bento(1, 128, 60_000), _bento(1, 128, 100)),
        peer="bentoml",
    ),
    Contender(
        "mosec",
        "mosec, the cascade in a worker's `forward`, its own batches",
        _mosec,
        "raw",
        (_rust(1, 32, 1), _rust(1, 128, 1), _rust(1, 128, 5), _rust(2, 128, 1)),
        peer="mosec",
    ),
    Contender("cascade", "what `cascade serve` starts", _cascade, "protocol", settle_s=HAPROXY_SETTLE_S),
    Contender(
        "http-floor",
        "a bare ASGI application on uvicorn (uvloop, httptools, one process) that reads the same binary request and answers "
        "in the same form, without a model",
        _http_floor,
        "protocol",
        answers=False,
        whole_ladder=False,
    ),
)
"""All that are servers, in the order of a round."""
COMPUTE_FLOOR = "compute-floor"
"""The one that is none: a bare loop over batches, see `peers.compute_floor`."""
