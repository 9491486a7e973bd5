"""The faults: how each is brought about, how it is taken back, and what its run must show beside the invariants.

Knows the cluster's handles to hurt it, and the reports of its runs; nothing of clients and recordings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.faults.cluster import PLANNER, FaultyCluster, Replica
from loadtests.faults.company import unexpected
from loadtests.faults.judge import Report

Hurt = Callable[[FaultyCluster], list[Replica]]
"""Brings a fault about; the replicas that it befell."""
Demand = Callable[[Report], tuple[bool, str]]
"""Whether a run shows what it must, and what it shows."""

EJECTED_S = 5.0
"""A replica that lags behind gets nearly nothing after so long."""
EJECTED_SHARE = 0.2
FAST_REFUSAL_S = 0.05
SLOWER = 5.0
LATE = 0.01
ROUTER_LOSS = 0.02
"""Of the requests, lost with their router: those that were under way there."""


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: on the command line.
        about: one line for a reader.
        hurt: see `Hurt`.
        holds: whether it stays until it is taken back; else the cluster mends itself while the run goes on.
        lags: whether what it befalls is to be ejected.
        loses: share of the requests that may be lost, because the process that they were with has ended.
        refuses: whether requests may be turned away, or fail, while it lasts: only where stage 0 is out.
        demands: what a run must show.
    """

    name: str
    about: str
    hurt: Hurt
    holds: bool = False
    lags: bool = False
    loses: float = 0.0
    refuses: bool = False
    demands: tuple[Demand, ...] = field(default=())


# -- what must be shown ------------------------------------------------------------------------------------------------


def in_time(report: Report) -> tuple[bool, str]:
    """The 99th percentile is within the deadline."""
    return report.p99_s <= report.deadline_s, f"p99 {1e3 * report.p99_s:.0f} ms"


def all_answered(report: Report) -> tuple[bool, str]:
    """Every request got an answer."""
    return report.answered == report.sent, f"{report.answered} of {report.sent} answered"


def degraded(report: Report) -> tuple[bool, str]:
    """While the stage was out nobody was answered by it, and some were told that they might have been."""
    while_out = report.during
    ok = while_out.stages.get(report.stage, 0) == 0 and while_out.degraded > 0
    return (
        ok,
        f"{while_out.degraded} of {while_out.answered} degraded, {while_out.stages.get(report.stage, 0)} answered there",
    )


def ejected(report: Report) -> tuple[bool, str]:
    """What lags behind gets few of the rows from `EJECTED_S` on."""
    share = report.share_of_hurt
    return share is not None and share < EJECTED_SHARE, "unknown" if share is None else f"gets {share:.1%} of the rows"


def back_again(report: Report) -> tuple[bool, str]:
    """It gets rows again after the fault was taken back."""
    return bool(report.rows_of_hurt_after), f"{report.rows_of_hurt_after} rows after"


def refused_fast(report: Report) -> tuple[bool, str]:
    """Once the stage is known to be out, refusals are quick and say when to come back."""
    told = report.refusals
    ok = told is not None and told.p50_s < FAST_REFUSAL_S and told.with_retry_after == told.count
    return ok, "none" if told is None else f"{told.count} refused, p50 {1e3 * told.p50_s:.0f} ms"


def few_late(report: Report) -> tuple[bool, str]:
    """Under `LATE` of the answers come after the deadline."""
    return report.late <= LATE * report.answered, f"{report.late} late"


def told_as_it_should_be(report: Report) -> tuple[bool, str]:
    """Clients that behave badly were there, and none was told anything that it should not have been."""
    wrong = unexpected(report.fault, report.company)
    return bool(report.company) and not wrong, ", ".join(f"{count} {what}" for what, count in sorted(report.company.items()))


# -- how they come about -----------------------------------------------------------------------------------------------


def _killed(name: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        victim = cluster.replicas(name)[0]
        cluster.kill(victim)
        return [victim]

    return hurt


def _out(stage: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        cluster.hook(stage, "hang")  # what Serve starts in their place never gets ready
        victims = cluster.replicas(stage)
        for victim in victims:
            cluster.kill(victim)
        return victims

    return hurt


def _all_do(stage: str, what: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        cluster.hook(stage, what)
        return []

    return hurt


def _one_does(stage: str, what: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        victim = cluster.replicas(stage)[0]
        cluster.hook(victim.pid, what)
        return [victim]

    return hurt


def _frozen(stage: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        victim = cluster.replicas(stage)[0]
        cluster.freeze(victim)
        return [victim]

    return hurt


def _node(cluster: FaultyCluster) -> list[Replica]:
    victim = cluster.replicas("fine")[0]
    everywhere = [each for name in ("rough", "fair", "fine") for each in cluster.replicas(name)]
    cluster.lose_node(victim.node)
    return [each for each in everywhere if each.node == victim.node]


def _company(kind: str) -> Hurt:
    def hurt(cluster: FaultyCluster) -> list[Replica]:
        cluster.invite(kind)
        return []

    return hurt


def _starved(cluster: FaultyCluster) -> list[Replica]:
    victim = cluster.replicas("router")[0]
    cluster.starve(victim)
    return [victim]


def _no_controller(cluster: FaultyCluster) -> list[Replica]:
    cluster.kill_controller()
    return []


def _frozen_gcs(cluster: FaultyCluster) -> list[Replica]:
    cluster.freeze_gcs()
    return []


def _no_plan(cluster: FaultyCluster) -> list[Replica]:
    cluster.hook(PLANNER, "raise")
    return []


LAGGING = {"holds": True, "lags": True, "demands": (in_time, all_answered, ejected, back_again)}
_ALL = (
    *(
        Fault(f"kill-{stage}", f"SIGKILL of one of two replicas of {stage}", _killed(stage), demands=(in_time, all_answered))
        for stage in ("rough", "fair", "fine")
    ),
    *(
        Fault(
            f"out-{stage}",
            f"all of {stage} killed, none comes back",
            _out(stage),
            holds=True,
            demands=(in_time, all_answered, degraded),
        )
        for stage in ("fine", "fair")
    ),
    Fault(
        "out-rough",
        "all of stage 0 killed, none comes back",
        _out("rough"),
        holds=True,
        refuses=True,
        demands=(refused_fast,),
    ),
    Fault(
        "raise-fine",
        "every call to fine raises",
        _all_do("fine", "raise"),
        holds=True,
        demands=(in_time, all_answered, degraded),
    ),
    Fault("raise-one-fine", "every call to one replica of fine raises", _one_does("fine", "raise"), **LAGGING),
    Fault("slow-fine", f"one replica of fine {SLOWER:g} times slower", _one_does("fine", f"slow {SLOWER:g}"), **LAGGING),
    Fault("hang-fine", "one replica of fine stalls and answers pings", _one_does("fine", "hang"), **LAGGING),
    Fault("frozen-fine", "SIGSTOP of one replica of fine", _frozen("fine"), **LAGGING),
    Fault("hang-rough", "one replica of stage 0 stalls and answers pings", _one_does("rough", "hang"), **LAGGING),
    Fault("frozen-rough", "SIGSTOP of one replica of stage 0", _frozen("rough"), **LAGGING),
    Fault("kill-router", "SIGKILL of one of two routers", _killed("router"), loses=ROUTER_LOSS, demands=(in_time,)),
    Fault("lose-node", "one of two worker nodes ends with all its replicas", _node, holds=True, demands=(in_time,)),
    Fault("kill-controller", "SIGKILL of Serve's controller", _no_controller, demands=(in_time, all_answered)),
    Fault("frozen-gcs", "SIGSTOP of Ray's store on the head", _frozen_gcs, holds=True, demands=(in_time, all_answered)),
    Fault("starved-router", "one of two routers gets a fifth of a CPU", _starved, holds=True, demands=(few_late,)),
    *(
        Fault(
            kind, f"clients that {about}", _company(kind), holds=True, demands=(in_time, all_answered, told_as_it_should_be)
        )
        for kind, about in (
            ("leave", "hang up after 20 to 200 ms"),
            ("poison", "send rows that no network can answer"),
            ("bodies", "send bodies that are slow, endless or huge"),
            ("deadlines", "give no time, less than none, or a lot"),
        )
    ),
    Fault("no-plan", "every round of the slow loop fails", _no_plan, holds=True, demands=(in_time, all_answered)),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
