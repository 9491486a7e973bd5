"""Several networks that run together as one stage and answer with their mean. Knows torch; not what they are stages of.

The committee's logits are log( mean_m softmax(z_m / T_m) ), so that their softmax is the mean posterior of the members
(Lakshminarayanan, Pritzel & Blundell 2017), and everything that reads a stage's logits reads a committee's. Its cost is the
sum of its members'.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.factory import call_factory

FIELDS = {"factory", "args", "temperature"}


class Committee(nn.Module):
    """Factory and network in one: its members come from factories of their own.

    Their weights lie in one file, those of member m under ``members.m.``; see `joined`.

    Args:
        members: one mapping for each: ``factory`` as ``package.module:callable``, its keyword arguments ``args``, and
            ``temperature``, by which the member's logits are divided, 1 where left out.

    Raises:
        ConfigError: fewer than two members, or one that is not such a mapping.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"a committee has at least two members, got {len(members)}")
        temperatures = []
        networks = []
        for place, member in enumerate(members):
            if "factory" not in member or not set(member) <= FIELDS:
                raise ConfigError(f"members.{place}: expected factory, args and temperature, got {', '.join(member)}")
            temperature = float(member.get("temperature", 1.0))
            if not temperature > 0:
                raise ConfigError(f"members.{place}.temperature: expected a number above 0, got {temperature:g}")
            temperatures.append(temperature)
            networks.append(call_factory(member["factory"], member.get("args", {})))
        self.members = nn.ModuleList(networks)
        self.temperatures = tuple(temperatures)

    def forward(self, *inputs: Any) -> Tensor:
        """Logits [n, classes], float32, of what each member takes."""
        each = [
            torch.log_softmax(member(*inputs).float() / temperature, dim=1)
            for member, temperature in zip(self.members, self.temperatures, strict=True)
        ]
        return torch.logsumexp(torch.stack(each), dim=0) - log(len(each))


def joined(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of a committee from those of its members, in their order."""
    return {f"members.{place}.{name}": value for place, state in enumerate(states) for name, value in state.items()}
