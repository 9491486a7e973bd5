"""Runs shadow audits: takes a few answered rows through the stages they did not visit, while nobody else needs those.

What is worth auditing and what follows from it is decided in `cascade.policy.audit`; here is what waits and fails. An audit
is a guest: it begins and goes on only while there is room, runs one row of one answer at a time, and whatever goes wrong
with it is counted and concerns nobody.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.models.stage import Arrays, StageResult
from cascade.policy.audit import Auditor
from cascade.policy.commands import Reply
from cascade.policy.gain import Earlier, Judge, Judgement
from cascade.policy.policy import Policy
from cascade.policy.request import Answer
from cascade.serving.stage_client import InlineStage, StageClient
from cascade.serving.states import KeepsState


@dataclass(slots=True)
class AuditCounts:
    """What became of the audits that began. Plain integers that only grow.

    Attributes:
        finished: the whole ladder answered the row.
        given_up: load came before that.
        failed: a stage failed, hung, or returned what cannot be judged.
    """

    finished: int = 0
    given_up: int = 0
    failed: int = 0


class Audits:
    """The audits of one router, one at a time. To be made in the event loop that runs it.

    Attributes:
        auditor: what is audited, and the estimates.
        counts: what became of the audits.

    Args:
        auditor: chooses, and adds up.
        judges: how to read each stage's logits, cheapest stage first.
        stages: how to reach each stage.
        spare: whether the stages have room for a guest now, see `has_room`.
        clock: seconds, the router's own clock.
        timeout_s: a stage call that takes longer has failed.
        resumes: whether each stage goes on from what the one before left; None if none does.
    """

    def __init__(
        self,
        auditor: Auditor,
        judges: Sequence[Judge],
        stages: Sequence[StageClient | InlineStage],
        spare: Callable[[], bool],
        clock: Callable[[], float],
        *,
        timeout_s: float = 10.0,
        resumes: Sequence[bool] | None = None,
    ) -> None:
        self.auditor = auditor
        self.counts = AuditCounts()
        self._judges = tuple(judges)
        self._stages = tuple(stages)
        self._spare = spare
        self._clock = clock
        self._timeout_s = timeout_s
        self._resumes = tuple(resumes or [False] * len(stages))
        self._audit: asyncio.Task[None] | None = None

    def offer(self, reply: Reply, inputs: Arrays) -> None:
        """Take note of rows that are being answered, and audit one that is drawn if there is room.

        Never raises and never waits. The row is copied, so that an audit does not keep a client's whole message.

        Args:
            reply: the answer.
            inputs: one array [rows, *row] for each input of the ladder: the message that the rows came in.
        """
        answer, places = reply.answer, reply.places
        if len(places) == 1:
            if self.auditor.drawn(answer):
                self._begin(answer, inputs, places[0])
        else:
            for row in self.auditor.drawn_among(answer, reply.rows):
                self._begin(answer._replace(row=row), inputs, row + places[0] - answer.row)

    async def close(self) -> None:
        """Cancel the audit that is under way."""
        audit = self._audit
        if audit is not None:
            audit.cancel()
            await asyncio.gather(audit, return_exceptions=True)

    def _begin(self, answer: Answer, inputs: Arrays, row: int) -> None:
        """Audit a row that was drawn, if there is room."""
        if self._audit is None and self.auditor.wants(self._clock(), self._spare()):
            alone = {name: array[row : row + 1].copy() for name, array in inputs.items()}
            self._audit = asyncio.get_running_loop().create_task(self._run(answer, alone))

    async def _run(self, answer: Answer, inputs: Arrays) -> None:
        try:
            whole = await self._whole_ladder(answer, inputs)
            if whole is None:
                self.counts.given_up += 1
            else:
                self.auditor.observe(self._clock(), answer, whole)
                self.counts.finished += 1
        except asyncio.CancelledError:
            # Cancelled here, or by the stage it called: only the first may end the task as cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.counts.failed += 1
        except Exception:  # the router reports the failures of stages; a guest's would only repeat them
            self.counts.failed += 1
        finally:
            self._audit = None

    async def _whole_ladder(self, answer: Answer, inputs: Arrays) -> Judgement | None:
        """The last stage's judgement, or None when load came first."""
        served = answer.judgement
        one = slice(answer.row, answer.row + 1)
        earlier = Earlier(served.probabilities[one], served.p_correct[one])
        judgement: Judgement | None = None
        first = answer.stage + 1
        while self._resumes[first]:
            first -= 1  # what that stage left of the row is gone with its answer
        state: Arrays | None = None
        for stage in range(first, len(self._stages)):
            if not self._spare():
                self._forget(stage - 1, state)
                return None
            result = await self._call(stage, inputs, state if self._resumes[stage] else None)
            logits, state = result.logits, result.state
            expected = earlier.probabilities.shape
            if logits.shape != expected or not np.isfinite(logits).all():
                raise ValueError(f"stage {stage} returned logits {logits.shape}, expected finite {expected}")
            if stage <= answer.stage:
                continue
            judge = self._judges[stage]
            judgement = judge(logits, earlier if judge.looks_back else None)
            earlier = Earlier(judgement.probabilities, judgement.p_correct)
        return judgement

    async def _call(self, stage: int, inputs: Arrays, state: Arrays | None) -> StageResult:
        client = self._stages[stage]
        if isinstance(client, InlineStage):
            return client.run_now(inputs if state is None else state)
        async with asyncio.timeout(self._timeout_s):
            if state is not None and isinstance(client, KeepsState):
                return await client.resume(state, lambda _: inputs)
            return await client.run(inputs if state is None else state)

    def _forget(self, stage: int, state: Arrays | None) -> None:
        client = self._stages[stage]
        if state is not None and isinstance(client, KeepsState):
            client.forget(state, [0])


def has_room(policy: Policy) -> bool:
    """Whether every stage behind the first has nobody waiting, and less than half of its places taken.

    Less than half, because a stage has two places for each replica or more, so that the next batch is there when one ends:
    with half of them taken every replica may be at work, and a guest's row would make the next batch wait.

    Args:
        policy: the router's policy; a stage that is out has no room.
    """
    return all(
        not policy.waiting(stage) and 2 * capacity.busy < capacity.slots
        for stage, capacity in enumerate(policy.capacities)
        if stage
    )
