"""How soon a client that watches sees something: the first event of a stream beside a plain answer of the first stage.

    python -m benchmarks.streaming [--rounds 5] [--requests 1000] [--out FILE]

Serves the shipped ladder on this machine and asks over one kept connection, one request at a time, four kinds in random
order, with images of the test rows that a certain stage stops when nothing is loaded:

    plain            an image that leaves at the first stage, one answer
    stream           the same image, as an event stream, which is one event
    preliminary      an image that goes on, as an event stream, until its first event is there
    goes on, plain   the same image, one answer; beside it, the last event of the stream before

Each request is the same JSON but for its path, encoded beforehand. The time of an event is from the first byte sent until it
is complete. What is promised: the median of ``preliminary`` is at most 1.2 times that of ``plain``.
"""

import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.systems import System
from cascade.calibration.artefact import Calibration
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.rows import read_rows
from cascade.spec import Ladder

SPEC = Path(__file__).resolve().parent.parent / "deployments" / "fashion" / "cascade.yaml"
TARGET = 1.2
WARM = 200
"""Requests of each kind before anything is measured."""

console = Console()


@dataclass(frozen=True)
class Round:
    """Milliseconds, medians and 99th percentiles of one round.

    Attributes:
        plain: a plain answer of the first stage.
        plain_p99: see above.
        stream: the only event of the same image.
        preliminary: the first event of an image that goes on.
        preliminary_p99: see above.
        last: the last event of that stream.
        goes_on: the plain answer for that image.
        events: events of that stream, mean.
    """

    plain: float
    plain_p99: float
    stream: float
    preliminary: float
    preliminary_p99: float
    last: float
    goes_on: float
    events: float

    @property
    def ratio(self) -> float:
        """What is promised to be at most `TARGET`."""
        return self.preliminary / self.plain


class Connection:
    """A kept connection that notes when things came."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def plain(self, request: bytes) -> float:
        """Seconds until a plain answer was complete."""
        begun = perf_counter()
        self._socket.sendall(request)
        held = self._more(b"")
        while (end := held.find(b"\r\n\r\n")) < 0:
            held = self._more(held)
        _expect_ok(held)
        length = int(held[:end].lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(held) < end + 4 + length:
            held = self._more(held)
        return perf_counter() - begun

    def stream(self, request: bytes) -> tuple[float, float, int]:
        """Seconds until the first event was complete and until the last was, and how many there were."""
        begun = perf_counter()
        self._socket.sendall(request)
        held = self._more(b"")
        while b"\n\n" not in held:
            held = self._more(held)
        first_s = perf_counter() - begun
        _expect_ok(held)
        while b'"cascade_final":true' not in held or not held.endswith(b"\n\n\r\n0\r\n\r\n"):
            held = self._more(held)
        return first_s, perf_counter() - begun, held.count(b"data: ")

    def _more(self, held: bytes) -> bytes:
        got = self._socket.recv(1 << 18)
        if not got:
            raise ConnectionError("the server closed the connection")
        return held + got


def _expect_ok(answer: bytes) -> None:
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"expected 200, got {answer[:200]!r}")


def requests_of(ladder: Ladder, images: np.ndarray, stream: bool) -> list[bytes]:
    """Whole HTTP messages, one for each image."""
    path = f"/v2/models/{ladder.spec.name}/{'infer_stream' if stream else 'infer'}"
    found = []
    for image in images:
        tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "UINT8", "data": image.ravel().tolist()}
        body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 20_000_000}}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        found.append(head.encode() + body)
    return found


def measure(connection: Connection, kinds: Sequence[list[bytes]], requests: int) -> Round:
    """Ask for all kinds so many times, each time in another random order: each leaves the server in another state."""
    plain_early, stream_early, stream_late, plain_late = kinds
    times, random = np.zeros((requests, 6)), np.random.default_rng(0)
    for number, took in enumerate(times):
        early, late = number % len(plain_early), number % len(plain_late)
        for kind in random.permutation(4).tolist():
            match kind:
                case 0:
                    took[0] = connection.plain(plain_early[early])
                case 1:
                    took[1], _, _ = connection.stream(stream_early[early])
                case 2:
                    took[2], took[3], events = connection.stream(stream_late[late])
                    took[5] = events / 1e3
                case _:
                    took[4] = connection.plain(plain_late[late])
    times *= 1e3
    plain, stream, preliminary, last, goes_on, _ = np.median(times, axis=0).tolist()
    tail = np.quantile(times, 0.99, axis=0)
    return Round(plain, float(tail[0]), stream, preliminary, float(tail[2]), last, goes_on, float(times[:, 5].mean()))


def main(
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 5,
    requests: Annotated[int, typer.Option(help="Requests of each kind in a round.", min=1)] = 1000,
    port: Annotated[int, typer.Option(help="Port for the server.")] = 8170,
    through_serve: Annotated[bool, typer.Option(help="Go through Serve's proxy.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write all rounds as JSON.")] = None,
) -> None:
    """Measure all kinds in turn; print each round, and whether the promise was kept."""
    ladder = Ladder.read(SPEC)
    inputs, _ = read_rows(ladder, ladder.path(ladder.spec.data.test))
    table = OutcomeTable.read(ladder.table_path.with_name("test-outcomes.npz"))
    exits = judge_table(table, Calibration.read(ladder.calibration_path)).exits(ladder.spec.base_prices)
    early, late = (inputs["image"][np.flatnonzero(mask)[:200]] for mask in (exits == 0, exits >= 2))
    kinds = [
        requests_of(ladder, early, stream=False),
        requests_of(ladder, early, stream=True),
        requests_of(ladder, late, stream=True),
        requests_of(ladder, late, stream=False),
    ]
    found = []
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "cascade.cli", "serve", str(SPEC), "--port", str(port)]
        system = System([*command, *(["--through-serve"] if through_serve else [])], port, Path(name) / "server.log")
        try:
            console.print(f"first answer after {system.wait_for_answer(kinds[0][0]):.1f} s")
            connection = Connection(port)
            measure(connection, kinds, WARM)
            for _ in track(range(rounds), "rounds", console=console):
                found.append(measure(connection, kinds, requests))
        finally:
            system.stop()
    show(found)
    if out is not None:
        out.write_text(json.dumps([asdict(each) for each in found], indent=1))


def show(found: Sequence[Round]) -> None:
    """Every round, and the promise."""
    shown = Table("ms, median (p99)", "plain", "stream", "preliminary", "last event", "goes on, plain", "events", "ratio")
    for number, each in enumerate(found, start=1):
        shown.add_row(
            f"round {number}",
            f"{each.plain:.2f} ({each.plain_p99:.2f})",
            f"{each.stream:.2f}",
            f"{each.preliminary:.2f} ({each.preliminary_p99:.2f})",
            f"{each.last:.2f}",
            f"{each.goes_on:.2f}",
            f"{each.events:.2f}",
            f"{each.ratio:.3f}",
        )
    console.print(shown)
    ratios = sorted(each.ratio for each in found)
    middle = float(np.median(ratios))
    kept = "kept" if middle <= TARGET else "missed"
    console.print(
        f"first event beside a plain answer of the first stage: x{middle:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f} over "
        f"{len(ratios)} rounds; at most x{TARGET:g} was promised: {kept}"
    )


if __name__ == "__main__":
    typer.run(main)
