"""Judges recorded load tests, whatever system they were of: the product passes, and a baseline in its place fails.

    python -m loadtests.verdict RUN.npz ... --capacity capacities.json

Knows the files: recordings, measured capacities, the ladder. What is judged how is in `loadtests.clauses`.
"""

from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import BaseModel, Field, ValidationError

from cascade.assembly import Artefacts
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.cli.console import console, usage_errors, writing
from cascade.cli.simulate import default_table
from cascade.errors import ConfigError
from cascade.report.style import save
from cascade.spec import Ladder
from cascade.spec_exits import groups_of
from loadtests.clauses import CLAUSES
from loadtests.figure import load_figure, step_figure
from loadtests.judge import Verdict, judge_runs
from loadtests.phases import Limits
from loadtests.predict import Simulator, corrections
from loadtests.record import Recording
from loadtests.scenarios import SCENARIOS
from loadtests.tables import show, write_section

__all__ = ["Capacities", "Limits", "Verdict", "by_system", "judge_runs", "prepare"]


class Capacities(BaseModel):
    """What was measured in place before the load tests; other keys of the file are not read.

    Attributes:
        rows_per_s: rows a second of each stage, by name.
        stage0_rate: C0, requests/s.
        unit_rate: requests/s with all of them through the last stage.
        work_s: core seconds of a visit by stage, where stages share cores.
        pool: cores that they share.
    """

    rows_per_s: dict[str, Annotated[float, Field(gt=0)]]
    stage0_rate: Annotated[float, Field(gt=0)]
    unit_rate: Annotated[float, Field(gt=0)]
    work_s: dict[str, float] | None = None
    pool: Annotated[float, Field(gt=0)] = inf

    @classmethod
    def read(cls, path: Path, stages: Sequence[str]) -> "Capacities":
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or speaks of other stages.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {error}") from error
        for name in ("rows_per_s", "work_s"):
            given = getattr(found, name)
            if given is not None and set(given) != set(stages):
                raise ConfigError(f"{path}: {name}: expected the stages {', '.join(stages)}, got {', '.join(given)}")
        return found


def by_system(recordings: Iterable[Recording]) -> dict[str, list[Recording]]:
    """Recordings by what was under load, those of each system in the order of the scenarios."""
    order = {name: place for place, name in enumerate(SCENARIOS)}
    runs: dict[str, list[Recording]] = {}
    for recording in sorted(recordings, key=lambda each: order.get(each.meta["scenario"], len(order))):
        runs.setdefault(str(recording.meta["system"]), []).append(recording)
    return runs


def prepare(spec: Path, capacity: Path) -> tuple[Limits, Simulator]:
    """The limits of a ladder on measured machines, and the simulator of the same.

    Args:
        spec: the ladder's ``cascade.yaml``; its test rows are those that were sent.
        capacity: the measured capacities, see `Capacities`.

    Raises:
        ConfigError: a file is missing or malformed, or they do not belong together.
    """
    ladder = Ladder.read(spec)
    made = Artefacts.read(ladder)
    table = judge_table(OutcomeTable.read(default_table(ladder)), made.calibration, ladder.spec.routing)
    measured = Capacities.read(capacity, table.stages)
    limits = Limits(
        table,
        [measured.rows_per_s[stage] for stage in table.stages],
        stage0_rate=measured.stage0_rate,
        unit_rate=measured.unit_rate,
        base_prices=ladder.spec.base_prices,
        work_s=None if measured.work_s is None else [measured.work_s[stage] for stage in table.stages],
        pool=measured.pool,
        together=groups_of(ladder.spec.stages),
        calibration=judge_table(OutcomeTable.read(ladder.table_path), made.calibration, ladder.spec.routing),
    )
    factors = corrections(ladder.spec, made.profile, limits.capacity.rows_per_s)
    return limits, Simulator(table, ladder.spec, made.profile, factors, made.certificate, made.market)


def main(
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of load tests, of all systems.", show_default=False)],
    capacity: Annotated[Path, typer.Option(help="What loadtests.measure_capacity printed.")],
    spec: Annotated[Path, typer.Option(help="The ladder's cascade.yaml.")] = Path("deployments/loadtest/cascade.yaml"),
    candidate: Annotated[str, typer.Option(help="The system that is judged.")] = "cascade",
    clauses: Annotated[str, typer.Option(help="Letters of the clauses to judge.")] = "".join(CLAUSES),
    simulation: Annotated[bool, typer.Option(help="Put the simulator's prediction beside the measurement.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write STEM.svg, STEM.png and STEM-step.*.", metavar="STEM")] = None,
    results: Annotated[Path | None, typer.Option(help="Put the tables between their markers in this page.")] = None,
) -> None:
    """Judge recorded load tests; exits with 1 if a promise was not kept."""
    with usage_errors():
        limits, simulator = prepare(spec, capacity)
        runs = by_system(map(Recording.load, recordings))
        verdict = judge_runs(
            runs, limits, candidate=candidate, clauses=clauses, predict=simulator.predict if simulation else None
        )
        show(verdict, console)
        if json is not None:
            with writing(json):
                json.write_bytes(orjson.dumps(verdict.document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        if figure is not None:
            save(load_figure(verdict), figure)
            for run in verdict.evidence.named("step"):
                save(step_figure(run), figure.with_name(f"{figure.stem}-step"))
        if results is not None:
            write_section(verdict, results)
    raise typer.Exit(0 if verdict.passed else 1)


if __name__ == "__main__":
    typer.run(main)
