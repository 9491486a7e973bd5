"""A network that takes the time of a large one on a device of its own, and does what a fault says. Knows files, no Ray.

It computes real scores, at once; then it lets time pass as a device would that is not this machine's CPU, so that a small
machine can hold a ladder whose top is dear, and the client that overloads it. What goes wrong is then the fault's doing,
and not that of processes that wait for a core.

A fault is a file of the ladder's folder, ``hooks/<process id>`` for one replica or ``hooks/<stage>`` for all of a stage. It
holds ``slow FACTOR``, ``hang`` or ``raise``, and is in force for as long as it is there. A replica that hangs answers pings:
only the thread of the network stands still. Rows that came are written to ``ran/<process id>``, a line a pass.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

CURSED = 666.0
"""A row whose first number it is makes any network raise."""
HANGING_LOOK_S = 0.01
"""How often one that hangs looks whether it still must."""


class Faulty(nn.Module):
    """Three linear scores of rows [n, 4] after a + b n seconds.

    Args:
        stage: its name, for faults of a whole stage.
        folder: of the ladder.
        a_s: seconds of any pass.
        b_s: seconds that a row adds.
    """

    def __init__(self, stage: str, folder: str, a_s: float, b_s: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self._a_s, self._b_s = a_s, b_s
        root = Path(folder)
        self._hooks = (root / "hooks" / str(os.getpid()), root / "hooks" / stage)
        self._ran = root / "ran" / str(os.getpid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [n, 3]."""
        seconds = self._a_s + self._b_s * len(x)
        if self._ran.parent.is_dir():  # only while it is served
            with self._ran.open("a", encoding="ascii") as lines:
                lines.write(f"{time.time():.4f} {len(x)}\n")
        if bool((x[:, 0] == CURSED).any()):
            raise ValueError("a row that no network takes")
        match self._fault():
            case "raise", *_:
                raise RuntimeError("the fault says so")
            case "slow", factor:
                seconds *= float(factor)
            case "hang", *_:
                while self._fault()[:1] == ["hang"]:
                    time.sleep(HANGING_LOOK_S)
        time.sleep(seconds)
        return x @ self.weight.T

    def _fault(self) -> list[str]:
        for hook in self._hooks:
            with suppress(OSError):
                return hook.read_text(encoding="ascii").split()
        return []
