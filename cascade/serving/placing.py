"""The stages that run inside a router. Knows the spec and networks; no handles."""

import time

from cascade.calibration.artefact import ServiceProfile
from cascade.loading import load_chain
from cascade.serving.stage_client import InlineStage, StageClient, ThreadStage
from cascade.spec import Ladder
from cascade.spec_exits import groups
from cascade.wire.tensors import Datatype

INLINE_LIMIT_S = 0.002
"""A router-placed stage whose full batch takes longer than this gets a thread of its own, so that the loop stays free."""


def place_here(ladder: Ladder, index: int, profile: ServiceProfile) -> list[StageClient | InlineStage]:
    """Load a stage into this process, and those that run together with it: each inside the event loop if its full batch is
    short, else in a thread.

    What one leaves for the next is arrays of this process, which nobody has to keep.
    """
    (group,) = (group for group in groups(ladder.spec.stages) if group.start == index)
    placed: list[StageClient | InlineStage] = []
    example = ladder.example_row()
    texts = any(field.datatype is Datatype.BYTES for field in ladder.spec.inputs)
    for each, stage in zip(group, load_chain(ladder, group), strict=True):
        rows, measured = ladder.spec.stages[each].max_batch_size, profile.stages[each]
        durations = []
        for _ in range(5):
            started = time.perf_counter()
            stage.warm_up(example, (rows,))
            durations.append(time.perf_counter() - started)
        example = dict(stage.run(example).state or {})
        # Rows of zeros take as long as any, empty BYTES do not: for them what profile saw of real rows counts.
        full_s = max(min(durations), measured.a_s + measured.b_s * rows if texts else 0.0)
        placed.append(InlineStage(stage) if full_s < INLINE_LIMIT_S else ThreadStage(stage))
    return placed
