"""Commands that run a server on this machine: serve, and demo.

Ray reads its environment when it is imported, so these commands set it first and import the serving floor inside.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cascade.cli.console import console, errors, usage_errors
from cascade.serving.environment import apply_local
from cascade.spec import Ladder

SpecPath = Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
GrpcPort = Annotated[
    int | None, typer.Option(help="Port to listen on for gRPC; without it there is no gRPC.", min=1, max=65535)
]
ThroughServe = Annotated[
    bool, typer.Option("--through-serve", help="Let Serve listen, with HAProxy as on a cluster, instead of the routers.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the logs of Ray and of the replicas.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command()(demo)


def serve(
    spec: SpecPath,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    grpc_port: GrpcPort = None,
    through_serve: ThroughServe = False,
    verbose: Verbose = False,
) -> None:
    """Serve a ladder on this machine, in the foreground; Ctrl-C stops it."""
    with usage_errors(), started(spec, host, port, verbose, grpc_port, through_serve) as (ladder, url):
        stop = stop_on_signals()
        console.print(f"  curl {url}/v2/models/{ladder.spec.name}", highlight=False)
        if grpc_port is not None:
            console.print(f"  gRPC at {host}:{grpc_port}", highlight=False)
        console.print("Ctrl-C stops it")
        stop.wait()


def demo(
    spec: SpecPath,
    rows: Annotated[int, typer.Option(help="Test rows to send.", min=1)] = 10_000,
    connections: Annotated[int, typer.Option(help="Requests in flight at a time.", min=1, max=1024)] = 16,
    port: Port = 8000,
    verbose: Verbose = False,
) -> None:
    """Serve a ladder, send its real test rows through HTTP, and show what came back."""
    with usage_errors(), started(spec, "127.0.0.1", port, verbose) as (ladder, url):
        from cascade.cli.showing import show

        show(ladder, url, rows, connections, stop_on_signals())


@contextmanager
def started(
    spec: Path, host: str, port: int, verbose: bool, grpc_port: int | None = None, through_serve: bool = False
) -> Iterator[tuple[Ladder, str]]:
    """A running server, and what a person wants to see while it starts and stops."""
    apply_local(os.environ, through_serve=through_serve)
    ladder = Ladder.read(spec)
    began = time.perf_counter()
    with ExitStack() as stack:
        with errors.status(f"starting Ray and {len(ladder.spec.stages)} stages"):
            from cascade.serving.local import running

            url = stack.enter_context(
                running(spec, host=host, port=port, grpc_port=grpc_port, verbose=verbose, through_serve=through_serve)
            )
        console.print(f"[green]serving[/green] {ladder.spec.name} at {url} after {time.perf_counter() - began:.1f} s")
        try:
            yield ladder, url
        finally:
            errors.print("stopping")
    errors.print("stopped")


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set. Ray installs handlers of its own when it starts, so this comes after."""
    stop = threading.Event()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
