"""Cheaper variants of a network, each with the factory and the weights that make it again. Knows torch; no ladder, no file.

    int8-dynamic   convolutions and linear layers in int8, activations scaled row by row
    int8-static    the same, activations scaled by ranges seen on rows
    float16        weights and arithmetic in half precision
    bfloat16       the same in bfloat16
    pruned         a share of the channels taken out, mended by what the whole network says
    distilled      another network, taught by this one

Rows, where a method needs some, are training rows: neither the ones that calibrate a ladder nor those that test it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.distil import Progress, Training, train
from cascade.models.factory import call_factory
from cascade.models.int8 import input_ranges, quantise, quantised
from cascade.models.pruning import Norm, prune, resized
from cascade.models.stage import Precision

RANGE_ROWS = 1024
"""Rows on which the ranges of activations are seen, at most."""
CHUNK = 64
"""Rows that run together while nothing is measured."""


class Method(StrEnum):
    """A way to make a network cheaper."""

    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    PRUNED = "pruned"
    DISTILLED = "distilled"

    @property
    def needs_rows(self) -> bool:
        """Whether it can do nothing without training rows."""
        return self in (Method.INT8_STATIC, Method.DISTILLED)


@dataclass(frozen=True, eq=False)
class Source:
    """The network that is to become cheaper.

    Attributes:
        factory: ``package.module:callable``.
        args: its keyword arguments.
        network: what it returned, with its weights, float32, on the CPU, in evaluation mode.
    """

    factory: str
    args: Mapping[str, Any]
    network: nn.Module


@dataclass(frozen=True, eq=False)
class Rows:
    """Training rows.

    Attributes:
        inputs: what ``forward`` takes, [n, ...] each.
        labels: [n].
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Student:
    """What a distilled variant is made of.

    Attributes:
        factory: of the untaught network.
        args: its keyword arguments.
        state: weights that it begins with; None for those that the factory gives it.
    """

    factory: str
    args: Mapping[str, Any]
    state: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class How:
    """What the methods can be told.

    Attributes:
        keep: share of the channels that pruning leaves.
        norm: by which it orders them.
        leave: names of layers that int8 leaves alone.
        student: what to distil into; None where that is not asked for.
        distilling: how a student is trained.
        mending: how a pruned network is.
    """

    keep: float = 0.5
    norm: Norm = "l2"
    leave: tuple[str, ...] = ()
    student: Student | None = None
    distilling: Training = field(default_factory=Training)
    mending: Training = field(default_factory=lambda: Training(rate=1e-3))


@dataclass(frozen=True, eq=False)
class Variant:
    """A cheaper network as a spec can name it.

    Attributes:
        method: how it was made.
        factory: makes its network, without weights.
        args: keyword arguments of the factory, plain values.
        state: its weights.
        precision: number format that it runs in.
        note: what happened on the way, for a person; empty if nothing did.
    """

    method: Method
    factory: str
    args: dict[str, Any]
    state: dict[str, Tensor] = field(repr=False)
    precision: Precision = "float32"
    note: str = ""


def make(
    method: Method,
    source: Source,
    example: Sequence[Tensor],
    rows: Rows | None,
    how: How,
    *,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> Variant:
    """Make one variant; the source stays as it is.

    Args:
        method: how.
        source: of what.
        example: one row or more of what ``forward`` takes.
        rows: training rows; None where there are none.
        how: details.
        clock: seconds, by which training is limited.
        progress: told how far a training is.

    Raises:
        ConfigError: the method needs rows or a student that are not there, or does not fit the network.
    """
    if method.needs_rows and rows is None:
        raise ConfigError(f"{method} needs training rows")
    if method in (Method.INT8_DYNAMIC, Method.INT8_STATIC):
        return _int8(method, source, example, rows, how)
    if method in (Method.FLOAT16, Method.BFLOAT16):
        precision: Precision = "float16" if method is Method.FLOAT16 else "bfloat16"
        dtype = getattr(torch, precision)
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in source.network.state_dict().items()}
        return Variant(method, source.factory, dict(source.args), state, precision)
    if method is Method.PRUNED:
        return _pruned(source, example, rows, how, clock, progress)
    return _distilled(source, rows, how, clock, progress)


def logits_of(network: nn.Module, inputs: Sequence[Tensor], told: Callable[[float], None] | None = None) -> Tensor:
    """What a network says about rows, float32 [n, classes]; not in inference mode, so that it can be trained on."""
    parts = []
    count = len(inputs[0])
    network.eval()
    with torch.no_grad():
        for start in range(0, count, CHUNK):
            parts.append(network(*(array[start : start + CHUNK] for array in inputs)).float())
            if told is not None:
                told(min(1.0, (start + CHUNK) / count))
    return torch.cat(parts)


def _int8(method: Method, source: Source, example: Sequence[Tensor], rows: Rows | None, how: How) -> Variant:
    static = method is Method.INT8_STATIC
    ranges, leave, note = None, set(how.leave), ""
    if static:
        assert rows is not None
        picks = torch.linspace(0, len(rows) - 1, min(RANGE_ROWS, len(rows))).long()
        inputs = [array[picks] for array in rows.inputs]
        batches = -(-len(picks) // CHUNK)
        ranges = input_ranges(source.network, lambda: _discard(logits_of(source.network, inputs)), batches, how.leave)
        note = f"ranges from {len(picks):,} rows"
    args: dict[str, Any] = {
        "factory": source.factory,
        "args": dict(source.args),
        "activations": "static" if static else "dynamic",
    }
    if ranges is not None:
        # A layer that nothing went through has no range, and is none that could be too slow.
        probe = quantised(source.factory, source.args, "static", how.leave)
        leave |= {n for n, m in probe.named_modules() if hasattr(m, "input_scale") and n not in ranges}
    if leave:
        args["leave"] = sorted(leave)
    network = quantised(source.factory, source.args, args["activations"], sorted(leave))
    if not any(hasattr(module, "weight_scale") for module in network.modules()):
        raise ConfigError(f"{type(source.network).__name__} has no plain Conv2d or Linear layer that int8 could replace")
    quantise(source.network, network, ranges)
    logits_of(network, example)  # what does not fit the kernels shows here, not when it is served
    return Variant(method, "cascade.models.int8:quantised", args, dict(network.state_dict()), note=note)


def _pruned(
    source: Source,
    example: Sequence[Tensor],
    rows: Rows | None,
    how: How,
    clock: Callable[[], float],
    progress: Progress | None,
) -> Variant:
    network = copy.deepcopy(source.network)
    shapes = prune(network, example, keep=how.keep, norm=how.norm)
    note = "not mended: no training rows"
    if rows is not None:
        network, note = _taught(network, source.network, rows, how.mending, clock, progress)
    args = {"factory": source.factory, "args": dict(source.args), "shapes": shapes}
    resized(source.factory, source.args, shapes).load_state_dict(network.state_dict())
    return Variant(Method.PRUNED, "cascade.models.pruning:resized", args, dict(network.state_dict()), note=note)


def _distilled(
    source: Source, rows: Rows | None, how: How, clock: Callable[[], float], progress: Progress | None
) -> Variant:
    if how.student is None:
        raise ConfigError("distilled needs a student: the name of a stage, or a factory")
    assert rows is not None
    torch.manual_seed(how.distilling.seed)
    student: nn.Module = call_factory(how.student.factory, how.student.args)
    if how.student.state is not None:
        student.load_state_dict(how.student.state)
    student, note = _taught(student, source.network, rows, how.distilling, clock, progress)
    return Variant(Method.DISTILLED, how.student.factory, dict(how.student.args), dict(student.state_dict()), note=note)


def _taught(
    student: nn.Module,
    teacher: nn.Module,
    rows: Rows,
    training: Training,
    clock: Callable[[], float],
    progress: Progress | None,
) -> tuple[nn.Module, str]:
    def told(share: float) -> None:
        if progress is not None:
            progress(0.2 * share, "asking the teacher")

    def going(share: float, how: str) -> None:
        if progress is not None:
            progress(0.2 + 0.8 * share, how)

    targets = logits_of(teacher, rows.inputs, told)
    try:
        done = train(student, rows.inputs, rows.labels, targets, training, clock=clock, progress=going)
    except FloatingPointError as error:
        raise ConfigError(f"training failed: {error}; a smaller learning rate may help") from error
    note = f"{done.epochs:.1f} epochs of {len(rows):,} rows in {done.seconds:.0f} s, loss {done.loss:.3f}"
    return done.network, note


def _discard(_: Tensor) -> None:
    return None
