"""What the policy must know of a stage before anything has run on it. Plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What the policy must know of a stage.

    Attributes:
        slots: batches that may be with its replicas at a time.
        max_batch_size: rows in a batch, at most.
        cost: cost of one row, in the ladder's cost unit.
        base_price: gain that a visit must promise when nothing is scarce.
        a_s: profiled seconds of any batch.
        b_s: profiled seconds that a row adds.
        timeout_floor_s: a batch is never given up before this.
        hop_s: seconds to a replica and back, until they are learned.
        resumes: whether it goes on from what the stage before left, see `cascade.policy.chains`.
        thinks: whether its network takes the surcharge and thinks the less for it, see `Tariff.pressure`.
    """

    slots: int
    max_batch_size: int
    cost: float
    base_price: float
    a_s: float
    b_s: float
    timeout_floor_s: float = 1.0
    hop_s: float = 0.0
    resumes: bool = False
    thinks: bool = False
