"""One run of one fault on a cluster that is whole: load, fault, end of the fault, judgement, and a whole cluster again.

Knows the cluster, the client as a process, and instants; decides nothing.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.faults.cluster import ClusterFailed, FaultyCluster, Replica
from loadtests.faults.faults import EJECTED_S, Fault
from loadtests.faults.judge import Finding, Hurt, Report, invariants, judge
from loadtests.faults.ladder import ROOT, STAGES, unit_rate
from loadtests.record import Recording

CLIENT_LIMIT_S = 60.0
"""How long after the last request is due the client may take to end."""


@dataclass(frozen=True)
class Times:
    """Seconds of a run: before the fault, while it lasts, and after it; warm-up included in the first."""

    before_s: float = 5.0
    during_s: float = 9.0
    after_s: float = 6.0

    @property
    def whole_s(self) -> float:
        """Of the run."""
        return self.before_s + self.during_s + self.after_s


@dataclass(frozen=True)
class Verdict:
    """A report, and what was demanded of it: whether it was kept, and what was seen."""

    report: Report
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether all was kept."""
        return all(finding.kept for finding in self.findings)


def try_fault(
    cluster: FaultyCluster,
    spec: Path,
    possible: NDArray[np.bool_],
    fault: Fault,
    load: float,
    times: Times,
    folder: Path,
    seed: int,
    say: Callable[[str], None],
) -> Verdict:
    """Try one fault under one load.

    Args:
        cluster: whole; it is whole again afterwards.
        spec: the ladder.
        possible: see `loadtests.faults.ladder.possible_answers`.
        fault: which.
        load: in multiples of what the last stage can do.
        times: of the run.
        folder: for what is recorded.
        seed: of the arrivals.
        say: told what goes on.

    Raises:
        ClusterFailed: the client did not carry the run out, or the cluster did not recover.
    """
    name = f"{fault.name}-{load:g}x"
    out = folder / f"{name}.npz"
    with sending(cluster.port, spec, load, times.whole_s, out, seed) as zero_s:
        _sleep_until(zero_s + times.before_s)
        began_s = time.time()
        victims = fault.hurt(cluster)
        say(f"{name}: {fault.about}")
        if fault.holds:
            _sleep_until(zero_s + times.before_s + times.during_s)
        share = _share(cluster, victims, began_s + EJECTED_S, time.time()) if fault.lags else None
        ended_s = zero_s + times.whole_s
        if fault.holds:
            cluster.thaw()
            cluster.unhook()
            cluster.add_nodes()
            ended_s = time.time()
    after = sum(_rows_of(cluster, victims, ended_s, time.time()).values()) if fault.lags else None
    whole_s = cluster.make_whole()
    hurt = Hurt(began_s - zero_s, ended_s - zero_s, share, after, whole_s, dict(cluster.company))
    cluster.company.clear()
    stage = next((stage for stage in STAGES if fault.name.endswith(stage)), "")
    report = judge(Recording.load(out), out.with_suffix(".extra.npz"), possible, fault.name, load, stage, hurt)
    findings = invariants(report, loses=fault.loses, refuses=fault.refuses)
    demanded = [Finding(demand.__name__.replace("_", " "), *demand(report)) for demand in fault.demands]
    return Verdict(report, (*findings, *demanded))


@contextmanager
def sending(port: int, spec: Path, load: float, seconds: float, out: Path, seed: int) -> Iterator[float]:
    """The client of one run, while it sends; waits for its end, and gives the instant at which it begins, since 1970.

    Args:
        port: where it sends.
        spec: the ladder.
        load: in multiples of what the last stage can do.
        seconds: how long.
        out: the file that it records to; its log is beside it.
        seed: of the arrivals.

    Raises:
        ClusterFailed: it did not begin, or recorded nothing.
    """
    command = [sys.executable, "-m", "loadtests.faults.client", str(spec)]
    rate = load * unit_rate()
    options = {"port": port, "rate": rate, "seconds": seconds, "out": out, "seed": seed, "system": out.stem}
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    with out.with_suffix(".log").open("wb") as log:
        client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log)
        try:
            assert client.stdout is not None
            words = client.stdout.readline().split()
            if words[:1] != [b"begun"]:
                raise ClusterFailed(f"{out.stem}: the client did not begin, see {out.with_suffix('.log')}")
            yield float(words[1])
            client.wait(seconds + CLIENT_LIMIT_S)
        finally:
            client.kill()
            client.wait()
    if not out.is_file():
        raise ClusterFailed(f"{out.stem}: the client recorded nothing, see {out.with_suffix('.log')}")


def _sleep_until(unix_s: float) -> None:
    time.sleep(max(0.0, unix_s - time.time()))


def _rows_of(cluster: FaultyCluster, victims: list[Replica], since_s: float, until_s: float) -> dict[int, int]:
    rows = cluster.rows_run(victims[0].deployment, since_s, until_s)
    return {victim.pid: rows.get(victim.pid, 0) for victim in victims}


def _share(cluster: FaultyCluster, victims: list[Replica], since_s: float, until_s: float) -> float | None:
    whole = sum(cluster.rows_run(victims[0].deployment, since_s, until_s).values())
    return sum(_rows_of(cluster, victims, since_s, until_s).values()) / whole if whole else None
