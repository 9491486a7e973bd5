"""Try faults on a cluster of several nodes on this machine, under load, and say what became of every request.

    python -m loadtests.faults --fault hang-fine,kill-router --load 0.7,4
    python -m loadtests.faults --soak 10

Exit codes: 0 every invariant and every demand was kept, 1 some were not, 2 wrong arguments.

Ray reads its environment when it is imported, so this sets it first and imports what knows Ray inside.
"""

import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import track

from cascade.errors import CascadeError
from cascade.serving.environment import apply_local
from loadtests.faults.ladder import ROOT, possible_answers, write_ladder

console = Console(stderr=True)


def main(
    fault: Annotated[str, typer.Option(help="Names with commas; all for all of them.")] = "all",
    load: Annotated[str, typer.Option(help="Multiples of what the last stage can do, with commas.")] = "0.7,4",
    before: Annotated[float, typer.Option(help="Seconds of load before the fault.")] = 5.0,
    during: Annotated[float, typer.Option(help="Seconds that it lasts.")] = 9.0,
    after: Annotated[float, typer.Option(help="Seconds after it.")] = 6.0,
    soak: Annotated[float, typer.Option(help="Instead of faults, so many minutes at 0.9 times the last stage.")] = 0.0,
    ladder: Annotated[Path | None, typer.Option(help="Keep the ladder here, and use it again.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for what is written.", show_default="runs/faults-DATE")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and rows.")] = 0,
) -> None:
    """Try faults under load."""
    # Replicas and clients import the network and the harness from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    sys.path.insert(0, str(ROOT))
    apply_local(os.environ)
    from loadtests.faults.cluster import running
    from loadtests.faults.faults import FAULTS
    from loadtests.faults.report import markdown, write
    from loadtests.faults.soak import soak_for
    from loadtests.faults.trial import Times, Verdict, try_fault

    folder = out or Path("runs") / datetime.now(UTC).strftime("faults-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    names = list(FAULTS) if fault == "all" else [name.strip() for name in fault.split(",")]
    if unknown := [name for name in names if name not in FAULTS]:
        raise typer.BadParameter(f"--fault: choose from {', '.join(FAULTS)}, got {', '.join(unknown)}")
    loads = [float(each) for each in load.split(",")]
    own = ladder or Path(tempfile.mkdtemp(prefix="cascade-faults-"))
    try:
        spec = own / "cascade.yaml" if (own / "calibration").is_dir() else write_ladder(own)
        possible = possible_answers(spec)
        verdicts: list[Verdict] = []
        with running(spec) as cluster:
            clocks_s = cluster.clocks_ahead_s()
            (folder / "clocks.json").write_bytes(orjson.dumps(clocks_s))
            console.print(f"clocks of the worker nodes are ahead by {', '.join(f'{each:,.0f} s' for each in clocks_s)}")
            if soak:
                document = soak_for(cluster, spec, 60.0 * soak, folder, seed, console.print)
                (folder / "soak.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
                raise typer.Exit(0)
            runs = [(FAULTS[name], each) for each in loads for name in names]
            for trial, each in track(runs, "faults", console=console):
                times = Times(before, during, after)
                verdict = try_fault(cluster, spec, possible, trial, each, times, folder, seed, console.print)
                verdicts.append(verdict)
                write(folder, verdicts)  # after each, so that nothing is lost with a later one
                for name, kept, seen in verdict.findings:
                    word = "[green]kept[/green]" if kept else "[red]broken[/red]"
                    console.print(f"  {word} {name}: {seen}", highlight=False)
    except CascadeError as error:
        console.print(f"[red]error:[/red] {error.detail}", highlight=False)
        raise typer.Exit(2) from error
    finally:
        if ladder is None:
            shutil.rmtree(own, ignore_errors=True)
    print(markdown(verdicts))
    raise typer.Exit(0 if all(verdict.passed for verdict in verdicts) else 1)


if __name__ == "__main__":
    typer.run(main)
