"""What the policy counts about itself. Plain integers that only grow; who publishes them is not known here."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cascade.policy.durations import BOUNDS_S, Durations
from cascade.policy.request import Answer, ExitReason

if TYPE_CHECKING:
    from cascade.policy.walk import Walk


@dataclass(slots=True)
class StageCounts:
    """Counts of one stage.

    Attributes:
        answers: rows answered with this stage's output, by exit reason.
        deferrals: answered rows for which the unloaded rule asked, here, for a dearer stage.
        escalations: answered rows that a dearer stage then answered, counted where they came from.
        batches: batches that came back.
        rows: rows in them.
        failures: batches that failed or were given up.
        joules: total energy that the stage has reported; None as long as it has reported none.
        idle_joules: the part of it for time in which its devices had nothing to do.
        recomputed: rows that were to resume from a state that was lost, and were run from their inputs again.
        steps: steps of thought that those rows took, where the stage's network chooses its depth.
        waits: how long each of those rows had waited.
        runs: how long each of those batches took.
        poisoned: rows on which it fails, or whose logits are no numbers, where others come back.
    """

    answers: dict[ExitReason, int] = field(default_factory=lambda: dict.fromkeys(ExitReason, 0))
    deferrals: int = 0
    escalations: int = 0
    batches: int = 0
    rows: int = 0
    failures: int = 0
    joules: float | None = None
    idle_joules: float = 0.0
    recomputed: int = 0
    steps: int = 0
    waits: Durations = field(default_factory=Durations)
    runs: Durations = field(default_factory=Durations)
    poisoned: int = 0

    def count_batch(self, rows: int, run_s: float, walks: Sequence["Walk"]) -> None:
        """Add a batch that came back.

        Args:
            rows: rows in it.
            run_s: seconds since it was sent.
            walks: the rows, each with the time that it had waited.
        """
        self.batches += 1
        self.rows += rows
        self.runs.add(run_s)
        waits, waited_s = self.waits.counts, 0.0
        for walk in walks:  # by hand, since a call for each would take three times as long
            times, seconds = walk.rows, walk.queued_s
            waits[bisect_left(BOUNDS_S, seconds)] += times
            waited_s += times * seconds
        self.waits.seconds += waited_s

    @property
    def queued_s(self) -> float:
        """Total time that the rows of those batches had waited."""
        return self.waits.seconds

    @property
    def run_s(self) -> float:
        """Total time of those batches."""
        return self.runs.seconds


@dataclass(slots=True)
class ClassCounts:
    """Counts of the rows of one class.

    Attributes:
        answered: answered.
        degraded: answered where the unloaded rule would have gone on.
        shed: turned away at the door.
        below_floor: answered where the class's floor would have gone on, because of a deadline, a budget or a failure.
    """

    answered: int = 0
    degraded: int = 0
    shed: int = 0
    below_floor: int = 0


@dataclass(slots=True)
class Counts:
    """Counts of the whole ladder. ``arrived = answered + shed + expired + failed + cancelled + live`` at all times.

    Attributes:
        stages: per stage, cheapest first.
        arrived: rows that came to the door.
        answered: rows answered.
        degraded: rows answered where the unloaded rule would have gone on.
        shed: rows turned away at the door.
        expired: rows whose deadline passed before any answer.
        failed: rows that the first stage could not answer.
        cancelled: rows whose client went away.
        cost: cost of every stage visit of the answered rows.
        classes: per class, priority 1 first.
    """

    stages: tuple[StageCounts, ...]
    arrived: int = 0
    answered: int = 0
    degraded: int = 0
    shed: int = 0
    expired: int = 0
    failed: int = 0
    cancelled: int = 0
    cost: float = 0.0
    classes: tuple[ClassCounts, ...] = field(default_factory=lambda: (ClassCounts(),))

    @classmethod
    def of(cls, stages: int, classes: int) -> "Counts":
        """Of so many stages and classes, all zero."""
        return cls(tuple(StageCounts() for _ in range(stages)), classes=tuple(ClassCounts() for _ in range(classes)))

    @property
    def live(self) -> int:
        """Rows without an outcome yet."""
        return self.arrived - self.answered - self.shed - self.expired - self.failed - self.cancelled

    def count_energy(self, stage: int, joules: float, idle_joules: float) -> None:
        """Add energy that a stage has reported.

        Args:
            stage: which.
            joules: all of it.
            idle_joules: the part of it for time in which its device had nothing to do.
        """
        counts = self.stages[stage]
        counts.joules = joules + (counts.joules or 0.0)
        counts.idle_joules += idle_joules

    def count_shed(self, rows: int, place: int) -> None:
        """Add rows turned away; they have been counted as arrived.

        Args:
            rows: how many.
            place: place of their class, from 0.
        """
        self.shed += rows
        self.classes[place].shed += rows

    def count_answer(self, answer: Answer, place: int = 0, *, below_floor: bool = False, rows: int = 1) -> None:
        """Add rows answered alike.

        Args:
            answer: what each was answered with.
            place: place of their class, from 0.
            below_floor: whether their class's floor would have gone on.
            rows: how many.
        """
        of_class = self.classes[place]
        self.answered += rows
        of_class.answered += rows
        of_class.below_floor += rows * below_floor
        self.cost += rows * answer.cost
        self.stages[answer.stage].answers[answer.reason] += rows
        for span in answer.spans[:-1]:
            self.stages[span.stage].deferrals += rows
            self.stages[span.stage].escalations += rows
        if answer.degraded:
            self.degraded += rows
            of_class.degraded += rows
            self.stages[answer.stage].deferrals += rows
