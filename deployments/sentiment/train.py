"""Trains the sentiment ladder from rated sentences, and writes the weights and the data that it ships.

    python deployments/sentiment/train.py --sdist vaderSentiment-3.3.2.tar.gz [--out DIR] [--checkpoints DIR --resume]
    python deployments/sentiment/train.py --sdist vaderSentiment-3.3.2.tar.gz --only-words

The sentences are those that VADER was validated on (Hutto & Gilbert, ICWSM 2014): they lie in the *source* distribution of
the package vaderSentiment. Of its snippets from movie reviews those are taken that 15 or more raters found positive or
negative on average (mean valence, from -4 to 4, at least 0.3 from 0); the label is the sign. Sentences that occur twice are
taken once. Rows never mix: a seeded shuffle deals 2,000 to the test, 2,000 to calibration, and of the rest the last 400 only
watch the training: no gradient sees them. Snippets are numbered through and say nothing of their review or film, so two
about one film may be dealt to different splits. The last epoch's weights are kept, never the best epoch's.

Stage 0 is a logistic regression on the four scores of VADER's rules and on a sentence's pieces and pairs of neighbours. The
other three are exits of one network, MiniLM-L6 after 1, 3 and 6 layers, of which an adapter and three heads are trained
together. All learn what share of the raters found a sentence positive, not just which half was larger, and the early exits
learn half of it from what the last one says. Stage 0 was chosen after the network, among some seventy linear models of
words, by the likelihood of the calibration rows. The network's recipe is the second that was run to its end. The first
(labels instead of ratings, no dropout inside the layers, equal weights, a learning rate of 1e-3) was given up on its
calibration rows, where its three exits came to 79.2, 82.0 and 83.6 % of one half. Seeds are fixed; sums of floats depend on
the machine, on torch and on the number of threads.
"""

import hashlib
import io
import json
import math
import platform
import tarfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade.models.checkpoints import CheckpointFolder, Provenance, record_of
from cascade.models.exit_losses import Inputs
from cascade.models.frozen import frozen_digest, trained_state
from cascade.models.stage import load_weights
from cascade.models.text import TextExits
from cascade.models.training import Epoch, TensorRows, accuracies, train
from cascade.models.training_options import TrainingOptions
from cascade.models.words import RulesAndWords
from cascade.spec import ModelRef

HERE = Path(__file__).resolve().parent
SDIST = "vaderSentiment-3.3.2.tar.gz"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SNIPPETS, RATINGS = "movieReviewSnippets_GroundTruth.txt", "movieReviewSnippets_anonDataRatings.txt"
LEAST_VALENCE = 0.3
TEST_ROWS = CALIBRATION_ROWS = 2_000
WATCH_ROWS = 400
SPLIT_SEED = 0

OPTIONS = TrainingOptions(epochs=3, batch_size=1, lr=7e-4, weight_decay=0.05, warm_up=0.1, seed=0)
"""A step takes one group of `GROUP_ROWS`."""
GROUP_ROWS = 32
TEACHER_SHARE = 0.5
"""Of what the early exits learn from the last one."""
EXIT_WEIGHTS = (0.5, 0.75, 1.0)
WORDS_DECAY = 6e-6
"""Of the sum of the squares of stage 0's weights, beside the mean loss of a row."""
OF_NETWORK = ("seconds", "epochs", "trained_parameters", "bytes", "provenance")
"""What `train.json` says of the network's training."""

console = Console()


class Snippet(NamedTuple):
    """One rated sentence: mean valence from -4 to 4, share of positive ratings, and its text. Half of a 0 is positive."""

    valence: float
    share: float
    text: str


class Split(NamedTuple):
    """Rows of one purpose: BYTES [n], labels int64 [n], 1 for positive, and shares of positive ratings float32 [n]."""

    texts: NDArray[np.object_]
    labels: NDArray[np.int64]
    shares: NDArray[np.float32]


def read_snippets(sdist: Path) -> list[Snippet]:
    """The rated snippets of movie reviews inside the source distribution."""
    if not sdist.is_file():
        console.print(
            f"[red]{sdist} is missing.[/red] Get it with `pip download --no-deps --no-binary :all: --no-build-isolation "
            "vaderSentiment==3.3.2` where setuptools and requests are installed, and name it with --sdist."
        )
        raise typer.Exit(2)
    content = sdist.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SDIST_SHA256:
        console.print(f"[red]{sdist} is not {SDIST}:[/red] its SHA-256 must be {SDIST_SHA256}, got {found}")
        raise typer.Exit(2)
    archive = member(content, ARCHIVE)
    snippets = []
    for rated, sentence in zip(lines(archive, RATINGS), lines(archive, SNIPPETS), strict=True):
        number, _, _, ratings = rated.split("\t")
        same, valence, text = sentence.split("\t", 2)
        assert number == same, "the two files list the same snippets in the same order"
        share = np.mean([(1 + np.sign(rating)) / 2 for rating in json.loads(ratings)])
        snippets.append(Snippet(float(valence), float(share), text.strip()))
    return snippets


def lines(archive: bytes, name: str) -> list[str]:
    """The lines of a text file in a gzipped tar archive."""
    return [line.rstrip("\r") for line in member(archive, name).decode().rstrip().split("\n")]


def member(archive: bytes, name: str) -> bytes:
    """The one file of a gzipped tar archive that is called so, in whatever folder."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        (info,) = (info for info in tar.getmembers() if info.isfile() and Path(info.name).name == name)
        stream = tar.extractfile(info)
        assert stream is not None
        return stream.read()


def deal(snippets: list[Snippet]) -> dict[str, Split]:
    """The splits: ``test``, ``calibration``, ``watch`` and ``train``."""
    once = {" ".join(snippet.text.lower().split()): snippet for snippet in reversed(snippets)}
    kept = [snippet for snippet in once.values() if abs(snippet.valence) >= LEAST_VALENCE]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(kept))
    ends = np.cumsum([TEST_ROWS, CALIBRATION_ROWS, len(kept) - TEST_ROWS - CALIBRATION_ROWS - WATCH_ROWS])
    splits = {}
    for name, rows in zip(("test", "calibration", "train", "watch"), np.split(order, ends), strict=True):
        texts = np.empty(len(rows), dtype=object)
        texts[:] = [kept[row].text.encode() for row in rows]
        labels = np.array([kept[row].valence > 0 for row in rows], dtype=np.int64)
        splits[name] = Split(texts, labels, np.array([kept[row].share for row in rows], dtype=np.float32))
    return splits


class LengthGroups:
    """Rows to train on, in groups of about the same number of tokens, so that little of a batch is padding.

    A "row" of the trainer is a group here.

    Args:
        tokens: int64 [rows, longest].
        lengths: int64 [rows].
        split: labels, and shares of positive ratings, which go to the network as a third input.
        size: rows of a group.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor, split: Split, size: int) -> None:
        self._tokens, self._lengths = tokens, lengths
        self._labels, self._shares = torch.from_numpy(split.labels), torch.from_numpy(split.shares)
        self._groups = torch.argsort(lengths, stable=True).split(size)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    def batch(self, rows: Tensor, dice: torch.Generator | None) -> tuple[Inputs, Tensor]:  # noqa: ARG002
        """See `cascade.models.training.LabelledRows`."""
        places = torch.cat([self._groups[row] for row in rows.tolist()])
        inputs = trimmed((self._tokens[places], self._lengths[places]), None)
        return (*inputs, self._shares[places]), self._labels[places]


def trimmed(inputs: Inputs, dice: torch.Generator | None) -> Inputs:  # noqa: ARG001
    """Tokens without the columns that no row of the batch needs."""
    tokens, lengths = inputs
    return tokens[:, : int(lengths.max())], lengths


class Rated(nn.Module):
    """A network that may be given the ratings too, and does not look at them: they are for `RatedLoss`."""

    def __init__(self, network: TextExits) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, lengths: Tensor, shares: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Logits [rows, exits, classes]."""
        logits: Tensor = self.network(tokens, lengths)
        return logits


class RatedLoss:
    """Weighted sum over the exits of the cross-entropy to a target distribution.

    That of the last exit K is the ratings'; that of each earlier one (1 - g) times the ratings' plus g times what exit K
    says, taken as a constant. Up to terms without a gradient this is `cascade.models.exit_losses.distillation_loss` at a
    temperature of 1, with the ratings in the place of labels.
    """

    description: dict[str, Any] = {  # noqa: RUF012 - it is never changed
        "loss": "rated",
        "teacher_share": TEACHER_SHARE,
        "weights": list(EXIT_WEIGHTS),
        "group_rows": GROUP_ROWS,
    }

    def attached(self, network: nn.Module, inputs: Inputs) -> AbstractContextManager[None]:  # noqa: ARG002
        """See `cascade.models.exit_losses.Objective`."""
        return nullcontext()

    def __call__(self, network: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:  # noqa: ARG002
        """See `cascade.models.exit_losses.Objective`."""
        logits = network(*inputs)
        shares = inputs[2]
        rated = torch.stack([1 - shares, shares], dim=1)
        early = (1 - TEACHER_SHARE) * rated + TEACHER_SHARE * logits[:, -1].detach().softmax(dim=1)
        losses = [F.cross_entropy(logits[:, exit], early) for exit in range(logits.shape[1] - 1)]
        losses.append(F.cross_entropy(logits[:, -1], rated))
        return (torch.stack(losses) * torch.tensor(EXIT_WEIGHTS)).sum()


def fit_words(network: RulesAndWords, split: Split) -> None:
    """Fit stage 0, to the end: it is convex."""
    network.double()  # the search stops where it no longer gets better, in float32 too early
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    found = network.prepare(split.texts)
    shares = torch.from_numpy(split.shares).double()
    rated = torch.stack([1 - shares, shares], dim=1)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        squares = network.words.weight.square().sum() + network.rules.head.weight.square().sum()
        value = F.cross_entropy(network.logits(*found), rated) + WORDS_DECAY * squares
        value.backward()
        return value

    optimizer.step(loss)
    network.float()


def train_exits(network: TextExits, splits: dict[str, Split], checkpoints: Any) -> list[Epoch]:
    """Train adapter and heads, with a bar and a line of held-out accuracy behind each epoch."""
    tokens, lengths = network.prepare(splits["train"].texts)
    rows = LengthGroups(tokens, lengths, splits["train"], GROUP_ROWS)
    watched = TensorRows(network.prepare(splits["watch"].texts), splits["watch"].labels, trimmed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("exits", total=None)

        def epoch_done(epoch: Epoch) -> None:
            exits = " ".join(f"{share:.4f}" for share in epoch.accuracy)
            line = f"epoch {epoch.number}/{OPTIONS.epochs}  loss {epoch.loss:.4f}  held out {exits}  {epoch.seconds:.0f} s"
            progress.console.print(line, highlight=False)

        return train(
            Rated(network),
            rows,
            RatedLoss(),
            OPTIONS,
            held_out=watched,
            checkpoints=checkpoints,
            step_done=lambda done, total: progress.update(task, completed=done, total=total),
            epoch_done=epoch_done,
        )


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a state as fp16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in state.items()}, path)


def write_split(path: Path, split: Split) -> None:
    """Write one split as the ladder reads it: ``text`` as fixed-width strings [n], and ``labels`` int64 [n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, text=split.texts.astype(np.bytes_), labels=split.labels)


def wilson(right: float, rows: int) -> list[float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    centre, half = right + z * z / (2 * rows), z * math.sqrt(right * (1 - right) / rows + z * z / (4 * rows * rows))
    return [round((centre - half) / (1 + z * z / rows), 4), round((centre + half) / (1 + z * z / rows), 4)]


def cpu_s(run: Any, batches: list[NDArray[np.object_]]) -> float:
    """CPU seconds of this process for some batches, the best of three rounds."""
    rounds = []
    with torch.inference_mode():
        for _ in range(3):
            before = time.process_time()
            for batch in batches:
                run(batch)
            rounds.append(time.process_time() - before)
    return min(rounds)


def costs(words: RulesAndWords, network: TextExits, texts: NDArray[np.object_]) -> dict[str, Any]:
    """What a row costs on each stage, in multiply-accumulates.

    Those of the network are its matrix products, the mean over the rows. Rules and words multiply next to nothing: their
    CPU time counts as the multiply-accumulates that the network does in as much CPU time, both in batches of 32 rows on one
    thread.
    """
    lengths = network.prepare(texts)[1].tolist()
    macs = [round(mean) for mean in np.mean([network.macs(length) for length in lengths], axis=0)]
    batches = [texts[start : start + 32] for start in range(0, 640, 32)]
    of_words, of_network = cpu_s(words, batches), cpu_s(network, batches)
    timed = sum(sum(network.macs(length)) for length in lengths[:640])
    return {
        "mean_tokens": round(float(np.mean(lengths)), 2),
        "segments": macs,
        "words": round(of_words / of_network * timed / 640),
        "words_cpu_ms": round(1e3 * of_words / 640, 4),
        "network_cpu_ms": round(1e3 * of_network / 640, 3),
    }


def main(
    sdist: Annotated[Path, typer.Option(help=f"The file {SDIST}.")] = Path(SDIST),
    out: Annotated[Path, typer.Option(help="Where weights/, data/ and train.json go.")] = HERE,
    checkpoints: Annotated[Path, typer.Option(help="Where an unfinished run is kept.")] = Path("scratch/sentiment"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint instead of from nothing.")] = False,
    only_words: Annotated[bool, typer.Option(help="Fit stage 0 alone, beside the network that lies in --out.")] = False,
) -> None:
    """Train the stages, measure them, and write weights, data splits and train.json."""
    torch.set_num_threads(threads)
    stages = {stage["name"]: stage["model"] for stage in yaml.safe_load((HERE / "cascade.yaml").read_text())["stages"]}
    splits = deal(read_snippets(sdist))
    for name in ("calibration", "test"):
        write_split(out / "data" / f"{name}.npz", splits[name])

    words = build(stages["words"])
    fit_words(words, splits["train"])
    words_file, exits_file = (out / stages[name]["weights"] for name in ("words", "exit6"))
    write_weights(words.state_dict(), words_file)
    if only_words:
        reported = json.loads((out / "train.json").read_text())
        of_network = {name: reported[name] for name in OF_NETWORK}
    else:
        of_network = train_network(stages["exit6"], splits, exits_file, checkpoints, resume)

    # What is reported is measured on the weights as they are read back from their files.
    words, network = load_weights(build(stages["words"]), words_file), load_weights(build(stages["exit6"]), exits_file)
    words.eval()
    network.eval()
    report = {
        "data": {"seed": SPLIT_SEED, "least_valence": LEAST_VALENCE}
        | {
            name: {"rows": len(split.labels), "positive": round(float(split.labels.mean()), 4)}
            for name, split in splits.items()
        },
        "accuracy": {name: measured(words, network, splits[name]) for name in ("watch", "calibration", "test")},
        "costs": costs(words, network, splits["calibration"].texts),
        **of_network,
        "words": {
            "parameters": sum(parameter.numel() for parameter in words.parameters()),
            "bytes": words_file.stat().st_size,
            "decay": WORDS_DECAY,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
    }
    (out / "train.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, found in report["accuracy"]["test"].items():
        console.print(f"{name}: {found['share']:.4f} of the test rows, 95 % {found['interval']}", highlight=False)


def train_network(
    model: dict[str, Any], splits: dict[str, Split], weights: Path, checkpoints: Path, resume: bool
) -> dict[str, Any]:
    """Train the exits and write their weights; what the report says of it, under the names `OF_NETWORK`."""
    torch.manual_seed(OPTIONS.seed)
    network = build(model)
    provenance = Provenance(
        options=OPTIONS.model_dump(),
        objective=RatedLoss.description,
        network={"factory": model["factory"], "args": model["args"]},
        data=hashlib.sha256(b"".join(splits["train"].texts)).hexdigest(),
        frozen=frozen_digest(network),
    )
    epochs = train_exits(network, splits, CheckpointFolder(checkpoints, provenance, resume=resume))
    write_weights(trained_state(network), weights)
    return {
        "seconds": round(sum(epoch.seconds for epoch in epochs), 1),
        "epochs": [record_of(epoch).model_dump() for epoch in epochs],
        "trained_parameters": sum(value.numel() for value in trained_state(network).values()),
        "bytes": weights.stat().st_size,
        "provenance": provenance.model_dump(),
    }


def build(model: dict[str, Any]) -> Any:
    """The network that a stage of the spec names."""
    return ModelRef(factory=model["factory"], args=model.get("args", {})).build()


def measured(words: nn.Module, network: nn.Module, split: Split) -> dict[str, dict[str, Any]]:
    """Accuracy of each stage on a split, with its 95 % interval."""
    # Batches of like lengths: what is padded is computed too.
    order = np.argsort([len(text) for text in split.texts], kind="stable")
    rows = TensorRows([split.texts[order]], split.labels[order])
    shares = [*accuracies(words, rows), *accuracies(network, rows)]
    names = ["words", "exit1", "exit3", "exit6"]
    return {
        name: {"share": round(share, 4), "interval": wilson(share, len(rows))}
        for name, share in zip(names, shares, strict=True)
    }


if __name__ == "__main__":
    typer.run(main)
