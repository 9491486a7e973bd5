"""Commands that run a server on this machine: serve, and demo.

Ray reads its environment when it is imported, so these commands set it first and import the serving floor inside.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from cascade.cli.console import console, errors, usage_errors
from cascade.serving.environment import apply_fast_path
from cascade.spec import Ladder

SpecPath = Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the logs of Ray and of the replicas.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command()(demo)


def serve(spec: SpecPath, host: Host = "127.0.0.1", port: Port = 8000, verbose: Verbose = False) -> None:
    """Serve a ladder on this machine, in the foreground; Ctrl-C stops it."""
    apply_fast_path(os.environ)
    stop = stop_on_signals()
    with usage_errors():
        ladder = Ladder.read(spec)
        started = time.perf_counter()
        with errors.status(f"starting Ray and {len(ladder.spec.stages)} stages"):
            from cascade.serving.local import running

            server = running(spec, host=host, port=port, verbose=verbose)
            url = server.__enter__()
        try:
            console.print(f"[green]serving[/green] {ladder.spec.name} at {url} after {time.perf_counter() - started:.1f} s")
            console.print(f"  curl {url}/v2/models/{ladder.spec.name}", highlight=False)
            console.print("Ctrl-C stops it")
            stop.wait()
        finally:
            errors.print("stopping")
            server.__exit__(None, None, None)


def demo(
    spec: SpecPath,
    rows: Annotated[int, typer.Option(help="Test rows to send.", min=1)] = 10_000,
    connections: Annotated[int, typer.Option(help="Requests in flight at a time.", min=1, max=1024)] = 16,
    port: Port = 8000,
    verbose: Verbose = False,
) -> None:
    """Serve a ladder, send its real test rows through HTTP, and show what came back."""
    apply_fast_path(os.environ)
    stop = stop_on_signals()
    with usage_errors():
        from cascade.cli.showing import show

        ladder = Ladder.read(spec)
        started = time.perf_counter()
        with errors.status(f"starting Ray and {len(ladder.spec.stages)} stages"):
            from cascade.serving.local import running

            server = running(spec, port=port, verbose=verbose)
            url = server.__enter__()
        try:
            console.print(f"[green]serving[/green] {ladder.spec.name} at {url} after {time.perf_counter() - started:.1f} s")
            show(ladder, url, rows, connections, stop)
        finally:
            server.__exit__(None, None, None)
            console.print("stopped")


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second one ends the process at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return stop
