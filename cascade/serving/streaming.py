"""The way of a message whose client watches: from the door, answer by answer, to the last. Decides nothing.

Knows the service and the router, and what each event says about itself; nothing of HTTP or gRPC, of bodies or their
encodings. An event holds all rows of its message. The first leaves when every row has an answer; a row that is final stays
as it was.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from math import inf
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cascade.policy.gain import Floats
from cascade.policy.request import Answer, SoFar
from cascade.serving.answers import by_batch, output_array, worst_of
from cascade.serving.messages import Refined, RowState
from cascade.serving.router import Router
from cascade.serving.service import Service
from cascade.wire.http import HeaderFacts
from cascade.wire.oip import InferRequest
from cascade.wire.parameters import Parameter
from cascade.wire.tensors import Array, TensorSpec

Written = TypeVar("Written")


class Event(NamedTuple):
    """What one event shows.

    Attributes:
        outputs: declaration, array of shape ``[rows, *row]`` and whether the client wants it as binary data.
        parameters: what the event says about itself.
        final: whether it is the last.
    """

    outputs: list[tuple[TensorSpec, Array, bool]]
    parameters: dict[str, Parameter]
    final: bool


async def stream(
    service: Service,
    facts: HeaderFacts,
    read: Callable[[], Awaitable[InferRequest]],
    write: Callable[[InferRequest, Event], Written],
    patience_s: float = inf,
) -> AsyncGenerator[Written | None, None]:
    """Take one message from the door to its last answer, and count it. To be closed by whoever stops early.

    Args:
        service: the service.
        facts: what is known before the message is read.
        read: reads and decodes it; called once it has passed the door.
        write: encodes an event.
        patience_s: seconds after which None says that nothing has happened; not before the first event.

    Yields:
        What ``write`` made of each event.

    Raises:
        CascadeError: what ``read`` and the router raise, before the first event.
    """
    router = service.router
    started_ns = time.perf_counter_ns()
    try:
        service.door(router, facts)
        request = await read()
        spent_s = (time.perf_counter_ns() - started_ns) * 1e-9  # reading it came out of the client's time
        told = _Told(service, router, request)
        asked, trail = service.asked(facts, request, spent_s), service.watcher.begin(facts, request)
        asked["trail"] = trail
        showings = router.refine(request.inputs, request.rows, **asked, patience_s=patience_s)
        with nullcontext() if trail is None else service.watcher.ending(trail):
            async with aclosing(showings):
                async for refined in showings:
                    shown = None if refined is None else told.event(refined)
                    if trail is not None and shown is not None and shown.final:
                        shown.parameters.update(service.watcher.end(router, trail, facts, request))
                    yield None if shown is None else write(request, shown)
    except Exception:
        router.requests["refused"] += 1
        raise
    except (asyncio.CancelledError, GeneratorExit):
        router.requests["cancelled"] += 1
        raise
    service.count_answered(router, started_ns)


class _Told:
    """What the events of one message say, in view of the one before."""

    def __init__(self, service: Service, router: Router, request: InferRequest) -> None:
        self._service = service
        self._router = router
        self._request = request
        self._labels: NDArray[np.intp] | None = None

    def event(self, refined: Refined) -> Event:
        """The event that shows these rows."""
        rows = refined.rows
        probabilities = np.stack([state.shown.probabilities for state in rows])
        labels = probabilities.argmax(axis=1)
        revised = 0 if self._labels is None else int((labels != self._labels).sum())
        self._labels = labels
        parameters = self._of_waiting(rows) if refined.waiting else self._of_final(rows)
        parameters["cascade_confidence"] = round(min(state.shown.confidence for state in rows), 6)
        parameters["cascade_final"] = not refined.waiting
        parameters["cascade_revised"] = revised > 0
        if kept := sum(state.shown.stage != state.answer.stage for state in rows):
            parameters["cascade_kept_rows"] = kept
        if len(rows) > 1:
            parameters["cascade_revised_rows"] = revised
            parameters["cascade_waiting_rows"] = refined.waiting
        self._certify(parameters, rows)
        outputs = [(each.spec, output_array(each.spec, probabilities), each.binary) for each in self._request.outputs]
        return Event(outputs, parameters, not refined.waiting)

    def _of_final(self, rows: list[RowState]) -> dict[str, Parameter]:
        answers = [state.answer for state in rows if isinstance(state.answer, Answer)]
        return self._service.parameters(self._router, answers, by_batch(answers), worst_of(answers))

    def _of_waiting(self, rows: list[RowState]) -> dict[str, Parameter]:
        # How and why a row left can only be said once it has; until then, how far the slowest has come.
        stage = min(state.answer.stage for state in rows if isinstance(state.answer, SoFar))
        parameters: dict[str, Parameter] = {
            "cascade_stage": self._service.stage_names[stage],
            "cascade_cost": sum(state.answer.cost for state in rows),
            "cascade_price": self._router.policy.prices[stage + 1],
        }
        if self._router.version:
            parameters["cascade_version"] = self._router.version
        return parameters

    def _certify(self, parameters: dict[str, Parameter], rows: list[RowState]) -> None:
        """Bound the loss of whoever takes what is shown here for the answer; nothing is said where nothing is known."""
        # An earlier answer that is shown because it agrees is lost where the stage's own is.
        differs = [state.shown.probabilities.argmax() != _own(state.answer).argmax() for state in rows]
        stages = [
            state.shown.stage if other else state.answer.stage
            for state, other in zip(rows, differs, strict=True)
            if other or isinstance(state.answer, SoFar)
        ]
        monitor = self._router.monitor
        if any(state.shown.log_product is not None for state in rows):
            parameters.pop("cascade_certified_loss", None)  # products are no answers that were counted
        elif stages and monitor is not None and monitor.certified_stops is not None:
            parameters["cascade_certified_loss"] = round(monitor.certified_stops[min(stages)], 6)
        elif stages:
            parameters.pop("cascade_certified_loss", None)


def _own(answer: Answer | SoFar) -> Floats:
    """Class probabilities of a stage's own answer, [classes]."""
    return np.asarray(answer.judgement.probabilities[answer.row])
