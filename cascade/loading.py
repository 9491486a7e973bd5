"""From a stage of a spec to a network that is ready to run batches. Knows spec, torch and the devices; no Ray, no policy.

A stage that resumes needs an example of the state that it goes on from, so the segments before its own are run once, on a
row of zeros. Stages of one process share the network that they are segments of.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from torch import nn

from cascade.errors import CalibrationMismatch, ConfigError, SpecError
from cascade.models.device import CudaDevice, Device
from cascade.models.energy import EnergyMeter, nvml_meter
from cascade.models.exits import ExitNetwork, Segment
from cascade.models.halting import Thinks
from cascade.models.stage import Arrays, Execution, TorchStage, load_weights
from cascade.models.thinking import ThinkingStage
from cascade.spec import Ladder, StageSpec
from cascade.spec_exits import chain_of, chains, leaves_state

logger = logging.getLogger("cascade.stage")


def load_network(ladder: Ladder, stage: StageSpec, *, device: Device | None = None, meter: bool = False) -> TorchStage:
    """Build the network of a stage, load its weights and warm it up.

    Args:
        ladder: the ladder.
        stage: one of its stages.
        device: where it runs; by default the GPU that the process sees if the stage reserves any of one, else the CPU.
        meter: whether to measure the energy that its GPU takes.

    Raises:
        SpecError: the factory is wrong, there is no weights file, or the network does not take the declared inputs.
        ConfigError: the weights file is broken or does not fit the network.
    """
    index = [each.name for each in ladder.spec.stages].index(stage.name)
    return load_chain(ladder, range(index, index + 1), device=device, meter=meter)[0]


def load_chain(
    ladder: Ladder, stages: range, *, device: Device | None = None, meter: bool = False
) -> tuple[TorchStage, ...]:
    """Build the network of stages of which each resumes the one before, once for all of them, and warm them up.

    Args:
        ladder: the ladder.
        stages: which of its stages; the first may itself resume one that is not among them.
        device: see `load_network`.
        meter: see `load_network`.

    Returns:
        One for each of the stages. They must not run at the same time.

    Raises:
        SpecError: see `load_network`; also if the network lacks an exit, or has several and the stage does not say which.
        ConfigError: see `load_network`.
    """
    placed = ladder.spec.placed
    owner = placed[stages.start]
    network = network_of(ladder, owner)
    if device is None and owner.num_gpus > 0:
        device = _gpu(owner)
    measuring = _meter(owner) if meter and isinstance(device, CudaDevice) else None
    example: Arrays = ladder.example_row()
    takes: Mapping[str, torch.dtype] | None = None
    loaded = []
    for index in [*chain_of(ladder.spec.stages, stages.start)[:-1], *stages]:
        stage = placed[index]
        found = _stage(ladder, index, network, takes, device=device, meter=measuring)
        try:
            if index in stages:
                half = max(1, stage.max_batch_size // 2)
                found.warm_up(example, sorted({1, 2, half, stage.max_batch_size}))
                loaded.append(found)
            if leaves_state(ladder.spec.stages, index) and index < stages.stop - 1:
                example, takes = found.run(example).state or {}, found.state_dtypes
        except Exception as error:  # the user's own code may raise anything
            raise SpecError(f"stages.{stage.name}.model: its forward fails on rows of zeros: {error}") from error
    return tuple(loaded)


def check_networks(ladder: Ladder) -> None:
    """Load every stage and run it, as a server would.

    Raises:
        SpecError: see `load_chain`.
        ConfigError: see there.
    """
    for chain in chains(ladder.spec.stages):
        load_chain(ladder, chain)


def network_of(ladder: Ladder, stage: StageSpec) -> nn.Module:
    """Build the network of a stage and load its weights.

    Args:
        ladder: the ladder.
        stage: one of its stages, or one that could be.

    Raises:
        SpecError: the factory is wrong, there is no weights file, or the network has several exits and none is named.
        ConfigError: the weights file is broken or does not fit the network.
        CalibrationMismatch: it is not the one that the ladder's artefacts were found to belong to.
    """
    network = stage.model.build()
    where = f"stages.{stage.name}.model"
    if not isinstance(network, nn.Module):
        raise SpecError(f"{where}.factory must return a torch.nn.Module, got {type(network).__name__}")
    if isinstance(network, ExitNetwork) and stage.model.exit is None:
        raise SpecError(f"{where}.exit: the network has the exits 0 to {network.exits - 1}; say which one answers")
    if not isinstance(network, ExitNetwork) and stage.model.exit is not None:
        raise SpecError(
            f"{where}.exit needs a cascade.models.exits.ExitNetwork, the factory returns {type(network).__name__}"
        )
    weights = ladder.weights(stage)
    known = None if ladder.digests is None else ladder.digests.get(stage.name)
    if weights is not None and known is not None and ladder.stage_digest(stage) != known:
        raise CalibrationMismatch(
            f"stage {stage.name!r}: {weights} is not what the calibration was found to belong to (digest {known[:12]}…): "
            "it has changed since, or differs on this node"
        )
    if weights is not None:
        try:
            load_weights(network, weights)
        except SafetensorError as error:
            raise ConfigError(f"weights {weights}: not a safetensors file: {error}") from error
    return network


def _stage(
    ladder: Ladder,
    index: int,
    network: nn.Module,
    takes: Mapping[str, torch.dtype] | None,
    *,
    device: Device | None,
    meter: EnergyMeter | None,
) -> TorchStage:
    """One stage on a network that is loaded; ``takes`` is the state that it resumes from."""
    stages = ladder.spec.stages
    stage = ladder.spec.placed[index]
    names: Sequence[str] = [field.name for field in ladder.spec.inputs]
    pipelined = True
    if isinstance(network, ExitNetwork) and stage.model.exit is not None:
        after = stages[index - 1].model.exit if stage.resumes else None
        if takes is not None:
            names = tuple(takes)
        pipelined = not network.ragged
        try:
            network = Segment(network, stage.model.exit, after=after, takes=names, leaves=leaves_state(stages, index))
        except ValueError as error:
            raise SpecError(f"stages.{stage.name}.model.exit: {error}") from error
    if stage.execution.thinks and not isinstance(network, Thinks):
        raise SpecError(
            f"stages.{stage.name}.execution.thinks needs a network that chooses its depth, with a method `think` as in "
            f"cascade.models.halting; the factory returns {type(network).__name__}"
        )
    return (ThinkingStage if stage.execution.thinks else TorchStage)(
        network,
        names,
        precision=stage.precision,
        threads=stage.threads,
        device=device,
        execution=execution_of(stage),
        meter=meter,
        state_dtypes=takes,
        pipelined=pipelined,
    )


def execution_of(stage: StageSpec) -> Execution:
    """How a stage's network is run."""
    how = stage.execution
    return Execution(
        cast_weights=how.cast_weights,
        channels_last=how.channels_last,
        compile=how.compile,
        graphs=how.graphs,
        buckets=how.buckets or (),
        in_flight=how.in_flight,
        max_rows=stage.max_batch_size,
    )


def _gpu(stage: StageSpec) -> Device | None:
    if torch.cuda.is_available():
        return CudaDevice(stage.num_gpus)
    logger.warning("stage %s reserves a GPU and there is none here: it runs on the CPU, and not as fast", stage.name)
    return None


def _meter(stage: StageSpec) -> EnergyMeter | None:
    return nvml_meter(str(torch.cuda.get_device_properties(0).uuid), shared=stage.num_gpus < 1)
