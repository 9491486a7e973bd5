"""What a router writes to its log: changes of state, once each, at info; trouble that is new, at warning. Never a request.

Each line is a sentence with its figures, and carries the same as fields (``event``, ``stage``, …), which Serve's JSON form
shows. A state that load moves to and fro has two thresholds, so that it is not written down again and again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cascade.serving.slow_loop import PRICES_LAST_S
from cascade.spec import CascadeSpec
from cascade.wire.live import LiveStatistics

logger = logging.getLogger("cascade.router")

DEGRADED_FROM, DEGRADED_UNTIL = 0.05, 0.01
"""Share of the window's answers from which, and until which, answers count as degraded."""
BEHIND_FROM_S, BEHIND_UNTIL_S = 0.05, 0.02
"""The same of the event loop's lag."""
QUIET_S = 5.0
"""A stage that failed works again once it has answered and no batch of it has failed for so long."""


@dataclass(frozen=True)
class State:
    """A state that a router gets into and out of, by one of its live figures.

    Attributes:
        begins: whether a figure is one at which it begins.
        ends: whether it is one at which it ends; neither holds between the two.
        begun: the event, and its sentence about the figure.
        ended: the event, and its sentence about how long it lasted.
        field: what the figure is called in the fields of the line; None to leave it out.
        level: of the line at its beginning.
    """

    begins: Callable[[float], bool]
    ends: Callable[[float], bool]
    begun: tuple[str, str]
    ended: tuple[str, str]
    field: str | None
    level: int = logging.INFO


STATES = {
    "degraded": State(
        lambda share: share >= DEGRADED_FROM,
        lambda share: share <= DEGRADED_UNTIL,
        ("degraded_begins", "answers are degraded by load, {:.1%} now"),
        ("degraded_ends", "answers are no longer degraded, after {:.0f} s"),
        "degraded",
    ),
    "shed_per_s": State(
        lambda rate: rate > 0,
        lambda rate: rate <= 0,
        ("shedding_begins", "{:.1f} rows/s are turned away"),
        ("shedding_ends", "nobody is turned away any more, after {:.0f} s"),
        "rows_per_s",
    ),
    "plan_age_s": State(
        lambda age_s: age_s > PRICES_LAST_S,
        lambda age_s: age_s <= PRICES_LAST_S,
        ("plan_stale", "no prices have been set for a while: base prices, and the queues alone"),
        ("plan_fresh", "prices are set again, after {:.0f} s"),
        None,
        logging.WARNING,
    ),
    "lag_s": State(
        lambda lag_s: lag_s > BEHIND_FROM_S,
        lambda lag_s: lag_s < BEHIND_UNTIL_S,
        ("behind", "the event loop is {:.3f} s behind"),
        ("in_time", "the event loop is in time again, after {:.0f} s"),
        "lag_s",
    ),
}
"""By the live figure that each goes by."""


class Journal:
    """Notes changes between readings of the live figures.

    Args:
        replicas: replicas of each stage at the start, by name.
    """

    def __init__(self, replicas: dict[str, int]) -> None:
        self._replicas = dict(replicas)
        self._since_s: dict[str, float] = {}

    def look(self, now: float, live: LiveStatistics) -> None:
        """Write down what has changed.

        Args:
            now: present instant.
            live: the figures now.
        """
        for name, stage in live.stages.items():
            self._look_at_stage(name, stage.replicas)
        for name, state in STATES.items():
            figure = getattr(live, name)
            if figure is None:
                continue
            since_s = self._since_s.get(name)
            if since_s is None and state.begins(figure):
                self._since_s[name] = now
                event, text = state.begun
                _say(event, text.format(figure), state.level, **({} if state.field is None else {state.field: figure}))
            elif since_s is not None and state.ends(figure):
                del self._since_s[name]
                event, text = state.ended
                _say(event, text.format(now - since_s), seconds=now - since_s)

    def _look_at_stage(self, name: str, replicas: int) -> None:
        before = self._replicas.get(name, replicas)
        self._replicas[name] = replicas
        if replicas == before:
            return
        facts: dict[str, Any] = {"stage": name, "replicas": replicas, "before": before}
        if not replicas:
            _say("stage_out", f"stage {name} is out: it has no healthy replica, and rows go past it", **facts)
        elif not before:
            _say("stage_back", f"stage {name} is back with {replicas} replicas", **facts)
        else:
            _say("replicas", f"stage {name} has {replicas} replicas, had {before}", **facts)


class Troubles:
    """Notes batches that fail: the first with its traceback, those that follow not, and when that is over.

    Args:
        stages: names of the stages; numbers will do.
    """

    def __init__(self, stages: Sequence[object]) -> None:
        self._stages = tuple(map(str, stages))
        self._failed = [0] * len(stages)
        self._last_s = [0.0] * len(stages)

    def failed(self, now: float, stage: int, attempt: int) -> None:
        """A batch failed, by the exception that is being handled."""
        self._failed[stage] += 1
        self._last_s[stage] = now
        if self._failed[stage] == 1:
            facts = {"event": "stage_fails", "stage": self._stages[stage], "attempt": attempt}
            text = "stage %s fails, attempt %d; further failures are counted, not logged"
            logger.warning(text, self._stages[stage], attempt, exc_info=True, extra=facts)
        else:
            logger.debug("stage %s failed again, attempt %d", self._stages[stage], attempt, exc_info=True)

    def answered(self, now: float, stage: int) -> None:
        """A batch came back."""
        if self._failed[stage] and now - self._last_s[stage] >= QUIET_S:
            name, failed = self._stages[stage], self._failed[stage]
            self._failed[stage] = 0
            _say("stage_works", f"stage {name} works again, after {failed} failed batches", stage=name, failed=failed)


def say_serving(spec: CascadeSpec, version: str) -> None:
    """A router decides by this version of the ladder's files from now on."""
    facts: dict[str, Any] = {"model": spec.name, "model_version": spec.version, "version": version}
    _say("serving", f"serving {spec.name} {spec.version}, version {version}", **facts)


def _say(event: str, text: str, level: int = logging.INFO, **facts: Any) -> None:
    logger.log(level, text, extra={"event": event, **facts})
