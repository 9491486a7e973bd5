"""How a network is trained, as plain values. Knows no torch, so that a command can show its defaults without loading it."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How to train, beside the loss. Together with rows, network and loss this determines the result."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the rows."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows in a step, at most; an epoch is cut into steps of the same size, give or take a row."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Learning rate at the end of the warm-up."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """On weight matrices and kernels, not on biases and norms."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate behind the warm-up: down to zero along half a cosine, or unchanged."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Gradients longer than this (L2 norm over all parameters) are shortened to it; 0 for never."""
    seed: Annotated[int, Field(ge=0, lt=1 << 40)] = 0
    """Of the order of rows, of augmentation and of dropout. First weights come from whoever makes the network."""

    def learning_rate(self, progress: float) -> float:
        """The learning rate at a share of all steps, above 0 and up to 1."""
        if progress < self.warm_up:
            return self.lr * progress / self.warm_up
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))
