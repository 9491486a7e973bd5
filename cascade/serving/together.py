"""Stages that run together: one process holds all segments of a network, and keeps the activations between them.

What crosses the wire is a ticket for each row: which replica has its state, and in which slot. A batch whose rows lie with
several replicas is split, and each part goes where its states are. A state that is lost, because its replica has ended or
needed the memory, is made again from the row's inputs, on any replica. Knows networks and handles; decides nothing.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cascade.loading import load_chain
from cascade.models.device import Device
from cascade.models.energy import Energy
from cascade.models.exits import State
from cascade.models.kept import KeptStates
from cascade.models.stage import Arrays, StageResult
from cascade.serving.calls import Calls
from cascade.serving.logs import log_to_serve
from cascade.serving.passes import Passes, Turns
from cascade.serving.replicas import DIGEST, tag_of
from cascade.serving.states import Again
from cascade.spec import Ladder
from cascade.versions import group_digest

TICKET = "ticket"
"""Name of the only array in a state that is kept elsewhere: int64 [rows, 2], the replica's tag and the slot there."""
FREE_EVERY_S = 0.25
"""How long a row that goes no further may take up its slot until its replica is told; calls tell it before that."""

Slots = NDArray[np.int64]
Energies = tuple[float, float] | None


class Reply(NamedTuple):
    """What a replica answers: plain values, which pickle fast.

    Attributes:
        logits: [n, classes] of the rows that it has run.
        run_s: see `StageResult`.
        energy: joules and idle joules, where they are measured.
        slots: [n] where their states are; None where nobody resumes.
        tag: the replica's own.
        places: [n] place of each row among those that were asked for; None where they are in order, and all there.
    """

    logits: NDArray[np.float32]
    run_s: float
    energy: Energies
    slots: Slots | None
    tag: int
    places: NDArray[np.intp] | None = None


class TogetherReplica:
    """One replica of stages that run together. It makes one pass at a time, of one of them, see `Turns`.

    Args:
        ladder: the ladder.
        stages: which of its stages; each resumes the one before.
        device: where it runs; None for what `load_chain` chooses.
        tag: its own in tickets; None for what follows from its name in Serve.
    """

    def __init__(self, ladder: Ladder, stages: range, device: Device | None = None, tag: int | None = None) -> None:
        log_to_serve()
        self._digest = group_digest(ladder, stages)
        self._networks = dict(zip(stages, load_chain(ladder, stages, device=device, meter=True), strict=True))
        self._first = stages.start
        self._tag = tag_of(serve.get_replica_context().replica_id.unique_id) if tag is None else tag
        spec = ladder.spec
        owner = spec.stages[stages.start]
        # No row outlives the longest time limit that a client may have.
        self._kept = KeptStates(owner.kept_mib << 20, spec.deadline.max_s + 1.0, time.monotonic)
        turns = Turns()
        self._passes = {
            index: Passes(
                partial(network.run, keep=True),
                spec.stages[index].max_batch_size,
                nice=owner.nice,
                begin=partial(network.begin, keep=True) if network.pipeline is not None else None,
                in_flight=network.in_flight,
                pads=index > stages.start,
                turns=(turns, index),
            )
            for index, network in self._networks.items()
        }

    async def run(self, index: int, inputs: Arrays, call: int = 0, to: int | None = None) -> Reply:  # noqa: ARG002
        """Run rows from the inputs of the first of the stages up to the answer of one.

        Args:
            index: which.
            inputs: one contiguous array [n, *row] for each input.
            call: number of the call, by which its sender follows it.
            to: this replica's tag, if the call was addressed.
        """
        going: Arrays | State = inputs
        run_s = 0.0
        energies: list[Energy] = []
        for stage in range(self._first, index + 1):
            result = await asyncio.wrap_future(self._passes[stage].submit(going))
            run_s += result.run_s
            if result.energy is not None:
                energies.append(result.energy)
            going = result.kept or {}
        return self._reply(result.logits, run_s, energies, result.kept)

    async def resume(self, index: int, slots: Slots, freed: Slots, to: int, call: int = 0) -> Reply:  # noqa: ARG002
        """Run rows from what is kept here to the answer of a stage.

        Args:
            index: which.
            slots: [n] where they are.
            freed: slots that nobody wants any more.
            to: this replica's tag, by which the call got here.
            call: see `run`.

        Returns:
            The rows whose states were found.
        """
        if to != self._tag:
            # Meant for one that is gone, or that this one has been started to replace: these slots are other rows' here.
            return Reply(np.empty((0, 0), np.float32), 0.0, None, None, self._tag, np.empty(0, np.intp))
        self._kept.free(freed)
        state, places = self._kept.take(slots)
        if state is None:
            return Reply(np.empty((0, 0), np.float32), 0.0, None, None, self._tag, places)
        if self._networks[index].device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # what gathered the rows; other streams read them next
        result = await asyncio.wrap_future(self._passes[index].submit(state))
        energies = [] if result.energy is None else [result.energy]
        return self._reply(result.logits, result.run_s, energies, result.kept)._replace(places=places)

    async def free(self, freed: Slots, to: int) -> None:
        """These slots of the replica with that tag are not wanted any more."""
        if to == self._tag:
            self._kept.free(freed)

    async def stay(self, seconds: float) -> None:
        """Have work for so long, so that Serve does not stop this replica before; see `cascade.serving.staying`."""
        await asyncio.sleep(seconds)

    def record_replica_metadata(self) -> dict[str, str]:
        """What routers are to know of this replica; asked for by Serve once, when it has started."""
        return {DIGEST: self._digest}

    def check_health(self) -> None:
        """Called by Serve now and then; raises where only another process can help."""
        if any(network.lost for network in self._networks.values()):
            raise RuntimeError("the GPU failed for good in this process")

    def _reply(self, logits: NDArray[np.float32], run_s: float, energies: list[Energy], kept: State | None) -> Reply:
        joules = (sum(each.joules for each in energies), sum(each.idle_joules for each in energies)) if energies else None
        return Reply(logits, run_s, joules, None if kept is None else self._kept.keep(kept), self._tag)


class TogetherHandle:
    """One router's way to the replicas of stages that run together, and the slots there that it has to give back.

    Args:
        handle: handle of the `TogetherReplica` deployment, whose calls can be addressed (`AddressedRouter`).
        deployment: its name.
    """

    def __init__(self, handle: DeploymentHandle[TogetherReplica], deployment: str) -> None:
        self._calls = Calls(deployment)
        plain: dict[str, Any] = {"request_serialization": "pickle", "response_serialization": "pickle"}
        self._run = handle.options(method_name="run", **plain)
        self._resume = handle.options(method_name="resume", **plain)
        self._free = handle.options(method_name="free", **plain)
        self._unwanted: defaultdict[int, list[int]] = defaultdict(list)
        self._telling: asyncio.Task[None] | None = None

    async def run(self, index: int, inputs: Arrays) -> Reply:
        """See `TogetherReplica.run`; on any replica."""
        rows = len(next(iter(inputs.values())))
        kind = ("run", index, rows.bit_length())
        reply: Reply = await self._calls.make(self._run.remote, kind, index, inputs, discard=self._discard)
        return reply

    def _discard(self, reply: Reply) -> None:
        if reply.slots is not None:
            self.forget(np.column_stack([np.full_like(reply.slots, reply.tag), reply.slots]))

    async def resume(self, index: int, tag: int, slots: Slots) -> Reply:
        """See `TogetherReplica.resume`; on the replica with that tag, or any other if it is gone."""
        freed = np.array(self._unwanted.pop(tag, ()), dtype=np.int64)
        kind = ("resume", index, len(slots).bit_length())
        reply: Reply = await self._calls.make(self._resume.remote, kind, index, slots, freed, to=tag)
        return reply

    def forget(self, tickets: NDArray[np.int64]) -> None:
        """Nobody wants these rows, [n, 2], any more; their replicas are told soon."""
        for tag, slot in tickets.tolist():
            self._unwanted[tag].append(slot)
        if self._telling is None:
            # Not in the context of the client whose row this is, as in the router.
            self._telling = asyncio.get_running_loop().create_task(self._tell(), context=Context())

    async def _tell(self) -> None:
        await asyncio.sleep(FREE_EVERY_S)
        self._telling = None
        unwanted, self._unwanted = self._unwanted, defaultdict(list)
        for tag, slots in unwanted.items():
            with suppress(Exception):  # of a replica that is gone, and its states with it
                await self._free.remote(np.array(slots, dtype=np.int64), to=tag)


class TogetherStage:
    """One of the stages that run together, as a router reaches it (`cascade.serving.states.KeepsState`).

    Args:
        handle: the way to the replicas, shared with the others.
        index: which stage of the ladder.
    """

    def __init__(self, handle: TogetherHandle, index: int) -> None:
        self._handle = handle
        self._index = index

    async def run(self, inputs: Arrays) -> StageResult:
        """Run one batch from the inputs on."""
        return _result([(await self._handle.run(self._index, inputs), None)], len(next(iter(inputs.values()))))

    async def resume(self, state: Arrays, again: Again) -> StageResult:
        """Run one batch from its tickets; see `KeepsState`."""
        tickets = state[TICKET]
        groups = [(int(tag), np.flatnonzero(tickets[:, 0] == tag)) for tag in np.unique(tickets[:, 0])]
        replies = await asyncio.gather(
            *(self._handle.resume(self._index, tag, tickets[places, 1]) for tag, places in groups), return_exceptions=True
        )
        parts: list[tuple[Reply, NDArray[np.intp] | None]] = []
        lost: list[int] = []
        for (_, places), reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                lost += (
                    places.tolist()
                )  # the replica has ended, or the pass failed; where that was the rows' fault, it shows
            elif isinstance(reply, BaseException):
                raise reply
            else:
                found = places if reply.places is None else places[reply.places]
                lost += np.setdiff1d(places, found).tolist()
                if len(found):
                    parts.append((reply, found))
        if lost:
            parts.append((await self._handle.run(self._index, again(lost)), np.array(lost)))
        return _result(parts, len(tickets), recomputed=len(lost))

    def forget(self, state: Arrays, places: Sequence[int]) -> None:
        """See `KeepsState`."""
        self._handle.forget(state[TICKET][places])


def _result(parts: Sequence[tuple[Reply, NDArray[np.intp] | None]], rows: int, *, recomputed: int = 0) -> StageResult:
    """The replies of several replicas as one batch; a part's rows are all of them if None."""
    joules = [reply.energy for reply, _ in parts if reply.energy is not None]
    energy = Energy(sum(each for each, _ in joules), sum(idle for _, idle in joules)) if joules else None
    run_s = sum(reply.run_s for reply, _ in parts)
    logits: NDArray[np.float32] | None = None
    tickets: Slots | None = None
    for reply, places in parts:
        where: Any = slice(None) if places is None else places
        if logits is None:
            logits = np.empty((rows, reply.logits.shape[1]), np.float32)
        logits[where] = reply.logits
        if reply.slots is not None:
            if tickets is None:
                tickets = np.empty((rows, 2), np.int64)
            tickets[where, 0], tickets[where, 1] = reply.tag, reply.slots
    if logits is None:
        raise ValueError("no replica answered any row")
    return StageResult(logits, run_s, energy, None if tickets is None else {TICKET: tickets}, recomputed=recomputed)
