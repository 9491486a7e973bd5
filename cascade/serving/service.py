"""One router process as its clients see it, whatever they speak: the door, the way to an answer, and the counters.

Knows the router and the values of `cascade.wire`; nothing of HTTP or gRPC, of bodies or their encodings. Decides nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import NamedTuple, TypeVar

from cascade.errors import NotReady, Overloaded, UnknownModel
from cascade.policy.request import Answer
from cascade.serving.answers import (
    BatchRows,
    by_batch,
    least_confidence,
    output_array,
    probabilities_of,
    recalled_rows,
    worst_of,
)
from cascade.serving.gate import Gate
from cascade.serving.messages import Asked
from cascade.serving.router import Router
from cascade.serving.succession import retire, take_over
from cascade.serving.watching import Watcher, watcher_of
from cascade.spec import Ladder
from cascade.wire import metadata
from cascade.wire.http import HeaderFacts, Provenance, priority_of, tenant_of, time_limit_s
from cascade.wire.oip import InferRequest, Limits, Signature
from cascade.wire.parameters import Parameter
from cascade.wire.status import RouterReading
from cascade.wire.tensors import Array, Datatype, TensorSpec

Reply = TypeVar("Reply")

PLATFORM = "cascade_ladder"


class Answered(NamedTuple):
    """The answer to one message.

    Attributes:
        outputs: declaration, array of shape ``[rows, *row]`` and whether the client wants it as binary data.
        parameters: what the answer says about itself.
        provenance: where it came from.
    """

    outputs: list[tuple[TensorSpec, Array, bool]]
    parameters: dict[str, Parameter]
    provenance: Provenance


class Service:
    """The service of one router process.

    Attributes:
        spec: the ladder's spec.
        signature: what clients may send, and what comes back.
        limits: how far a message may go.
        stage_names: cheapest stage first.
        gate: who is let in, and how many requests of one client at a time.
        watcher: what is written down of some requests.
        name: of this router process, among those of the ladder.
        problem: why this router has not taken a newer version up; empty if nothing is wrong.

    Args:
        ladder: the ladder.
        make_router: makes the router; called by `start`.
        watcher: see above; by default what the spec asks for.

    Raises:
        ConfigError: the spec asks for keys and their file cannot be used.
    """

    def __init__(self, ladder: Ladder, make_router: Callable[[], Router], watcher: Watcher | None = None) -> None:
        self.spec = ladder.spec
        self.signature = signature_of(ladder)
        self.limits = Limits(max_rows=self.spec.limits.max_rows, priorities=self.spec.admission.priorities)
        self.stage_names = [stage.name for stage in self.spec.stages]
        self.gate = Gate.of(ladder)
        self.watcher = watcher or watcher_of(self.spec)
        self.name = "router"
        self.problem = ""
        self._make_router = make_router
        self._router: Router | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._last_inference_ms = 0

    def start(self) -> None:
        """Make the router and let it begin; must be called in the event loop that will run it."""
        self._router = self._make_router()
        self._router.start()

    def renew(self) -> None:
        """Make another router, for the messages that come from now on; those under way end with the one that has them."""
        before, after = self.router, self._make_router()
        take_over(after, before)
        after.start()
        self._router = after
        retiring = asyncio.get_running_loop().create_task(retire(before))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Stop the router, and those whose messages have not ended."""
        for retiring in [*self._retiring]:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._router is not None:
            await self._router.close()
        await asyncio.to_thread(self.watcher.close)

    @property
    def ready(self) -> bool:
        """Whether it can answer."""
        return self._router is not None

    @property
    def router(self) -> Router:
        """The router.

        Raises:
            NotReady: `start` has not been called yet.
        """
        if self._router is None:
            raise NotReady("the first stage has not been loaded yet")
        return self._router

    def check_model(self, name: str, version: str | None) -> None:
        """Raise unless this model is served here.

        Args:
            name: the model's name.
            version: its version, None or empty for whichever there is.

        Raises:
            UnknownModel: it is not.
        """
        if name != self.spec.name:
            raise UnknownModel(f"model {name!r} is not served here, only {self.spec.name!r}")
        if version and version != self.spec.version:
            raise UnknownModel(f"model {name!r} has no version {version!r} here, only {self.spec.version!r}")

    # -- inference -----------------------------------------------------------------------------------------------------

    async def infer(
        self,
        facts: HeaderFacts,
        read: Callable[[], Awaitable[InferRequest]],
        write: Callable[[InferRequest, Answered], Reply],
    ) -> Reply:
        """Take one message from the door to its answer, and count it.

        Args:
            facts: what is known before it is read.
            read: reads and decodes it; called once it has passed the door.
            write: encodes the answer.

        Returns:
            What ``write`` made.

        Raises:
            CascadeError: what ``read``, ``write`` or the router raise.
        """
        router = self.router
        started_ns = time.perf_counter_ns()
        try:
            self.door(router, facts)
            request = await read()
            spent_s = (time.perf_counter_ns() - started_ns) * 1e-9  # reading it came out of the client's time
            reply = write(request, await self._answer(router, facts, request, spent_s))
        except Exception:
            router.requests["refused"] += 1
            raise
        except asyncio.CancelledError:
            router.requests["cancelled"] += 1
            raise
        self.count_answered(router, started_ns)
        return reply

    def count_answered(self, router: Router, started_ns: int) -> None:
        """Count a message that was answered.

        Args:
            router: the router.
            started_ns: when it came, by ``time.perf_counter_ns``.
        """
        router.requests["answered"] += 1
        router.durations.add((time.perf_counter_ns() - started_ns) * 1e-9)
        self._last_inference_ms = time.time_ns() // 1_000_000

    def count_refused(self) -> None:
        """Count an inference request that was refused before it came to `infer`."""
        if self._router is not None:
            self._router.requests["refused"] += 1

    def door(self, router: Router, facts: HeaderFacts) -> None:
        """Turn a message away on what is known before it is read; raises Overloaded then."""
        deadline, admission = self.spec.deadline, self.spec.admission
        # At the door only headers are known: what the body may say of deadline and class counts once it has been read.
        limit_s = time_limit_s(facts, None, deadline.default_s, deadline.max_s)
        priority = priority_of(facts, None, admission.priorities, admission.default_priority)
        router.door(1, limit_s, priority, tenant_of(facts, None))

    async def _answer(self, router: Router, facts: HeaderFacts, request: InferRequest, spent_s: float) -> Answered:
        asked, trail = self.asked(facts, request, spent_s), self.watcher.begin(facts, request)
        if trail is None:
            answers = await router.answer(request.inputs, request.rows, **asked)
        else:
            asked["trail"] = trail
            with self.watcher.ending(trail):
                answers = await router.answer(request.inputs, request.rows, **asked)
        batches, worst = by_batch(answers), worst_of(answers)
        probabilities = probabilities_of(batches)
        parameters = self.parameters(router, answers, batches, worst)
        if trail is not None:
            parameters |= self.watcher.end(router, trail, facts, request)
        return Answered(
            [(output.spec, output_array(output.spec, probabilities), output.binary) for output in request.outputs],
            parameters,
            self._provenance(worst),
        )

    def asked(self, facts: HeaderFacts, request: InferRequest, spent_s: float) -> Asked:
        """What a message asks for, out of its headers and its parameters.

        Args:
            facts: its headers.
            request: the message.
            spent_s: seconds of its time that reading it has taken.
        """
        deadline, admission = self.spec.deadline, self.spec.admission
        return {
            "budget_s": time_limit_s(facts, request.timeout_s, deadline.default_s, deadline.max_s) - spent_s,
            "priority": priority_of(facts, request.priority, admission.priorities, admission.default_priority),
            "max_cost": inf if request.max_cost is None else request.max_cost,
            "tenant": tenant_of(facts, request.tenant),
            "min_confidence": inf if request.min_confidence is None else request.min_confidence,
        }

    def parameters(
        self, router: Router, answers: list[Answer], batches: list[BatchRows], worst: Answer
    ) -> dict[str, Parameter]:
        """What an answer says about itself.

        Args:
            router: the router.
            answers: one for each row.
            batches: the same by the batches that they left from.
            worst: the one that speaks for all.
        """
        prices = router.policy.prices
        parameters: dict[str, Parameter] = {
            "cascade_stage": self.stage_names[worst.stage],
            "cascade_exit_reason": worst.reason.value,
            "cascade_degraded": worst.degraded,
            "cascade_confidence": round(worst.confidence if len(answers) == 1 else least_confidence(batches), 6),
            "cascade_cost": sum([answer.cost for answer in answers]),
            "cascade_price": prices[worst.stage + 1] if worst.stage + 1 < len(prices) else 0.0,
        }
        if router.version:
            parameters["cascade_version"] = router.version
        if router.monitor is not None and router.monitor.certified_loss is not None:
            parameters["cascade_certified_loss"] = round(router.monitor.certified_loss, 6)
        if len(answers) > 1:
            # Degraded answers are the worse ones, so if the worst is none there are none.
            parameters["cascade_degraded_rows"] = sum([answer.degraded for answer in answers]) if worst.degraded else 0
        if recalled := recalled_rows(batches):
            parameters["cascade_recalled_rows"] = recalled
        return parameters

    def _provenance(self, worst: Answer) -> Provenance:
        timings = [("queue", sum(span.queued_s for span in worst.spans))]
        timings += [(self.stage_names[span.stage], span.run_s) for span in worst.spans]
        return Provenance(self.stage_names[worst.stage], worst.reason.value, worst.degraded, tuple(timings))

    # -- counters ------------------------------------------------------------------------------------------------------

    def live(self) -> metadata.Document:
        """The live figures under the name by which documents hold them; empty where nobody keeps them."""
        monitor = self.router.monitor
        return {} if monitor is None else {"live": monitor.read().document()}

    def reading(self) -> RouterReading:
        """What this router says of itself to people.

        Raises:
            NotReady: it has not started yet, or keeps no figures.
        """
        monitor = self.router.monitor
        if monitor is None:
            raise NotReady("nobody keeps figures of this router")
        return RouterReading(self.name, self.router.version, monitor.read(), self.problem)

    def statistics(self) -> list[metadata.ModelStatistics]:
        """Counters of the cascade, and of each stage."""
        router = self.router
        counts, answered, refused = router.policy.counts, router.requests["answered"], router.requests["refused"]
        entries = [
            metadata.ModelStatistics(
                name=self.spec.name,
                version=self.spec.version,
                inference_count=counts.answered,
                execution_count=answered,
                last_inference_ms=self._last_inference_ms,
                success=metadata.Duration(answered, int(router.durations.seconds * 1e9)),
                fail=metadata.Duration(refused, 0),
            )
        ]
        for name, stage in zip(self.stage_names, counts.stages, strict=True):
            run = metadata.Duration(stage.batches, int(stage.run_s * 1e9))
            entries.append(
                metadata.ModelStatistics(
                    name=f"{self.spec.name}.{name}",
                    version=self.spec.version,
                    inference_count=stage.rows,
                    execution_count=stage.batches,
                    last_inference_ms=self._last_inference_ms,
                    success=run,
                    fail=metadata.Duration(stage.failures, 0),
                    queue=metadata.Duration(stage.rows, int(stage.queued_s * 1e9)),
                    compute_infer=run,
                )
            )
        return entries


def signature_of(ladder: Ladder) -> Signature:
    """What clients may send to a ladder, and what comes back."""
    spec = ladder.spec
    outputs = (
        TensorSpec("label", Datatype.INT64, ()),
        TensorSpec("probabilities", Datatype.FP32, (len(spec.labels),)),
    )
    return Signature(spec.name, spec.version, tuple(field.tensor for field in spec.inputs), outputs)


async def hold_back(error: Exception) -> None:
    """Wait for as long as a refusal is to be kept back from its client."""
    if isinstance(error, Overloaded) and error.hold_s:
        await asyncio.sleep(error.hold_s)
