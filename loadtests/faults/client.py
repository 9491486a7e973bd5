"""The client of one run, a process of its own: sends its requests when they are due, and writes what became of each.

    python -m loadtests.faults.client SPEC --port 8000 --rate 31 --seconds 15 --out FILE

It asks as a careful client does: over kept connections, none of which is used again once the other side has closed it, and
never twice. Prints ``begun UNIX-TIME`` when the first request is about to be due. Knows HTTP, no Ray.
"""

from gevent import monkey

monkey.patch_all()

import http.client  # noqa: E402
import select  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

import numpy as np  # noqa: E402
import typer  # noqa: E402

from cascade.simulation.workload import PoissonPath, level  # noqa: E402
from loadtests.client_side import NO_ANSWER, Reading, Sheet, read_answer  # noqa: E402
from loadtests.generator import OpenLoop, Share  # noqa: E402
from loadtests.scenarios import Run, Scenario, draw_run  # noqa: E402

GIVE_UP_S = 10.0
"""A client that has heard nothing for so long has lost its request."""
HEAD_START_S = 0.3


class Connections:
    """Kept connections to one port.

    Args:
        port: on this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[http.client.HTTPConnection] = []

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes, str]:
        """Send one request; status, headers and body of the answer, status 0 and the reason for none."""
        connection = self._take()
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return NO_ANSWER, {}, b"", f"{type(error).__name__}: {error}"[:120]
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, content, ""

    def _take(self) -> http.client.HTTPConnection:
        while self._idle:
            connection = self._idle.pop()
            # One that can be read while nothing was asked has been closed by the other side.
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP_S)


def asking(
    run: Run, sheet: Sheet, connections: Connections, labels: list[int], waits: list[float]
) -> Callable[[int, float, int], Reading]:
    """What the generator calls for every request; labels of answers and waits of refusals go to the lists."""
    asker = run.scenario.askers[0]
    questions = {int(row): sheet.encode(int(row), asker) for row in np.unique(run.row)}

    def ask(request: int, _scheduled: float, _attempt: int) -> Reading:
        body, headers = questions[int(run.row[request])]
        status, found, content, fault = connections.ask(sheet.path, body, headers)
        reading = read_answer(status, found, content, sheet.stages)
        labels[request] = reading.label
        waits[request] = float(found.get("retry-after", "nan"))
        return reading._replace(fault=fault or reading.fault)

    return ask


def main(
    spec: Annotated[Path, typer.Argument(help="The ladder.")],
    port: Annotated[int, typer.Option(help="Where the routers listen, on this machine.")],
    rate: Annotated[float, typer.Option(help="Requests a second.")],
    seconds: Annotated[float, typer.Option(help="How long.")],
    out: Annotated[Path, typer.Option(help="Where to write the recording, and beside it labels and waits.")],
    seed: Annotated[int, typer.Option(help="Of arrivals and rows.")] = 0,
    system: Annotated[str, typer.Option(help="What is going on, for the recording.")] = "faults",
) -> None:
    """Send one run and record it."""
    sheet = Sheet.read(spec)
    law = PoissonPath((level("fault", rate, seconds),))
    scenario = Scenario(system, "one fault", lambda *_: law)
    run = draw_run(scenario, unit_rate=rate, stage0_rate=rate, seed=seed, rows=len(sheet.labels))
    count = len(run.row)
    labels, waits = [-1] * count, [float("nan")] * count
    loop = OpenLoop(run, sheet, Share(), asking(run, sheet, Connections(port), labels, waits))
    print(f"begun {time.time() + HEAD_START_S}", flush=True)
    loop.go(time.perf_counter() + HEAD_START_S)
    meta = {"system": system, "scenario": system, "seed": seed, "rate": rate, "stages": list(sheet.stages)}
    loop.recording(meta).save(out)
    np.savez(out.with_suffix(".extra.npz"), labels=np.array(labels), waits=np.array(waits))


if __name__ == "__main__":
    typer.run(main)
