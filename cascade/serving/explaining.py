"""Requests that are explained: those that ask for it, and a small random share of all others. Decides nothing about them.

What the policy wrote down of a request becomes a JSON document when it has ended; the last few are kept by their ids.
Nothing of a request's inputs, its outputs or its tenant is in it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from cascade.errors import UnknownRequest
from cascade.policy.explain import End, Note, Onwards, Trail
from cascade.policy.request import Request
from cascade.serving.why import sentence
from cascade.wire.live import finite

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a router knew beside the policy's notes, when a request ended.

    Attributes:
        rate: rows a second that came to the door.
        load: that over what the ladder could take at base prices; None where it is not known.
        certified_loss: bound of the loss; None without a certificate.
    """

    rate: float
    load: float | None
    certified_loss: float | None


class Explanations:
    """The last explained requests of one router.

    Args:
        stages: names of the stages, cheapest first.
        classes: names of the classes, priority 1 first.
        share: of the requests that do not ask, which are explained, too.
        keep: how many are kept.
        random: what draws them.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        stages: Sequence[str],
        classes: Sequence[str],
        *,
        share: float,
        keep: int = 256,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stages = tuple(stages)
        self._classes = tuple(classes)
        self._share = share
        self._keep = keep
        self._draw = (random or Random()).random
        self._clock = clock
        self._made = 0
        self._kept: OrderedDict[str, Document] = OrderedDict()

    def drawn(self) -> bool:
        """Whether a request that does not ask is explained all the same."""
        return self._draw() < self._share

    def keep(self, ids: Sequence[str | None], trail: Trail, circumstances: Circumstances) -> Document:
        """Explain a request that has ended, and keep that.

        Args:
            ids: what clients and operators call it; one is made up if there is none.
            trail: what was written down.
            circumstances: see there.
        """
        known = list(dict.fromkeys(each for each in ids if each))
        if not known:
            self._made += 1
            known = [f"cascade-{self._made}"]
        document = self._document(known[0], trail, circumstances)
        for each in known:
            self._kept.pop(each, None)
            self._kept[each] = document
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return document

    def of(self, request_id: str) -> Document:
        """The explanation of one request.

        Raises:
            UnknownRequest: it is not kept here.
        """
        try:
            return self._kept[request_id]
        except KeyError:
            raise UnknownRequest(
                f"there is no explanation of {request_id!r} here: this router keeps the last {self._keep}, of requests that "
                f"ask (Cascade-Explain: ?1) and of a share of {self._share:g} of the others"
            ) from None

    def latest(self) -> Document:
        """The requests that are kept, the newest first, each with its first row's sentence."""
        documents = {id(each): each for each in reversed(self._kept.values())}
        return {
            "requests": [
                {"id": each["id"], "at": each["at"], "text": each["rows"][0]["text"]}
                for each in documents.values()
                if each["rows"]
            ]
        }

    # -- layout --------------------------------------------------------------------------------------------------------

    def _document(self, request_id: str, trail: Trail, circumstances: Circumstances) -> Document:
        request = trail.request
        assert request is not None, "its driver sets it"
        place = min(request.priority, len(self._classes)) - 1
        notes: dict[int, list[Note]] = {}
        for note in trail.notes:
            notes.setdefault(note.place, []).append(note)
        return {
            "id": request_id,
            "at": round(self._clock(), 3),
            "rows_of_request": request.rows,
            "class": {"priority": request.priority, "name": self._classes[place]},
            "deadline_s": request.deadline_s - request.arrived_s,
            "max_cost": finite(request.budget),
            "min_confidence": request.min_confidence if request.min_confidence <= 1.0 else None,
            "rate": circumstances.rate,
            "load": finite(circumstances.load),
            "certified_loss": circumstances.certified_loss,
            "rows": [
                self._row(number, notes[number], end, request, circumstances)
                for number, end in sorted(trail.ends.items())
                if number in notes
            ],
        }

    def _row(self, number: int, notes: list[Note], end: End, request: Request, circumstances: Circumstances) -> Document:
        answer = end.answer
        load, wanted = circumstances.load, request.min_confidence
        return {
            "row": number,
            "text": sentence(self._stages, notes[-1], end, load=load, wanted=wanted, budget=request.budget),
            "stage": self._stages[answer.stage],
            "exit_reason": answer.reason.value,
            "degraded": answer.degraded,
            "cost": answer.cost,
            "took_s": end.at_s - request.arrived_s,
            "visits": [self._visit(note) for note in notes],
        }

    def _visit(self, note: Note) -> Document:
        batch, behind = note.batch, self._stages[note.batch.stage + 1 :]
        return {
            "stage": self._stages[batch.stage],
            "queued_s": note.queued_s,
            "run_s": batch.back_s - batch.sent_s,
            "batch_rows": batch.rows,
            "attempt": batch.attempt,
            "confidence": note.confidence,
            "p_correct": note.p_correct,
            "recalled": note.recalled,
            "gains": dict(zip(behind, note.gains, strict=True)),
            "prices": dict(zip(behind, note.prices, strict=True)),
            "slack_s": note.usable_until_s - note.at_s,
            "decision": "went on" if note.reason is None else note.reason.value,
            "onward": None if note.onward is None else self._onward(note.onward, note.at_s),
        }

    def _onward(self, onward: Onwards, at_s: float) -> Document:
        return {
            "stage": self._stages[onward.stage],
            "value": onward.value,
            "price": onward.price,
            "base_price": onward.base_price,
            "protected": onward.protected,
            "waiting_rows": onward.waiting,
            "needs_s": onward.soonest_s - at_s,
            "affordable": onward.affordable,
            "out": onward.out,
        }
