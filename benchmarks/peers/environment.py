"""Environments of the peers: one each, made on demand from a package index, kept, and optional.

Each holds the peer, and what the ladder's own modules need beside it: the same torch and numpy as here, so that the networks
are the same. Knows pip and folders; imports no peer.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PEERS = {"litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.40", "mosec": "mosec==0.9.8"}
"""Exact, so that a table can be made again."""
SAME_AS_HERE = ("torch", "numpy", "safetensors")
BESIDE = ("orjson", "pydantic", "pyyaml", "scipy", "uvloop", "httptools")
"""What the ladder's modules import; uvloop and httptools so that uvicorn runs at its best in every environment."""
LIMIT_S = 900


class Missing(Exception):
    """A peer's environment could not be made; the message says why."""


def default_folder() -> Path:
    """Where environments are kept unless the user says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cascade-benchmark"


def requirements(peer: str) -> list[str]:
    """What to install for a peer. Without its local part, ``+cpu``, a version is one that an index knows."""
    return [PEERS[peer], *(f"{name}=={version(name).partition('+')[0]}" for name in SAME_AS_HERE), *BESIDE]


def is_ready(folder: Path, peer: str) -> bool:
    """Whether the environment was made for these very requirements."""
    marker = folder / peer / "requirements.txt"
    return marker.is_file() and marker.read_text().splitlines() == requirements(peer)


def interpreter(folder: Path, peer: str) -> str:
    """The Python of a peer's environment, which is made if it is not there yet.

    Args:
        folder: where the environments are kept.
        peer: a key of `PEERS`.

    Raises:
        Missing: it could not be made.
    """
    home = folder / peer
    python = home / "bin" / "python"
    if not is_ready(folder, peer):
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements(peer)])
        (home / "requirements.txt").write_text("\n".join(requirements(peer)) + "\n")
    return str(python)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Missing(lines[-1] if lines else f"{command[0]} exited with {done.returncode}")
