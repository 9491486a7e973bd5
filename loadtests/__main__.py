"""Serve one of the baselines on this machine until Ctrl-C.

    python -m loadtests static SPEC --port 8000

Ray reads its environment when it is imported, so this sets it first and imports the baselines inside, as `cascade serve`
does.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from cascade.serving.environment import apply_local

THROUGH_SERVE = ("top",)
"""Those that clients reach through Serve; the others listen themselves, as the product does."""


def main(
    name: Annotated[Literal["static", "top"], typer.Argument(help="Which baseline.")],
    spec: Annotated[Path, typer.Argument(help="The ladder's cascade.yaml.", show_default=False)],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve a baseline on this machine, in the foreground; Ctrl-C stops it."""
    through_serve = name in THROUGH_SERVE
    apply_local(os.environ, through_serve=through_serve)
    from cascade.serving.local import running
    from loadtests.baselines import BUILDERS

    with running(spec, port=port, build=BUILDERS[name], through_serve=through_serve):
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(f"{name} serves {spec} on port {port}; Ctrl-C stops it", flush=True)
        stop.wait()


if __name__ == "__main__":
    typer.run(main)
