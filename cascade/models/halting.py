"""Networks that choose their depth for each row: one block, again and again, until the row halts. Knows torch; no price.

Behind every step a halting head says how probable it is that this step is the last one needed. Two ways to train it are in
`cascade.models.halting_losses`, adaptive computation time (ACT) and PonderNet. Their answers differ:

    ACT        h_n is the step's share of the answer: sum_{n<N} h_n y_n + R y_N, with R = 1 - sum_{n<N} h_n
    PonderNet  lambda_n is the probability of halting at step n once it is reached; the answer is y_N

Either halts a row at the first step N where its *doubt*, the probability that it needs another step,

    ACT        1 - (h_1 + ... + h_N)
    PonderNet  (1 - lambda_1) ... (1 - lambda_N)

is no more than epsilon + pressure. So the threshold is a price: a row goes on thinking while its doubt is worth more than
epsilon, and under load more than epsilon and a surcharge. A row that has halted leaves the batch. The paper on PonderNet
draws N by dice; a server that gives one row two answers would be worse, so here the doubt decides.
"""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Rule = Literal["act", "ponder"]


class Thought(NamedTuple):
    """What thinking came to.

    Attributes:
        logits: [rows, classes].
        depth: steps that each row took, int64 [rows], from 1.
    """

    logits: Tensor
    depth: Tensor


@runtime_checkable
class Thinks(Protocol):
    """A network whose depth can be shortened. Any network may be one; `PonderNetwork` is."""

    def think(self, *inputs: Any, pressure: Tensor) -> Thought:
        """Answer, with less thought under more pressure.

        Args:
            inputs: what the network takes.
            pressure: float32 [rows], what load adds to the halting threshold; 0 for none.
        """
        ...


class Steps(NamedTuple):
    """Every step of every row, for training.

    Attributes:
        logits: y, [rows, steps, classes].
        halting: h or lambda, [rows, steps], probabilities.
    """

    logits: Tensor
    halting: Tensor


class PonderNetwork(nn.Module):
    """A stem, one block that is run again and again with the same weights, and two heads behind every step.

    In evaluation mode it is a network like any other, which takes inputs and returns logits [rows, classes].

    Args:
        stem: takes the inputs, returns features [rows, ...].
        block: takes features and returns features of the same shape.
        halt: takes features, returns [rows, 1]: the logit of halting here.
        head: takes features, returns logits [rows, classes].
        steps: most steps that a row may take.
        rule: ``act`` or ``ponder``; the way it was trained.
        epsilon: doubt that is no reason to go on, even without load. Graves takes 0.01, so that one step may suffice.
        scale: how much a unit of pressure adds to it.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        stem: nn.Module,
        block: nn.Module,
        halt: nn.Module,
        head: nn.Module,
        *,
        steps: int,
        rule: Rule = "ponder",
        epsilon: float = 0.01,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if steps < 1 or not 0 <= epsilon < 1 or not scale >= 0:
            raise ValueError(
                f"steps must be at least 1, epsilon from 0 to below 1, scale not negative, got {steps}, {epsilon}, {scale}"
            )
        if rule not in ("act", "ponder"):
            raise ValueError(f"rule must be act or ponder, got {rule!r}")
        self.stem = stem
        self.block = block
        self.halt = halt
        self.head = head
        self.steps = steps
        self.rule: Rule = rule
        self.epsilon = epsilon
        self.scale = scale

    def unroll(self, *inputs: Any) -> Steps:
        """All steps of all rows."""
        features = self.stem(*inputs)
        logits, halting = [], []
        for _ in range(self.steps):
            features = self.block(features)
            logits.append(self.head(features))
            halting.append(self._halting(features))
        return Steps(torch.stack(logits, dim=1), torch.stack(halting, dim=1))

    def think(self, *inputs: Any, pressure: Tensor) -> Thought:
        """See `Thinks`. Rows that halt leave the batch, so a step costs what the rows that take it cost."""
        features = self.stem(*inputs)
        # Doubt is a probability, so that a row under all the pressure there can be still takes its first step, and halts.
        threshold = (self.epsilon + self.scale * pressure.to(features.device).float()).clamp(max=1.0)
        rows = torch.arange(len(features), device=features.device)
        doubt = torch.ones(len(features), device=features.device)
        mixed = torch.zeros((len(features), 1), device=features.device)
        halted, answers, depths = [], [], []
        for step in range(1, self.steps + 1):
            features = self.block(features)
            own, halting = self.head(features).float(), self._halting(features)
            left = doubt * (1 - halting) if self.rule == "ponder" else doubt - halting
            halts = left <= threshold if step < self.steps else torch.ones_like(left, dtype=torch.bool)
            if self.rule == "act":
                # The last step weighs what is left of 1, the ones before it their halting probability.
                own = mixed = mixed + torch.where(halts, doubt, halting)[:, None] * own
            halted.append(rows[halts])
            answers.append(own[halts])
            depths.append(torch.full_like(halted[-1], step))
            stay = ~halts
            rows, doubt, features, mixed, threshold = (value[stay] for value in (rows, left, features, mixed, threshold))
            if not len(rows):
                break
        order = torch.cat(halted).argsort()
        return Thought(torch.cat(answers)[order], torch.cat(depths)[order])

    def forward(self, *inputs: Any) -> Tensor:
        """Logits [rows, classes], with all the thought that they take without load."""
        return self.think(*inputs, pressure=torch.zeros(len(inputs[0]))).logits

    def _halting(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.halt(features).float()).squeeze(-1)
