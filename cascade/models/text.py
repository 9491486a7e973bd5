"""A text classifier with exits: a pretrained BERT encoder, an adapter that was trained for it, and a head at each exit.

Texts come as BYTES, which torch has no tensors for, and are cut into tokens here, on the CPU. The encoder's own weights are
frozen, and not shipped with a ladder: they are found in an installed Python package and checked by their SHA-256. A ladder
ships the adapter, low-rank changes of some of the weights (LoRA, Hu et al., arXiv 2106.09685), and the heads. To answer, the
changes are added to the weights once and cost nothing after that. Knows no ladder, no spec, no Ray.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cascade.errors import ConfigError
from cascade.models.bert import BertShape, Embedding, encoder_layer, folder_of, named_file, read_shape, read_weights
from cascade.models.exits import ExitNetwork, State
from cascade.models.tokens import Tokenizer, decoded

CHUNK_TOKENS = 256
"""A CPU runs so many tokens at a time, see `chunks`; measured by `python -m benchmarks.texts`."""


class LowRank(nn.Module):
    """A change of a matrix [outputs, inputs] of low rank: ``up @ down``, nothing at first.

    Args:
        outputs: rows of the matrix.
        inputs: columns of the matrix.
        rank: of the change.
    """

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """What the change adds to the matrix's outputs: [..., outputs] of [..., inputs]."""
        return features @ self.down.T @ self.up.T

    def matrix(self) -> Tensor:
        """The change itself, [outputs, inputs]."""
        return self.up @ self.down


class LayerAdapter(nn.Module):
    """Changes of one layer's weights: of the projections to queries and values, and of both linear maps behind attention.

    Args:
        shape: of the encoder.
        rank: of each change.
        dropout: share of what attention and the linear maps add to the features that training drops, as BERT's own does.
    """

    def __init__(self, shape: BertShape, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        width, inner = shape.width, shape.inner
        self.query = LowRank(width, width, rank)
        self.value = LowRank(width, width, rank)
        self.inner = LowRank(inner, width, rank)
        self.outer = LowRank(width, inner, rank)

    def forward(self, layer: nn.TransformerEncoderLayer, features: Tensor, mask: Tensor | None) -> Tensor:
        """What the changed layer makes of features [rows, length, width].

        The changes are applied to the features instead of being added to the weights: the gradients of whole matrices, a
        third of the work of a step, are then never computed.

        Args:
            layer: the layer, unchanged.
            features: its input.
            mask: bool [rows, length], true beyond each row's own; None where all are as long.
        """
        attention = layer.self_attn
        query, key, value = F.linear(features, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        projected = (query + self.query(features), key, value + self.value(features))
        per_head = (each.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for each in projected)
        own = None if mask is None else ~mask[:, None, None, :]
        queries, keys, values = per_head
        seen = F.scaled_dot_product_attention(queries, keys, values, own).transpose(1, 2).flatten(2)
        features = layer.norm1(features + self.dropout(attention.out_proj(seen)))
        inner = F.gelu(layer.linear1(features) + self.inner(features))
        changed: Tensor = layer.norm2(features + self.dropout(layer.linear2(inner) + self.outer(inner)))
        return changed

    def weights(self, layer: nn.TransformerEncoderLayer) -> dict[str, Tensor]:
        """A layer's weights with their changes, by its own names; those that stay are left out."""
        query, key, value = layer.self_attn.in_proj_weight.chunk(3)
        return {
            "self_attn.in_proj_weight": torch.cat([query + self.query.matrix(), key, value + self.value.matrix()]),
            "linear1.weight": layer.linear1.weight + self.inner.matrix(),
            "linear2.weight": layer.linear2.weight + self.outer.matrix(),
        }


class TextExits(ExitNetwork):
    """An encoder with exits behind some of its layers.

    It takes BYTES, or what `prepare` makes of them. A head reads mean and maximum of the features of a text's tokens.

    Attributes:
        shape: size of the encoder.
        adapters: changes of each layer; none if the rank is 0.
        words: change of the words' embedding; None if that rank is 0.

    Args:
        shape: size of the encoder.
        exits: number of layers before each exit, rising.
        classes: width of the logits.
        rank: of the changes of each layer; 0 to train the encoder itself.
        words_rank: of the change of the words' embedding.
        dropout: share of the features that training drops behind the embedding, in the adapted layers, and before the heads.
        tokenizer: cuts texts; None for a network that is given tokens.

    Raises:
        ValueError: exits that do not rise, or lie beyond the last layer.
    """

    ragged = True

    def __init__(
        self,
        shape: BertShape,
        exits: Sequence[int],
        classes: int,
        *,
        rank: int = 0,
        words_rank: int = 0,
        dropout: float = 0.1,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        if list(exits) != sorted(set(exits)) or not exits or exits[0] < 1 or exits[-1] > shape.layers:
            raise ValueError(f"exits must rise within 1 to {shape.layers} layers, got {list(exits)}")
        self.shape = shape
        self.embedding = Embedding(shape)
        self.layers = nn.ModuleList(encoder_layer(shape) for _ in range(exits[-1]))
        if rank or words_rank:
            self.requires_grad_(False)
        self.adapters = nn.ModuleList(LayerAdapter(shape, rank, dropout) for _ in self.layers if rank)
        self.words = LowRank(shape.vocabulary, shape.width, words_rank) if words_rank else None
        self.heads = nn.ModuleList(nn.Linear(2 * shape.width, classes) for _ in exits)
        self.dropout = nn.Dropout(dropout)
        self._spans = tuple(range(first, last) for first, last in pairwise([0, *exits]))
        self._tokenizer = tokenizer
        self._settled: list[nn.Module] = []
        # Also where a module around this one is loaded.
        self.register_load_state_dict_post_hook(_unsettle)  # type: ignore[no-untyped-call]

    @property
    def exits(self) -> int:
        """See `ExitNetwork`."""
        return len(self.heads)

    def macs(self, tokens: int) -> list[int]:
        """Multiply-accumulates of each segment on a text of so many tokens."""
        return [len(span) * self.shape.macs(tokens) for span in self._spans]

    def prepare(self, texts: NDArray[np.object_]) -> tuple[Tensor, Tensor]:
        """Tokens and lengths of BYTES [rows] or [rows, 1], see `Tokenizer`; an empty text is its two marks.

        Raises:
            BadRequest: a text is not UTF-8.
        """
        if self._tokenizer is None:
            raise ConfigError("this network was made without a tokenizer: it takes tokens")
        device = self.embedding.places.weight.device
        tokens, lengths = (torch.from_numpy(array).to(device) for array in self._tokenizer(decoded(texts)))
        return tokens, lengths

    def embed(self, *inputs: Any) -> State:
        """See `ExitNetwork`.

        Args:
            inputs: BYTES [rows] or [rows, 1]; or tokens int64 [rows, longest] and lengths int64 [rows].
        """
        tokens, lengths = inputs if len(inputs) == 2 else self.prepare(*inputs)
        change = None if self.words is None else F.embedding(tokens, self.words.up) @ self.words.down
        return {"features": self.dropout(self.embedding(tokens, change)), "lengths": lengths}

    def segment(self, index: int, state: State) -> tuple[State, Tensor]:
        """See `ExitNetwork`."""
        lengths = state["lengths"]
        features = state["features"][:, : int(lengths.max())]
        whole = features.device.type != "cpu" or torch.is_grad_enabled()
        if whole or features.shape[0] * features.shape[1] <= CHUNK_TOKENS:
            features, logits = self._segment(index, features, lengths)
            return {"features": features, "lengths": lengths}, logits
        made: Tensor | None = None
        answers = []
        for rows in (parts := chunks(lengths, CHUNK_TOKENS)):
            longest = int(lengths[rows].max())
            own, logits = self._segment(index, features[rows, :longest], lengths[rows])
            if made is None:
                made = torch.zeros_like(features, dtype=own.dtype)  # that of autocast, where it is on
            made[rows, :longest] = own
            answers.append(logits)
        assert made is not None
        return {"features": made, "lengths": lengths}, torch.cat(answers)[torch.cat(parts).argsort()]

    def _segment(self, index: int, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features [rows, longest, width] behind the segment, and its logits."""
        beyond = torch.arange(features.shape[1], device=lengths.device) >= lengths[:, None]
        # Without a mask attention takes a shorter way.
        mask = beyond if bool(beyond.any()) else None
        for layer in self._spans[index]:
            features = self._run(layer, features, mask)
        return features, self.heads[index](self.dropout(pooled(features, beyond)))

    def _run(self, index: int, features: Tensor, mask: Tensor | None) -> Tensor:
        result: Tensor
        layer = self.layers[index]
        if not self.adapters:
            result = layer(features, src_key_padding_mask=mask)
        elif self.training or torch.is_grad_enabled():
            result = self.adapters[index](layer, features, mask)
        else:
            result = self._layers_to_answer()[index](features, src_key_padding_mask=mask)
        return result

    # -- the layers with the adapter in their weights ------------------------------------------------------------------

    def _layers_to_answer(self) -> list[nn.Module]:
        if not self._settled:
            # In full precision, whatever the layers are run in.
            with torch.autocast(self.embedding.places.weight.device.type, enabled=False):
                layers: Sequence[Any] = list(zip(self.layers, self.adapters, strict=True))
                for layer, adapter in layers:
                    settled = copy.deepcopy(layer).eval()
                    settled.load_state_dict(adapter.weights(layer), strict=False)
                    self._settled.append(settled)
        return self._settled

    def train(self, mode: bool = True) -> Self:
        """As in torch. What is trained must not be changed in evaluation mode: the layers that answer would not notice."""
        self._settled = []
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Behind `to` and its like: another device or number type.
        self._settled = []
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied


def _unsettle(network: nn.Module, keys: Any) -> None:  # noqa: ARG001 - as torch calls it
    assert isinstance(network, TextExits)
    network._settled = []


def chunks(lengths: Tensor, most: int) -> list[Tensor]:
    """Rows of like length, to be run one group after another: together they hold what a batch holds.

    Filled up to its longest text, a batch of sentences is half padding; and where the features of all its tokens outgrow a
    core's cache, a token takes longer. A GPU wants one large batch instead.

    Args:
        lengths: int64 [rows], at least one.
        most: tokens of a group, padding included; a single row may have more.

    Returns:
        The rows of each group, shortest first.
    """
    order = lengths.argsort(stable=True)
    groups, begin = [], 0
    for end, length in enumerate(lengths[order].tolist()):
        if end > begin and (end + 1 - begin) * length > most:
            groups.append(order[begin:end])
            begin = end
    return [*groups, order[begin:]]


def pooled(features: Tensor, beyond: Tensor) -> Tensor:
    """Mean and maximum over the tokens of each text, [rows, 2 width].

    Args:
        features: [rows, length, width].
        beyond: bool [rows, length], what is no token of the text; each has at least one.
    """
    own = ~beyond
    mean = (features * own[..., None]).sum(1) / own.sum(1, keepdim=True)
    largest = features.masked_fill(beyond[..., None], -torch.inf).amax(1)
    return torch.cat([mean, largest], dim=1).to(features.dtype)


def encoder(
    *,
    package: str,
    folder: str,
    sha256: Mapping[str, str],
    exits: Sequence[int],
    classes: int,
    rank: int = 8,
    words_rank: int = 0,
    dropout: float = 0.1,
    max_tokens: int = 64,
) -> TextExits:
    """A `TextExits` on the encoder that an installed Python package brings; factory for a spec.

    Args:
        package: import name of the package.
        folder: folder in it with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
        sha256: what the last two must be, by file name.
        exits: see `TextExits`.
        classes: see `TextExits`.
        rank: see `TextExits`.
        words_rank: see `TextExits`.
        dropout: see `TextExits`.
        max_tokens: longer texts are cut.

    Raises:
        ConfigError: the package is missing, or its files are not those.
    """
    path = folder_of(package, folder)
    shape = read_shape(path)
    if not 2 <= max_tokens <= shape.positions:
        raise ConfigError(f"max_tokens must be 2 to {shape.positions}, which the encoder knows, got {max_tokens}")
    file = named_file(path, "model.safetensors", sha256)
    tokenizer = Tokenizer(named_file(path, "tokenizer.json", sha256), max_tokens)
    network = TextExits(shape, exits, classes, rank=rank, words_rank=words_rank, dropout=dropout, tokenizer=tokenizer)
    weights = read_weights(file, exits[-1])
    own = network.state_dict()
    try:
        network.load_state_dict(own | weights)
    except RuntimeError as error:
        raise ConfigError(f"{file}: not the encoder of its config.json: {error}") from error
    return network
