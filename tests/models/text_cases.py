"""A BERT small enough for tests, packed as its publishers pack it, and its formulas written out by hand."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cascade.models.bert import BertShape

SHAPE = BertShape(layers=3, width=16, heads=4, inner=24, vocabulary=12, positions=10)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "not", "##ly", "a", "the", "!"]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": SHAPE.layers,
    "hidden_size": SHAPE.width,
    "num_attention_heads": SHAPE.heads,
    "intermediate_size": SHAPE.inner,
    "vocab_size": SHAPE.vocabulary,
    "max_position_embeddings": SHAPE.positions,
    "layer_norm_eps": SHAPE.epsilon,
}
MARKS = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
MARKS.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    # As published files have it: a fixed length, which the ladder does not want.
    "padding": {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    },
    "added_tokens": [],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": MARKS,
        "pair": [*MARKS, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {mark: {"id": mark, "ids": [WORDS.index(mark)], "tokens": [mark]} for mark in ("[CLS]", "[SEP]")},
    },
    "decoder": None,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {word: place for place, word in enumerate(WORDS)},
    },
}


def texts(*each: str) -> np.ndarray:
    """BYTES [rows]."""
    array = np.empty(len(each), dtype=object)
    array[:] = [text.encode() for text in each]
    return array


def published(seed: int = 0) -> dict[str, Tensor]:
    """Weights of chance under BERT's names."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0) -> Tensor:
        return mean + 0.3 * torch.randn(*shape, generator=random)

    width, inner = SHAPE.width, SHAPE.inner
    state = {
        "embeddings.word_embeddings.weight": normal(SHAPE.vocabulary, width),
        "embeddings.position_embeddings.weight": normal(SHAPE.positions, width),
        "embeddings.token_type_embeddings.weight": normal(2, width),
        "embeddings.LayerNorm.weight": normal(width, mean=1.0),
        "embeddings.LayerNorm.bias": normal(width),
        "pooler.dense.weight": normal(width, width),
    }
    for layer in range(SHAPE.layers):
        name = f"encoder.layer.{layer}"
        for part, sides in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }.items():
            state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"] = normal(*sides), normal(sides[0])
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"] = normal(width, mean=1.0), normal(width)
    return state


def features_by_hand(state: dict[str, Tensor], tokens: list[int], layers: int) -> Tensor:
    """Features [length, width] of one text behind so many layers, by the formulas of the paper, in float64."""
    state = {name: value.double() for name, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + SHAPE.epsilon).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = state["embeddings.word_embeddings.weight"][tokens] + state["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm("embeddings.LayerNorm", x + state["embeddings.token_type_embeddings.weight"][0])
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            linear(f"{name}.attention.self.{each}", x).reshape(len(tokens), SHAPE.heads, -1).transpose(0, 1)
            for each in ("query", "key", "value")
        )
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(SHAPE.width / SHAPE.heads), dim=-1)
        seen = (weights @ value).transpose(0, 1).reshape(len(tokens), -1)
        x = norm(f"{name}.attention.output.LayerNorm", x + linear(f"{name}.attention.output.dense", seen))
        inner = linear(f"{name}.intermediate.dense", x)
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", inner))
    return x


def write_package(folder: Path, name: str = "tiny_encoder") -> dict[str, Any]:
    """Write an importable package that brings this encoder; returns the factory's arguments that belong to it."""
    model = folder / name / "model"
    model.mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('the code of the package is not to be run')\n")
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save_file(published(), model / "model.safetensors")
    sums = {
        each: hashlib.sha256((model / each).read_bytes()).hexdigest() for each in ("model.safetensors", "tokenizer.json")
    }
    return {"package": name, "folder": "model", "sha256": sums, "exits": [1, 3], "classes": 2, "max_tokens": 8}
