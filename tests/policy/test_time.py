"""Decisions depend on differences of time and on the seed, and on nothing else: they can be replayed."""

from collections import deque

from builders import MS, judged, stage
from hypothesis import given
from hypothesis import strategies as st
from test_load import LADDER, SLOW_DOOR
from virtual import simulate

from cascade.policy.commands import Abandon, Expire, Fail, Reply, Run, Shed
from cascade.policy.policy import Policy
from cascade.policy.request import Request

OFFSET_S = 4096.0
STEP = st.tuples(
    st.sampled_from(["arrive", "arrive", "complete", "complete", "fail", "cancel", "slots", "pass"]),
    st.integers(0, 40),
    st.integers(0, 40),
)


def play(script: list[tuple[str, int, int]], begin_s: float) -> list[tuple[object, ...]]:
    """Play a script of events; returns what was decided, with instants counted from the beginning."""
    policy = Policy([stage(2, 3, 1), stage(1, 2, 10), stage(1, 2, 100)], usual_deadline_s=64 * MS, wait_share=0.5)
    now, log, tags = begin_s, [], 0
    running, walks = deque(), []

    def obey(commands):
        for command in commands:
            match command:
                case Run(batch):
                    running.append(batch)
                    log.append(("run", batch.stage, batch.attempt, *(w.request.tag for w in batch.walks)))
                case Abandon(batch):
                    running.remove(batch)
                    log.append(("abandon", batch.stage))
                case Reply(tag, answer):
                    spans = [(s.stage, s.queued_s, s.run_s) for s in answer.spans]
                    log.append(("reply", tag, answer.stage, answer.reason, answer.cost, *spans))
                case Expire(tag) | Fail(tag):
                    log.append((type(command).__name__, tag))

    for kind, x, y in script:
        log.append((kind, now - begin_s))
        if kind == "arrive":
            # Deadlines lie off the grid of the events, so that none ties with a predicted instant.
            until_s = now + 4 * x * MS + MS / 64
            verdict = policy.arrived(now, [Request(tags, now, until_s - MS, until_s, 1 + y % 4)])
            if isinstance(verdict, Shed):
                log.append(("shed", tags, verdict.retry_after_s))
            else:
                walks.extend(verdict)
            tags += 1
        elif kind in ("complete", "fail") and running:
            running.rotate(-x)
            batch = running.popleft()
            if kind == "fail":
                obey(policy.failed(now, batch))
            else:
                gains = [[(y + i) % 17 / 16 for _ in range(2 - batch.stage)] for i in range(len(batch.walks))]
                obey(policy.completed(now, batch, judged(*gains)))
        elif kind == "cancel" and walks:
            policy.cancelled(walks[x % len(walks)])
        elif kind == "slots":
            obey(policy.set_slots(x % 3, y % 3))
        else:
            now += x * MS
            obey(policy.tick(now))
        obey(policy.dispatch(now))
        timer = policy.next_timer()
        log.append((timer is None, policy.counts.live))
    return log


@given(st.lists(STEP, max_size=60))
def test_the_same_events_at_another_time_give_the_same_decisions(script):
    assert play(script, 0.0) == play(script, OFFSET_S)


@given(st.lists(STEP, max_size=40))
def test_the_same_events_give_the_same_decisions_twice(script):
    assert play(script, 0.0) == play(script, 0.0)


def crowded(**changes) -> list[tuple[object, ...]]:
    return simulate(LADDER, rate_per_s=500, seconds=1, **changes).log


def test_a_crowded_second_is_decided_the_same_whenever_it_comes():
    assert crowded() == crowded(begin_s=OFFSET_S)


def test_a_second_at_a_closed_door_is_decided_the_same_whenever_it_comes():
    def run(begin_s: float) -> list[tuple[object, ...]]:
        return simulate(SLOW_DOOR, rate_per_s=1500, seconds=0.5, classes=3, begin_s=begin_s).log

    assert run(0.0) == run(OFFSET_S)


def test_a_run_can_be_replayed_from_its_seed():
    assert crowded(seed=5) == crowded(seed=5) != crowded(seed=6)


def test_a_run_in_which_everything_hangs_can_be_replayed():
    def run() -> list[tuple[object, ...]]:
        stages = [stage(slots=8, batch=1), stage(slots=8, batch=1)]
        return simulate(
            stages, rate_per_s=400, seconds=0.25, deadline_s=4.0, hangs=lambda stage, number: number % 3 == 0
        ).log

    assert run() == run()
