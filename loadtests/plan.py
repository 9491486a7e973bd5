"""From the options of a command line to a run: rows, requests, and their description. Knows neither Locust nor HTTP."""

from argparse import Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cascade.errors import ConfigError
from loadtests.client_side import Sheet
from loadtests.generator import lag_limit_s
from loadtests.scenarios import SCENARIOS, Run, draw_run, read_trace


@dataclass(frozen=True, eq=False)
class Plan:
    """What every process of a load test knows before it begins; all of them derive the same one.

    Attributes:
        run: what is sent when.
        sheet: the rows that it is about.
        meta: description for the recording, without what is only known afterwards.
        lag_limit_s: send lag that the 99th percentile may not exceed.
    """

    run: Run
    sheet: Sheet
    meta: dict[str, Any]
    lag_limit_s: float

    def questions(self, indices: list[int]) -> dict[tuple[int, int], tuple[bytes, dict[str, str]]]:
        """Body and headers by (row, asker) of some requests: rows are drawn with replacement, so they are fewer."""
        askers = self.run.scenario.askers
        wanted = {(int(self.run.row[index]), int(self.run.asker[index])) for index in indices}
        return {(row, asker): self.sheet.encode(row, askers[asker]) for row, asker in wanted}


def read_plan(options: Namespace, host: str | None) -> Plan:
    """Draw the run that the options ask for.

    Args:
        options: of `loadtests.locustfile`.
        host: URL of the server.

    Raises:
        ConfigError: an option, or a file that one names, is wrong.
    """
    if not host:
        raise ConfigError("say which server to ask, with --host")
    if options.trace and options.scenario != "trace":
        raise ConfigError(f"--trace goes with --scenario trace, not with {options.scenario!r}")
    if options.give_up <= 0:
        raise ConfigError(f"--give-up must be above 0, got {options.give_up:g}")
    if options.speed <= 0:
        raise ConfigError(f"--speed must be above 0, got {options.speed:g}")
    sheet = Sheet.read(Path(options.spec), Path(options.data) if options.data else None)
    run = draw_run(
        SCENARIOS[options.scenario],
        unit_rate=options.unit_rate,
        stage0_rate=options.stage0_rate,
        seed=options.seed,
        rows=len(sheet.labels),
        seconds_scale=options.seconds_scale,
        seconds=options.seconds or None,
        workload=read_trace(options.trace, options.speed) if options.trace else None,
    )
    meta = {
        "system": options.system,
        "scenario": options.scenario,
        "seed": options.seed,
        "workload": f"trace:{Path(options.trace).name},speed={options.speed:g}" if options.trace else run.workload,
        "unit_rate": options.unit_rate,
        "stage0_rate": options.stage0_rate,
        "seconds_scale": options.seconds_scale,
        "model": sheet.model,
        "stages": list(sheet.stages),
        "retries": run.scenario.retries,
        "host": host,
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    shortest_s = min(asker.deadline_s or sheet.deadline_s for asker in run.scenario.askers)
    limit_s = options.lag_limit_ms / 1e3 if options.lag_limit_ms else lag_limit_s(shortest_s)
    return Plan(run, sheet, meta, limit_s)
