"""The cascade as a peer's user would write it into a predict function: a batch through the rungs, fewer rows at each.

Networks, weights, judges and prices are the ladder's own, so that every row gets the label and the rung that cascade gives
it. Runs in the peers' environments: knows torch and the ladder's files; no Ray, no server, no clock.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascade.assembly import read_artefacts
from cascade.loading import load_network
from cascade.policy.gain import Earlier
from cascade.policy.price import continuation_value
from cascade.spec import Ladder


class Predicted(NamedTuple):
    """Answers of a batch.

    Attributes:
        labels: int64 [n].
        stages: index of the rung that each row left at, int64 [n].
    """

    labels: NDArray[np.int64]
    stages: NDArray[np.int64]


class Predict:
    """A ladder in one process, one torch thread.

    Args:
        spec: path of the ladder's spec.
    """

    def __init__(self, spec: str | Path) -> None:
        ladder = Ladder.read(spec)
        self._networks = [load_network(ladder, stage) for stage in ladder.spec.stages]
        self._judges = [stage.judge() for stage in read_artefacts(ladder)[0].stages]
        self._prices = ladder.spec.base_prices
        self._input = ladder.spec.inputs[0].name

    def __call__(self, images: NDArray[np.uint8]) -> Predicted:
        """Answer a batch, uint8 [n, 28, 28]."""
        rows = np.arange(len(images))
        answered = Predicted(np.empty(len(images), np.int64), np.empty(len(images), np.int64))
        earlier = None
        last = len(self._networks) - 1
        for index, network in enumerate(self._networks):
            judgement = self._judges[index](network.run({self._input: images}).logits, earlier)
            answered.labels[rows] = judgement.probabilities.argmax(axis=1)
            answered.stages[rows] = index
            if index == last:
                break
            value = continuation_value(judgement.gains, index, range(index + 1, last + 1), self._prices)
            go = value > self._prices[index + 1]
            if not go.any():
                break
            rows, images = rows[go], images[go]
            earlier = Earlier(judgement.probabilities[go], judgement.p_correct[go])
        return answered
