"""The shipped server against the same cascade written by hand on Ray Serve: one command, one machine, the same answers.

    python benchmarks/serving.py

Measures throughput, latency and CPU of both at 1, 32 and 128 connections, on the two cheapest rungs (where serving is
compared, not arithmetic) and on the whole ladder; prints the table, and writes it into docs/results.md.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from handwritten_settings import SETTINGS
from ladders import Bench, derive
from measure import Given, accuracy, check, measure, router_memory
from rich.console import Console
from systems import System, SystemFailed
from tables import show, targets, write_section

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deployments" / "fashion" / "cascade.yaml"
CONNECTIONS = (1, 32, 128)
SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of the router; the old one closes its connections."""
SYSTEMS = ("by hand", "cascade")

console = Console()


