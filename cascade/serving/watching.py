"""Which requests are written down as they go, for an explanation or a trace, and what becomes of that when they end.

Knows the router's figures, `Explanations` and, where traces are on, `Tracing`. A request that is neither pays for one random
number.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import orjson

from cascade.policy.explain import Trail
from cascade.serving.explaining import Circumstances, Explanations
from cascade.serving.router import Router
from cascade.serving.tracing import Tracing
from cascade.spec import CascadeSpec
from cascade.wire.http import HeaderFacts
from cascade.wire.oip import InferRequest

EXPLAIN = "cascade_explain"
"""The parameter of an answer that holds its explanation, as JSON text: parameters of the protocol are single values."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Begins and ends what is written down.

    Attributes:
        explanations: of the last requests that have one.
        tracing: None where there are no traces.
    """

    explanations: Explanations
    tracing: Tracing | None = field(default=None)

    def begin(self, facts: HeaderFacts, request: InferRequest) -> Trail | None:
        """Where to write down what becomes of a request; None for nearly all of them."""
        span = None if self.tracing is None else self.tracing.begin(facts.trace, request.rows)
        if span is None and not (facts.explain or request.explain or self.explanations.drawn()):
            return None
        return Trail(span)

    def end(self, router: Router, trail: Trail, facts: HeaderFacts, request: InferRequest) -> Mapping[str, str]:
        """A request is answered: keep its explanation and finish its trace; returns what its answer is to say of it."""
        document = self.explanations.keep((facts.request_id, request.id), trail, circumstances(router, trail))
        if self.tracing is not None:
            self.tracing.end(trail, facts.request_id or request.id)
        asked = facts.explain or request.explain
        return {EXPLAIN: orjson.dumps(document).decode()} if asked else {}

    @contextmanager
    def ending(self, trail: Trail) -> Iterator[None]:
        """A request that may end without an answer, by what is raised in here."""
        try:
            yield
        except BaseException as error:  # its client may also have left
            if self.tracing is not None:
                self.tracing.broke_off(trail, error)
            raise

    def close(self) -> None:
        """Send what has not been sent."""
        if self.tracing is not None:
            self.tracing.close()


def watcher_of(spec: CascadeSpec) -> Watcher:
    """The watcher that a spec asks for."""
    telemetry = spec.telemetry
    names = [stage.name for stage in spec.stages]
    classes = [each.name for each in spec.admission.all_classes]
    return Watcher(
        Explanations(names, classes, share=telemetry.explain_share, keep=telemetry.explain_keep),
        Tracing.of(spec.name, names, telemetry.traces),
    )


def circumstances(router: Router, trail: Trail) -> Circumstances:
    """What a router knows of its load when a request has just ended."""
    loop, monitor = router.slow_loop, router.monitor
    rate = loop.rate(max((end.at_s for end in trail.ends.values()), default=loop.at_s))
    free_rate = 0.0 if loop.clearing is None else loop.clearing.uncongested_rate
    loss = None if monitor is None else monitor.certified_loss
    return Circumstances(rate, rate / free_rate if free_rate else None, loss)
