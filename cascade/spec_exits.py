"""Which stages of a spec are exits of one network, and what must hold for them. Knows their fields; builds no network.

A stage that resumes goes on where the stage before it stopped. Stages of which each resumes the one before are a chain; the
first of them begins at the inputs. Its ``cost`` is that of the segment that it runs itself, so a row that walks the chain
has paid for each block once.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

FROM_OWNER = (
    "replicas",
    "min_replicas",
    "max_replicas",
    "num_cpus",
    "num_gpus",
    "threads",
    "nice",
)
"""Fields that say how processes are made; of stages that run together in one, the first one's count."""


class ExitModel(Protocol):
    """A stage's model, as far as it matters here."""

    @property
    def factory(self) -> str:
        """See `cascade.spec.ModelRef`."""
        ...

    @property
    def args(self) -> Mapping[str, Any]:
        """See `cascade.spec.ModelRef`."""
        ...

    @property
    def weights(self) -> str | None:
        """See `cascade.spec.ModelRef`."""
        ...

    @property
    def exit(self) -> int | None:
        """See `cascade.spec.ModelRef`."""
        ...


class ExitStage(Protocol):
    """A stage, as far as it matters here."""

    @property
    def name(self) -> str:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def model(self) -> ExitModel:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def cost(self) -> float:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def placement(self) -> str:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def resumes(self) -> bool:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def numerics(self) -> Mapping[str, Any]:
        """See `cascade.spec.StageSpec`."""
        ...

    @property
    def model_fields_set(self) -> set[str]:
        """Fields that were given."""
        ...


def check_exits(stages: Sequence[ExitStage]) -> None:
    """Raise where a stage cannot resume the one before it.

    Args:
        stages: the ladder.

    Raises:
        ValueError: one sentence that names the stage and what must hold.
    """
    for place, stage in enumerate(stages):
        before = stages[place - 1] if place else None
        if stage.resumes:
            _check_resumes(stage, before)
        if stage.placement != "together":
            continue
        if not stage.resumes:
            raise ValueError(f"stages: placement together needs resumes, which {stage.name!r} does not say")
        given = [field for field in FROM_OWNER if field in stage.model_fields_set]
        if given:
            owner = stages[owner_of(stages, place)].name
            raise ValueError(
                f"stages: {stage.name!r} runs together with {owner!r}, whose {', '.join(given)} it takes; leave them out"
            )


def _check_resumes(stage: ExitStage, before: ExitStage | None) -> None:
    if before is None:
        raise ValueError(f"stages: {stage.name!r} resumes, but there is no stage before it")
    where = f"stages: {stage.name!r} resumes {before.name!r}"
    if stage.model.exit is None or before.model.exit is None:
        lacks = stage.name if stage.model.exit is None else before.name
        raise ValueError(f"{where}, so both need model.exit, which {lacks!r} lacks")
    if stage.model.exit <= before.model.exit:
        raise ValueError(f"{where}, so its exit must be behind exit {before.model.exit}, got {stage.model.exit}")
    for field in ("factory", "args", "weights"):
        own, other = getattr(stage.model, field), getattr(before.model, field)
        if own != other:
            raise ValueError(f"{where}, so model.{field} must be the same, got {own!r} and {other!r}")
    if stage.numerics != before.numerics:
        raise ValueError(
            f"{where}, so precision and what changes outputs in execution must be the same, "
            f"got {dict(stage.numerics)} and {dict(before.numerics)}"
        )


def chain_of(stages: Sequence[ExitStage], index: int) -> range:
    """The stages from the one that begins at the inputs to ``index``, each of which resumes the one before."""
    first = index
    while stages[first].resumes:
        first -= 1
    return range(first, index + 1)


def owner_of(stages: Sequence[ExitStage], index: int) -> int:
    """The stage in whose processes the stage ``index`` runs: itself, unless it is placed together with that one."""
    while stages[index].placement == "together":
        index -= 1
    return index


def owners_of(stages: Sequence[ExitStage]) -> list[int]:
    """`owner_of` every stage."""
    return [owner_of(stages, index) for index in range(len(stages))]


def chains(stages: Sequence[ExitStage]) -> list[range]:
    """The stages by what must run together: each that begins at the inputs, with those that resume from it."""
    return _parts([not stage.resumes for stage in stages])


def groups(stages: Sequence[ExitStage]) -> list[range]:
    """The stages by the processes in which they run: those that run together are one group."""
    return _parts([stage.placement != "together" for stage in stages])


def groups_of(stages: Sequence[ExitStage]) -> tuple[tuple[int, ...], ...]:
    """The stages that run on the same replicas, several each; none that has its own."""
    return tuple(tuple(group) for group in groups(stages) if len(group) > 1)


def _parts(begins: Sequence[bool]) -> list[range]:
    """Neighbours up to the next that begins a part."""
    starts = [index for index, begin in enumerate(begins) if begin]
    return [range(start, end) for start, end in pairwise([*starts, len(begins)])]


def leaves_state(stages: Sequence[ExitStage], index: int) -> bool:
    """Whether the stage behind ``index`` resumes from it."""
    return index + 1 < len(stages) and stages[index + 1].resumes


def costs_alone(costs: Sequence[float], resumes: Sequence[bool]) -> tuple[float, ...]:
    """What a row costs that is run from its inputs to each stage's answer, without asking any other stage.

    Args:
        costs: what each stage itself costs.
        resumes: whether it goes on from the stage before.
    """
    alone: list[float] = []
    for cost, goes_on in zip(costs, resumes, strict=True):
        alone.append(cost + (alone[-1] if goes_on else 0.0))
    return tuple(alone)
