"""A Ray and a Serve on this machine, for `cascade serve`, the demo and the tests. Knows one ladder at a time.

`apply_local` must have run before this module is imported: Ray reads its environment at import.
"""

import io
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import ray
import torch
from ray import serve

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.app import AppArgs, build, spec_argument
from cascade.serving.grpc_methods import SERVICER_FUNCTION
from cascade.spec import CascadeSpec, Ladder, StageSpec

OBJECT_STORE_BYTES = 200 << 20
"""Ray's smallest comfortable store: batches travel inside the calls, so nothing of size goes through it."""


@contextmanager
def running(
    spec_path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    verbose: bool = False,
    build: Callable[[AppArgs], serve.Application] = build,
    through_serve: bool = False,
) -> Iterator[str]:
    """Serve a ladder on this machine for as long as the context lasts.

    Args:
        spec_path: the ladder's YAML file.
        host: address to listen on.
        port: port to listen on.
        grpc_port: port to listen on for gRPC; None for no gRPC.
        verbose: whether to show the logs of the replicas.
        build: builds the application.
        through_serve: whether Serve listens there, with its proxy; else the routers do.

    Yields:
        The URL of the server, which answers.

    Raises:
        ConfigError: the spec or an artefact is wrong, a port is taken or given twice, or there are too few GPUs.
    """
    require_free(host, port, "--port")
    if grpc_port == port:
        raise ConfigError(f"HTTP and gRPC cannot both listen on port {port}; choose another --grpc-port")
    if grpc_port is not None:
        require_free(host, grpc_port, "--grpc-port")
    http, grpc = Address(host, port), None if grpc_port is None else Address(host, grpc_port)
    application = build(spec_argument(spec_path) if through_serve else spec_argument(spec_path, http, grpc))
    spec = Ladder.read(spec_path).spec
    require_gpus(spec, torch.cuda.device_count())
    needed = cpus_needed(spec)
    if not verbose:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        ray.init(
            address="local",
            # Ray's CPUs are a count for placement: a ladder that asks for more than there are still runs here, slower.
            num_cpus=max(os.cpu_count() or 1, needed),
            # Custom resources tell a cluster's nodes apart; here there is one, which stands for all of them.
            resources=custom_resources(spec),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=verbose,
            log_to_driver=verbose,
        )
        if through_serve:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                grpc_options=None if grpc_port is None else grpc_options(grpc_port),
            )
        else:
            serve.start(proxy_location="Disabled")
        serve.run(application, name="cascade", route_prefix="/")
        yield f"http://{http}"
    finally:
        # Serve's controller is killed in the middle of its last call, which Ray reports at length as a failed task.
        with ExitStack() as silence:
            if not verbose:
                silence.enter_context(redirect_stdout(io.StringIO()))
                silence.enter_context(redirect_stderr(io.StringIO()))
            with suppress(Exception):
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def grpc_options(port: int) -> dict[str, object]:
    """Serve's options for gRPC on a port; the same as in ``deployments/*/serve.yaml``.

    No reflection: Serve's looks names up in protobuf's default pool, where the protocol's messages are not.
    """
    return {"port": port, "grpc_servicer_functions": [SERVICER_FUNCTION], "enable_reflection": False}


def require_free(host: str, port: int, option: str = "--port") -> None:
    """Raise unless a server could listen there.

    Args:
        host: the address.
        port: the port.
        option: by which the operator chooses another port.

    Raises:
        ConfigError: it could not.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another {option}") from error


def require_gpus(spec: CascadeSpec, here: int) -> None:
    """Raise if the ladder's replicas reserve more GPUs than there are: Serve would wait for them without end.

    Args:
        spec: the ladder.
        here: GPUs of this machine.

    Raises:
        ConfigError: they do.
    """
    needed = sum(stage.replicas * stage.num_gpus for stage in spec.stages)
    if needed > here:
        raise ConfigError(
            f"the replicas of the stages reserve {needed:g} GPUs, this machine has {here}; lower num_gpus or replicas"
        )


def cpus_needed(spec: CascadeSpec) -> int:
    """CPUs that the ladder's replicas reserve when there are as many of them as may be, rounded up."""
    total = spec.router.replicas * spec.router.num_cpus
    total += sum(most * stage.num_cpus for stage, most in _most_replicas(spec))
    return -int(-total // 1)


def custom_resources(spec: CascadeSpec) -> dict[str, float]:
    """Custom resources that the ladder's replicas reserve when there are as many of them as may be, by name."""
    total: dict[str, float] = defaultdict(float)
    for name, amount in spec.router.resources.items():
        total[name] += spec.router.replicas * amount
    for stage, most in _most_replicas(spec):
        for name, amount in stage.resources.items():
            total[name] += most * amount
    return dict(total)


def _most_replicas(spec: CascadeSpec) -> list[tuple[StageSpec, int]]:
    return [(stage, stage.max_replicas or stage.replicas) for stage in spec.stages if stage.placement == "replica"]
