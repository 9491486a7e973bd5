"""What of a network training changes, and what stays as its factory made it. Knows torch; no file, no optimizer."""

import hashlib

import torch
from torch import Tensor, nn


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that training changes: what requires a gradient, and the buffers of its modules.

    A buffer, such as a running mean, counts where something of the module that holds it requires a gradient, or where the
    module has no parameters at all. Of a network of which nothing is frozen this is the whole state dict.

    Returns:
        By name in the state dict, the network's own tensors.
    """
    state = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        parameters = list(module.parameters())
        moves = not parameters or any(parameter.requires_grad for parameter in parameters)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                state[f"{prefix}.{name}" if prefix else name] = parameter.detach()
        for name, buffer in module.named_buffers(recurse=False):
            if moves and name not in module._non_persistent_buffers_set:
                state[f"{prefix}.{name}" if prefix else name] = buffer
    return state


def frozen_digest(network: nn.Module) -> str:
    """SHA-256 over the names and contents of the rest of the state dict; empty if there is none."""
    moving = trained_state(network)
    frozen = {name: value for name, value in sorted(network.state_dict().items()) if name not in moving}
    if not frozen:
        return ""
    digest = hashlib.sha256()
    for name, value in frozen.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_mode(network: nn.Module) -> None:
    """Put what is trained into training mode, and what is frozen as a whole into evaluation mode."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
