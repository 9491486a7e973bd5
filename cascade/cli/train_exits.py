"""The command train-exits: from a factory and labelled rows to the weights of a network with exits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from cascade.cli.console import console, errors, narrow_table, print_json, progress_bar, usage_errors, writing
from cascade.cli.outputs import say_written
from cascade.errors import ConfigError
from cascade.models.training_options import TrainingOptions
from cascade.rows import read_unspecified_rows
from cascade.spec import ModelRef
from cascade.spec_errors import describe_errors

if TYPE_CHECKING:  # torch takes a second to import, which a call for help need not wait for
    from cascade.models.checkpoints import TrainingRecord
    from cascade.models.exit_losses import Objective

LOSSES = ("joint", "distil", "equilibrium")
PRECISIONS = ("float32", "float16")
WEIGHTS, RECORD = "weights.safetensors", "train.json"
DEFAULT = TrainingOptions()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-exits")(train_exits)


def train_exits(
    factory: Annotated[
        str, typer.Argument(help="package.module:callable that makes the network, as in a spec.", show_default=False)
    ],
    rows: Annotated[
        Path, typer.Argument(help="Labelled rows: .npz, one array for each input, and labels.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help=f"Folder for {WEIGHTS} and {RECORD}.", show_default=False)],
    args: Annotated[str, typer.Option(help="Keyword arguments of the factory, as a JSON object.")] = "{}",
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="An input, in the network's order; repeat. Default: the arrays of the file."),
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Safetensors file to start from instead of random weights.")] = None,
    loss: Annotated[str, typer.Option(help="joint, distil (also from the last exit), or equilibrium.")] = "joint",
    weights: Annotated[str | None, typer.Option(help="Weight of each exit's loss, as 1,1,2; default 1 each.")] = None,
    share: Annotated[float, typer.Option(help="distil: share learnt from the last exit, 0 to 1.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="distil: of the last exit's probabilities.")] = 2.0,
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Rows in a step.")] = DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Learning rate behind the warm-up.")] = DEFAULT.lr,
    optimizer: Annotated[str, typer.Option(help="adamw, or sgd with momentum.")] = DEFAULT.optimizer,
    weight_decay: Annotated[float, typer.Option(help="On matrices and kernels.")] = DEFAULT.weight_decay,
    schedule: Annotated[str, typer.Option(help="cosine or constant, behind the warm-up.")] = DEFAULT.schedule,
    warm_up: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = DEFAULT.warm_up,
    clip: Annotated[float, typer.Option(help="Longest gradient, L2; 0 for any.")] = DEFAULT.clip,
    seed: Annotated[int, typer.Option(help="Of first weights, held-out rows and all dice.")] = DEFAULT.seed,
    holdout: Annotated[float, typer.Option(help="Share of the rows that accuracy is measured on.")] = 0.1,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder that keeps the run behind each epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    precision: Annotated[str, typer.Option(help="Of the written weights: float32 or float16.")] = "float32",
    all_weights: Annotated[
        bool, typer.Option("--all-weights", help="Also write what the factory froze, which is left out else.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of torch; 0 for its own choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Train all exits of a network together.

    The same seed, rows and options give the same weights on the same machine and number of threads. Only parameters that
    require a gradient are trained and written: a factory that freezes its trunk trains and ships an adapter.
    """
    with usage_errors():
        _one_of("--loss", loss, LOSSES)
        _one_of("--precision", precision, PRECISIONS)
        if resume and checkpoint is None:
            raise ConfigError("--resume needs --checkpoint: the folder that the run was kept in")
        if not 0 <= holdout < 1:
            raise ConfigError(f"--holdout must be a share from 0 to below 1, got {holdout:g}")
        if threads < 0:
            raise ConfigError(f"--threads must not be negative, got {threads}")
        options = _checked(
            TrainingOptions,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            warm_up=warm_up,
            clip=clip,
            seed=seed,
        )
        reference = _checked(ModelRef, factory=factory, args=_json_object(args))
        arrays, labels = read_unspecified_rows(rows, input_)
        record, paths = _run(
            reference,
            (arrays, labels),
            options,
            _objective(loss, _numbers(weights), share, temperature),
            out=out,
            start=start,
            holdout=holdout,
            checkpoint=checkpoint,
            resume=resume,
            precision=precision,
            all_weights=all_weights,
            device=device,
            threads=threads,
        )
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    _show(record, factory)
    say_written(paths)


def _run(
    reference: ModelRef,
    data: tuple[dict[str, Any], Any],
    options: TrainingOptions,
    objective: "Objective",
    *,
    out: Path,
    start: Path | None,
    holdout: float,
    checkpoint: Path | None,
    resume: bool,
    precision: Any,
    all_weights: bool,
    device: str,
    threads: int,
) -> "tuple[TrainingRecord, list[Path]]":
    import torch
    from torch import nn

    from cascade.models.checkpoints import CheckpointFolder, Provenance, load_start, record_run, write_weights
    from cascade.models.frozen import frozen_digest
    from cascade.models.stage import load_weights
    from cascade.models.training import TensorRows, accuracies, answer_shape, seeded, train

    if threads:
        torch.set_num_threads(threads)
    where = _device(device, torch.cuda.is_available())
    arrays, labels = data
    inputs = [array if array.dtype == object else torch.from_numpy(array) for array in arrays.values()]
    rows = TensorRows(inputs, labels)
    kept, held_out = rows.split(holdout, options.seed)
    with seeded(options.seed, 0):
        network = reference.build()
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{reference.factory} must return a torch.nn.Module, got {type(network).__name__}")
    started_from = None if start is None else load_start(network, start)
    network.to(where)
    exits, _ = answer_shape(network, kept, where)
    own_weights = objective.description["weights"]
    if own_weights is not None and len(own_weights) != exits:
        raise ConfigError(f"--weights: {len(own_weights)} numbers for {exits} exits")
    provenance = Provenance(
        options=options.model_dump(mode="json"),
        objective=objective.description,
        network={"factory": reference.factory, "args": reference.args, "start": started_from},
        data=rows.digest(),
        holdout=holdout,
        frozen=frozen_digest(network),
    )
    folder = None if checkpoint is None else CheckpointFolder(checkpoint, provenance, resume=resume)
    with writing(out / WEIGHTS), progress_bar() as bar:
        task = bar.add_task("train", total=None)

        def told(epoch: Any) -> None:
            shown = "  ".join(f"{share:.2%}" for share in epoch.accuracy)
            bar.console.print(
                f"epoch {epoch.number}/{options.epochs}  loss {epoch.loss:.4f}  {epoch.seconds:.1f} s  {shown}",
                highlight=False,
            )

        done = train(
            network,
            kept,
            objective,
            options,
            held_out=held_out,
            device=where,
            checkpoints=folder,
            step_done=lambda step, total: bar.update(task, completed=step, total=total, description=f"train {step}/{total}"),
            epoch_done=told,
        )
        digest = write_weights(network, out / WEIGHTS, precision=precision, frozen=all_weights)
        load_weights(network, out / WEIGHTS)
        record = record_run(
            network,
            provenance,
            done,
            device=where,
            rows=(len(kept), 0 if held_out is None else len(held_out)),
            weights=(WEIGHTS, digest, precision),
            accuracy=() if held_out is None else accuracies(network, held_out, where),
        )
        record.write(out / RECORD)
    return record, [out / WEIGHTS, out / RECORD]


def _objective(loss: str, weights: tuple[float, ...] | None, share: float, temperature: float) -> "Objective":
    from cascade.models.exit_losses import DistillationLoss, EquilibriumLoss, JointLoss

    if loss == "distil":
        return DistillationLoss(share, temperature, weights)
    return EquilibriumLoss(weights) if loss == "equilibrium" else JointLoss(weights)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def _checked(model: type[Any], **values: Any) -> Any:
    """A pydantic model of options, its errors in the command's own words."""
    try:
        return model(**values)
    except ValidationError as error:
        fields = issubclass(model, BaseModel) and model is TrainingOptions
        lines = describe_errors(error)
        raise ConfigError("\n".join(f"--{_dashed(line)}" if fields else line for line in lines)) from error


def _dashed(line: str) -> str:
    name, colon, rest = line.partition(":")
    return name.replace("_", "-") + colon + rest


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--args: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--args: expected a JSON object of keyword arguments, got {text}")
    return found


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise ConfigError(f"--weights: expected numbers that are not negative, some above 0, as 1,1,2; got {text!r}")
    return numbers


def _device(name: str, gpu: bool) -> str:
    _one_of("--device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not gpu:
        raise ConfigError("--device cuda: torch sees no GPU here")
    return ("cuda" if gpu else "cpu") if name == "auto" else name


def _show(record: "TrainingRecord", factory: str) -> None:
    """For people: each exit's accuracy over the epochs, as far as a terminal holds them."""
    console.print(
        f"{factory}: {record.trained_parameters:,} of {record.parameters:,} parameters trained on {record.rows:,} rows, "
        f"{len(record.epochs)} epochs, {record.seconds:.1f} s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not record.accuracy:
        errors.print("[yellow]note:[/yellow] no rows were held out, so nothing is known of the accuracy")
        return
    rows = record.held_out_rows
    legend = f"written: with the weights as they are read back, {record.weights_precision}"
    shown = narrow_table(f"Accuracy on {rows:,} held-out rows, in %", legend)
    for column in ("exit", "first epoch", "last epoch", "written", "± s.e."):
        shown.add_column(column, justify="right", no_wrap=True)
    for index, accuracy in enumerate(record.accuracy):
        first, last = record.epochs[0].accuracy[index], record.epochs[-1].accuracy[index]
        error = (accuracy * (1 - accuracy) / rows) ** 0.5
        cells = (first, last, accuracy, error)
        shown.add_row(str(index), *(f"{100 * cell:.2f}" for cell in cells))
    console.print(shown)
