"""OpenTelemetry spans of a request's walk, made from what the policy wrote down of it. Knows notes and spans.

    cascade.walk                      the request, a child of the caller's span where it sent a traceparent
      cascade.queue   stage=tiny      its rows wait
      cascade.stage   stage=tiny      its rows run; linked to the batch
      cascade.queue   stage=large     …
    cascade.batch     stage=tiny      a trace of its own, linked to every traced walk that it served

Whether a request is traced is decided before anything is written: by the caller's own flag if there is one (as
OpenTelemetry's ParentBased sampler does), else by a random number. Spans are made when the request has ended, with the
instants of the notes.
"""

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

from cascade.errors import CascadeError, ConfigError
from cascade.policy.explain import BatchFacts, Note, Trail
from cascade.spec_sections import TracesSpec
from cascade.wire.http import TraceParent

NEEDED = 'tracing needs OpenTelemetry: pip install "cascade-serve[tracing]"'


class Traced:
    """A request that is traced.

    Attributes:
        span: its own.
        began_ns: when that began, nanoseconds since 1970.
    """

    __slots__ = ("began_ns", "span")

    def __init__(self, span: Any, began_ns: int) -> None:
        self.span = span
        self.began_ns = began_ns


class Tracing:
    """The spans of one router.

    Args:
        provider: OpenTelemetry's, which samples everything that it is given.
        model: the ladder's name.
        stages: names of the stages.
        ratio: share of the requests without a parent that are traced.
        random: what draws them.
    """

    def __init__(self, provider: Any, model: str, stages: Sequence[str], ratio: float, random: Random | None = None) -> None:
        from opentelemetry import trace

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("cascade")
        self._model = model
        self._stages = tuple(stages)
        self._ratio = ratio
        self._draw = (random or Random()).random

    @classmethod
    def of(cls, model: str, stages: Sequence[str], spec: TracesSpec) -> "Tracing | None":
        """What a spec asks for; None where it asks for no traces.

        Raises:
            ConfigError: OpenTelemetry or the exporter is not installed, or the file cannot be written.
        """
        if spec.exporter == "none":
            return None
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(f"telemetry.traces: {NEEDED} ({error})") from error
        provider = TracerProvider(resource=Resource.create({"service.name": "cascade", "cascade.model": model}))
        provider.add_span_processor(BatchSpanProcessor(_exporter(spec)))
        return cls(provider, model, stages, spec.ratio)

    def begin(self, parent: TraceParent | None, rows: int) -> Traced | None:
        """A request has come.

        Args:
            parent: where it hangs in its caller's trace; None if it says nothing.
            rows: rows in it.

        Returns:
            Its handle; None if it is not traced.
        """
        if not (parent.sampled if parent is not None else self._draw() < self._ratio):
            return None
        api, began_ns, context = self._api, time.time_ns(), None
        if parent is not None:
            flags = api.TraceFlags(api.TraceFlags.SAMPLED)
            caller = api.SpanContext(int(parent.trace_id, 16), int(parent.parent_id, 16), is_remote=True, trace_flags=flags)
            context = api.set_span_in_context(api.NonRecordingSpan(caller))
        attributes = {"cascade.model": self._model, "cascade.rows": rows}
        span = self._tracer.start_span(
            "cascade.walk", context, kind=api.SpanKind.SERVER, attributes=attributes, start_time=began_ns
        )
        return Traced(span, began_ns)

    def end(self, trail: Trail, request_id: str | None) -> None:
        """A request is answered; does nothing for one that is not traced.

        Args:
            trail: what was written down of it.
            request_id: what its client calls it.
        """
        traced, request = trail.handle, trail.request
        if not isinstance(traced, Traced) or request is None:
            return
        trail.handle = None  # it ends once
        ends = [end for _, end in sorted(trail.ends.items())]
        clock = _Clock(traced.began_ns, request.arrived_s)
        inside = self._api.set_span_in_context(traced.span)
        # Rows that ran together are shown once; notes of one batch lie side by side.
        for _, notes in groupby(trail.notes, key=lambda note: id(note.batch)):
            self._visit(list(notes), inside, clock)
        for place, end in trail.ends.items():
            last = next((note for note in reversed(trail.notes) if note.place == place), None)
            if last is not None and last.reason is None and last.onward is not None:
                self._in_vain(last, end.at_s, end.answer.reason.value, inside, clock)
        if ends:
            worst = max(ends, key=lambda end: end.answer.degraded)
            answer = worst.answer
            traced.span.set_attributes(
                {
                    "cascade.stage": self._stages[answer.stage],
                    "cascade.exit_reason": answer.reason.value,
                    "cascade.degraded": answer.degraded,
                    "cascade.cost": sum(end.answer.cost for end in ends),
                    "cascade.confidence": answer.confidence,
                    "cascade.priority": request.priority,
                }
            )
        if request_id is not None:
            traced.span.set_attribute("cascade.request_id", request_id)
        traced.span.end()

    def broke_off(self, trail: Trail, error: BaseException) -> None:
        """A request ends without an answer; one that its client left is no error."""
        traced = trail.handle
        if not isinstance(traced, Traced):
            return
        trail.handle = None
        if isinstance(error, Exception):
            code = error.code if isinstance(error, CascadeError) else type(error).__name__
            traced.span.set_attribute("error.type", code)
            traced.span.set_status(self._api.StatusCode.ERROR, code)
        else:
            traced.span.set_attribute("cascade.cancelled", True)
        traced.span.end()

    def close(self) -> None:
        """Send what has not been sent; may take as long as the exporter."""
        self._provider.shutdown()

    # -- spans ---------------------------------------------------------------------------------------------------------

    def _visit(self, notes: Sequence[Note], inside: Any, clock: "_Clock") -> None:
        """Spans of rows that ran in one batch: their wait, and the run."""
        first, batch = notes[0], notes[0].batch
        stage = {"cascade.stage": self._stages[batch.stage]}
        self._span("cascade.queue", inside, clock(batch.sent_s - first.queued_s), clock(batch.sent_s), stage)
        attributes: dict[str, Any] = {
            **stage,
            "cascade.rows": len(notes),
            "cascade.batch.rows": batch.rows,
            "cascade.batch.attempt": batch.attempt,
        }
        left = [note.reason.value for note in notes if note.reason is not None]
        if left:
            attributes["cascade.exit_reason"] = left[0] if len(set(left)) == 1 else sorted(set(left))
        if first.onward is not None:
            attributes["cascade.price"] = first.onward.price
            attributes["cascade.gain"] = max(note.onward.value for note in notes if note.onward is not None)
        links = [self._api.Link(self._batch(batch, clock))]
        self._span("cascade.stage", inside, clock(batch.sent_s), clock(batch.back_s), attributes, links)

    def _in_vain(self, note: Note, at_s: float, reason: str, inside: Any, clock: "_Clock") -> None:
        """The span of a row that went on to a stage and left without its answer."""
        assert note.onward is not None
        attributes = {"cascade.stage": self._stages[note.onward.stage], "cascade.exit_reason": reason}
        self._span("cascade.queue", inside, clock(note.at_s), clock(at_s), attributes)

    def _batch(self, batch: BatchFacts, clock: "_Clock") -> Any:
        """The context of a batch's span, which is made when the first of its traced walks has ended."""
        if batch.handle is None:
            walks = [each.span.get_span_context() for each in batch.handles if isinstance(each, Traced)]
            span = self._tracer.start_span(
                "cascade.batch",
                self._api.set_span_in_context(self._api.INVALID_SPAN),
                attributes={"cascade.stage": self._stages[batch.stage], "cascade.batch.rows": batch.rows},
                links=[self._api.Link(walk) for walk in walks],
                start_time=clock(batch.sent_s),
            )
            span.end(clock(batch.back_s))
            batch.handle = span.get_span_context()
        return batch.handle

    def _span(
        self, name: str, inside: Any, from_ns: int, to_ns: int, attributes: dict[str, Any], links: Sequence[Any] = ()
    ) -> None:
        span = self._tracer.start_span(name, inside, attributes=attributes, links=links, start_time=from_ns)
        span.end(to_ns)


class _Clock:
    """Instants of the router's clock as nanoseconds since 1970."""

    def __init__(self, began_ns: int, began_s: float) -> None:
        self._began_ns = began_ns
        self._began_s = began_s

    def __call__(self, at_s: float) -> int:
        return self._began_ns + int((at_s - self._began_s) * 1e9)


def _exporter(spec: TracesSpec) -> Any:
    if spec.exporter == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ConfigError(f"telemetry.traces: {NEEDED} ({error})") from error
        return OTLPSpanExporter(endpoint=spec.endpoint)
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    class Lines(ConsoleSpanExporter):
        def shutdown(self) -> None:
            self.out.close()

    assert spec.path is not None, "the spec holds a path for this exporter"
    try:
        out = Path(spec.path).open("a", encoding="utf-8")  # noqa: SIM115  # open for as long as the router lives
    except OSError as error:
        raise ConfigError(f"telemetry.traces.path {spec.path}: cannot be written: {error.strerror or error}") from error
    return Lines(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
