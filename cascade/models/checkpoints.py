"""What training leaves on disk: checkpoints, weights, and the record of how they came about. Knows files; trains nothing.

Tensors lie in safetensors, everything else in JSON: nothing that is read back can run code. A checkpoint names the file of
its tensors and takes the place of the one before in a single rename, so a run killed at any moment leaves a whole one.
"""

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cascade import __version__
from cascade.errors import ConfigError
from cascade.models.frozen import trained_state
from cascade.models.stage import load_weights
from cascade.models.training import Epoch

NETWORK, OPTIMIZER = "network", "optimizer"
"""What a tensor of a checkpoint belongs to; its name goes on with a slash."""

WeightsPrecision = Literal["float32", "float16"]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EpochRecord(_File):
    """What one epoch came to, see `Epoch`."""

    epoch: int
    """From 1."""
    loss: float
    """Mean over its steps."""
    accuracy: tuple[float, ...]
    """Of each exit on the held-out rows; empty where none are."""
    seconds: float
    """Of training and measuring."""


class Provenance(_File):
    """Everything that determines the result of a run. Two runs that agree in it may go on from each other's checkpoints."""

    options: dict[str, JsonValue]
    """`TrainingOptions`."""
    objective: dict[str, JsonValue]
    """`Objective.description`."""
    network: dict[str, JsonValue]
    """Where the network came from: factory, arguments, weights that it started from."""
    data: str
    """Digest of the rows, those held out by share included."""
    holdout: float = 0.0
    """Share of these rows that was held out, by the seed."""
    frozen: str
    """Digest of the tensors that stay as they are, see `cascade.models.frozen.frozen_digest`."""


class _Checkpoint(_File):
    format_version: Literal[1]
    created_by: str
    torch: str
    tensors: str
    """Name of the safetensors file beside this one."""
    numbers: dict[str, float]
    """State of the optimizer that is no tensor, by parameter and name."""
    epochs: tuple[EpochRecord, ...]
    provenance: Provenance


class TrainingRecord(_File):
    """``train.json``: how weights were made, and how good they are."""

    format_version: Literal[1] = 1
    """Of this file."""
    created_by: str
    """Program and version."""
    versions: dict[str, str]
    """Of what computed."""
    machine: str
    """Processor or GPU that computed."""
    threads: int
    """Of torch. Sums of floats depend on it: the same seed gives the same weights on the same machine and number."""
    provenance: Provenance
    """What determined the result."""
    rows: int
    """Trained on."""
    held_out_rows: int
    """Not trained on; accuracy was measured on these."""
    trained_parameters: int
    """Numbers that moved."""
    parameters: int
    """All numbers of the network."""
    weights: str
    """Name of the weights file beside this one."""
    weights_sha256: str
    """Its SHA-256."""
    weights_precision: WeightsPrecision
    """Number format of its floats."""
    seconds: float
    """Of all epochs."""
    accuracy: tuple[float, ...]
    """Of each exit on the held-out rows, with the weights as they are read back from the file."""
    epochs: tuple[EpochRecord, ...]
    """One by one."""

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


class CheckpointFolder:
    """Keeps the latest checkpoint of one run.

    Args:
        folder: made if there is none.
        provenance: of the run.
        resume: whether to go on from a checkpoint that lies there.

    Raises:
        ConfigError: a checkpoint lies there and is not to be resumed.
    """

    def __init__(self, folder: Path, provenance: Provenance, *, resume: bool) -> None:
        self._folder = folder
        self._index = folder / "checkpoint.json"
        self._provenance = provenance
        self._resume = resume
        if not resume and self._index.exists():
            raise ConfigError(f"{folder} holds the checkpoint of another run: resume it, or name another folder")

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        """Put the state of the checkpoint into a network and its optimizer.

        Returns:
            The epochs done; none if there is no checkpoint yet.

        Raises:
            ConfigError: the checkpoint cannot be read, or is that of another run.
        """
        if not self._resume or not self._index.exists():
            return []
        try:
            found = _Checkpoint.model_validate_json(self._index.read_bytes())
            tensors = load_file(self._folder / found.tensors)
        except (OSError, ValidationError, SafetensorError) as error:
            raise ConfigError(f"{self._index}: is no whole checkpoint: {error}") from error
        self._check_same(found.provenance)
        own = {name.removeprefix(f"{NETWORK}/"): value for name, value in tensors.items() if name.startswith(f"{NETWORK}/")}
        if own.keys() != trained_state(network).keys():
            raise ConfigError(f"{self._index}: was made of a network with other tensors")
        try:
            network.load_state_dict(own, strict=False)
            _load_optimizer(optimizer, _names(network, optimizer), tensors, found.numbers)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{self._index}: does not fit the network: {error}") from error
        return [Epoch(record.epoch, record.loss, record.accuracy, record.seconds) for record in found.epochs]

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, epochs: Sequence[Epoch]) -> None:
        """Keep a run behind an epoch.

        Raises:
            ConfigError: the folder cannot be written.
        """
        tensors = {f"{NETWORK}/{name}": value for name, value in trained_state(network).items()}
        numbers: dict[str, float] = {}
        for parameter, name in _names(network, optimizer).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                entry = f"{OPTIMIZER}/{name}/{key}"
                if isinstance(value, Tensor):
                    tensors[entry] = value
                elif value is not None:
                    numbers[entry] = value
        name = f"epoch-{len(epochs)}.safetensors"
        index = _Checkpoint(
            format_version=1,
            created_by=f"cascade {__version__}",
            torch=torch.__version__,
            tensors=name,
            numbers=numbers,
            epochs=tuple(record_of(epoch) for epoch in epochs),
            provenance=self._provenance,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(tensors, self._folder / name)
            _replace(self._index, index.model_dump_json(indent=2).encode() + b"\n")
            for old in self._folder.glob("epoch-*.safetensors"):
                if old.name != name:
                    old.unlink()
        except OSError as error:
            raise ConfigError(f"{self._folder}: cannot be written: {error.strerror or error}") from error

    def _check_same(self, other: Provenance) -> None:
        mine, theirs = self._provenance.model_dump(), other.model_dump()
        differing = []
        for part, value in mine.items():
            if isinstance(value, dict):
                names = value.keys() | theirs[part].keys()
                differing += sorted(name for name in names if value.get(name) != theirs[part].get(name))
            elif value != theirs[part]:
                differing.append(part)
        if differing:
            raise ConfigError(
                f"{self._index}: is the checkpoint of a run with other {', '.join(differing)}; "
                "resume with the same ones, or name another folder"
            )


def write_weights(network: nn.Module, path: Path, *, precision: WeightsPrecision = "float32", frozen: bool = False) -> str:
    """Write a network's state dict as safetensors.

    Args:
        network: the network.
        path: the file; its folder is made if there is none.
        precision: number format of the floats.
        frozen: whether to write what was frozen too. By default that is left out: the factory brings it along, and
            `cascade.models.stage.load_weights` leaves it alone.

    Returns:
        The SHA-256 of the file.

    Raises:
        ConfigError: the file cannot be written, or a weight is not finite in that precision.
    """
    state = network.state_dict() if frozen else trained_state(network)
    if precision == "float16":
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ConfigError(f"{name} has weights that are not finite in {precision}; write another precision")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(state, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def load_start(network: nn.Module, path: Path) -> str:
    """Load weights to start from.

    Returns:
        The SHA-256 of the file.

    Raises:
        ConfigError: there is no such file, it is no safetensors file, or it does not fit the network.
    """
    try:
        load_weights(network, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors: {error}") from error


def record_run(
    network: nn.Module,
    provenance: Provenance,
    epochs: Sequence[Epoch],
    *,
    device: torch.device | str,
    rows: tuple[int, int],
    weights: tuple[str, str, WeightsPrecision],
    accuracy: Sequence[float],
) -> TrainingRecord:
    """What ``train.json`` says of a run on this machine.

    Args:
        network: as trained.
        provenance: of the run.
        epochs: all of them.
        device: where it was trained.
        rows: how many were trained on, and held out.
        weights: name, SHA-256 and number format of the weights file.
        accuracy: of each exit on the held-out rows, with the weights as written.
    """
    gpu = torch.device(device).type == "cuda"
    return TrainingRecord(
        created_by=f"cascade {__version__}",
        versions={"cascade": __version__, "torch": torch.__version__, "python": platform.python_version()},
        machine=torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
        threads=torch.get_num_threads(),
        provenance=provenance,
        rows=rows[0],
        held_out_rows=rows[1],
        trained_parameters=sum(value.numel() for value in network.parameters() if value.requires_grad),
        parameters=sum(value.numel() for value in network.parameters()),
        weights=weights[0],
        weights_sha256=weights[1],
        weights_precision=weights[2],
        seconds=round(sum(epoch.seconds for epoch in epochs), 1),
        accuracy=tuple(accuracy),
        epochs=tuple(record_of(epoch) for epoch in epochs),
    )


def record_of(epoch: Epoch) -> EpochRecord:
    """An epoch as it stands in files."""
    return EpochRecord(epoch=epoch.number, loss=epoch.loss, accuracy=epoch.accuracy, seconds=round(epoch.seconds, 3))


def _names(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """The name of every parameter that the optimizer moves."""
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {parameter: name for name, parameter in network.named_parameters() if id(parameter) in mine}


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: dict[nn.Parameter, str],
    tensors: dict[str, Tensor],
    numbers: dict[str, float],
) -> None:
    kept: dict[str, dict[str, Any]] = {}
    for entry, value in (*tensors.items(), *numbers.items()):
        if entry.startswith(f"{OPTIMIZER}/"):
            name, _, key = entry.removeprefix(f"{OPTIMIZER}/").rpartition("/")
            kept.setdefault(name, {})[key] = value
    document = optimizer.state_dict()
    places = {name: place for place, name in enumerate(_in_order(optimizer, names))}
    # Through its own method, which puts each tensor where the optimizer wants it.
    optimizer.load_state_dict({**document, "state": {places[name]: state for name, state in kept.items()}})


def _in_order(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> list[str]:
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors in one rename. The format allows no two names for one memory, so every tensor is copied."""
    part = path.with_name(path.name + ".part")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, part)
    part.replace(path)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
