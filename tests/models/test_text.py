"""A text network with exits: tokens, padding, exits that resume, and an adapter that costs nothing once it is loaded."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import SHAPE, WORDS, features_by_hand, published, texts, write_package

from cascade.errors import BadRequest, ConfigError, SpecError
from cascade.models.exits import joined, rows_of
from cascade.models.stage import TorchStage
from cascade.models.text import LowRank, TextExits, chunks, encoder
from cascade.models.tokens import MAX_CHARS, decoded
from cascade.spec import ModelRef

TEXTS = ["not a good film!", "bad", "", "the film", "good good bad not not the the a a film"]


def network(**changes) -> TextExits:
    """A small network of chance whose adapter changes something."""
    torch.manual_seed(0)
    made = TextExits(SHAPE, [1, 3], 2, **{"rank": 2, "words_rank": 1, **changes})
    for module in made.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.3)
    return made.eval()


def tokens_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, SHAPE.vocabulary, (len(lengths), max(lengths)), generator=random)
    sizes = torch.tensor(lengths)
    tokens[torch.arange(max(lengths)) >= sizes[:, None]] = 0
    return tokens, sizes


# -- texts -------------------------------------------------------------------------------------------------------------


def test_bytes_become_strings_whatever_the_shape_of_a_row():
    assert decoded(texts("ä", "")) == ["ä", ""]
    assert decoded(texts("ä", "b")[:, None]) == ["ä", "b"]
    with pytest.raises(ConfigError, match=r"one text.*\[1, 2\]"):
        decoded(texts("a", "b")[None])


def test_text_that_is_not_utf8_is_told_by_row_and_byte():
    array = texts("fine", "x")
    array[1] = b"caf\xe9 au lait"
    with pytest.raises(BadRequest, match="row 1: the text is not UTF-8: invalid continuation byte at byte 3"):
        decoded(array)


def test_no_more_of_a_text_is_read_than_a_stage_has_time_for():
    assert decoded(texts("ü" * (MAX_CHARS + 5))) == ["ü" * MAX_CHARS]


def test_texts_are_cut_into_tokens_and_padded_to_the_longest(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    arguments = write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tokens, lengths = encoder(**arguments).prepare(texts(*TEXTS))
    words = [[WORDS[token] for token in row] for row in tokens.tolist()]
    assert words[0] == ["[CLS]", "not", "a", "good", "film", "!", "[SEP]", "[PAD]"]
    assert words[2] == ["[CLS]", "[SEP]", *["[PAD]"] * 6]
    assert words[4] == ["[CLS]", "good", "good", "bad", "not", "not", "the", "[SEP]"]  # cut at max_tokens
    assert lengths.tolist() == [7, 3, 2, 4, 8]


# -- exits -------------------------------------------------------------------------------------------------------------


def test_the_features_are_those_of_the_published_encoder(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    arguments = write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    made = encoder(**arguments).eval()
    with torch.inference_mode():
        state = made.embed(texts("not good", "a film"))
        for index, layers in enumerate([1, 3]):
            state, _ = made.segment(index, state)
            expected = features_by_hand(published(), [2, 7, 4, 3], layers)
            torch.testing.assert_close(state["features"][0].double(), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 1 << 30), st.data())
def test_resumed_with_other_rows_a_text_is_answered_as_alone(lengths, seed, data):
    made = network()
    tokens, sizes = tokens_of(lengths)
    with torch.inference_mode():
        alone = torch.cat([made(tokens[k : k + 1, : sizes[k]], sizes[k : k + 1]) for k in range(len(lengths))])
        order = data.draw(st.permutations(range(len(lengths))))
        cut = data.draw(st.integers(1, len(lengths) - 1))
        states = []
        for part in (order[:cut], order[cut:]):
            state, logits = made.segment(0, made.embed(tokens[part], sizes[part]))
            torch.testing.assert_close(logits, alone[part, 0], atol=1e-4, rtol=1e-3)
            states.append(state)
        together = joined(states[::-1])
        back = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
        _, logits = made.segment(1, rows_of(together, back))
    places = torch.tensor([*order[cut:], *order[:cut]])[back]
    torch.testing.assert_close(logits, alone[places, 1], atol=1e-4, rtol=1e-3)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(1, 300))
def test_groups_of_a_batch_hold_every_row_once_by_length_and_no_more_tokens_than_they_may(lengths, most):
    groups = [group.tolist() for group in chunks(torch.tensor(lengths), most)]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sizes = [[lengths[row] for row in group] for group in groups]
    assert [size for group in sizes for size in group] == sorted(lengths)
    assert all(len(group) == 1 or len(group) * group[-1] <= most for group in sizes)
    # None could have taken in the next row, too.
    assert all((len(group) + 1) * after[0] > most for group, after in pairwise(sizes))


def test_a_batch_that_is_run_in_groups_is_answered_as_a_whole_one(monkeypatch):
    made = network()
    tokens, sizes = tokens_of([9, 2, 5, 3, 9, 2, 7])
    with torch.inference_mode():
        whole, whole_logits = made.segment(0, made.embed(tokens, sizes))
        monkeypatch.setattr("cascade.models.text.CHUNK_TOKENS", 12)
        assert len(chunks(sizes, 12)) > 3
        cut, cut_logits = made.segment(0, made.embed(tokens, sizes))
        torch.testing.assert_close(cut_logits, whole_logits, atol=1e-5, rtol=1e-4)
        for row, size in enumerate(sizes.tolist()):
            torch.testing.assert_close(cut["features"][row, :size], whole["features"][row, :size], atol=1e-5, rtol=1e-4)
        _, later = made.segment(1, whole)
        torch.testing.assert_close(made.segment(1, cut)[1], later, atol=1e-5, rtol=1e-4)


def test_what_lies_beyond_a_text_does_not_reach_its_logits_and_is_trimmed():
    made = network()
    tokens, sizes = tokens_of([3, 5])
    wider = torch.nn.functional.pad(tokens, (0, 4), value=7)
    wider[0, 3:] = 9
    with torch.inference_mode():
        torch.testing.assert_close(made(wider, sizes), made(tokens, sizes), atol=1e-5, rtol=1e-4)
        state, _ = made.segment(0, made.embed(wider, sizes))
    assert state["features"].shape == (2, 5, SHAPE.width)


def test_a_segment_leaves_its_state_as_it_was():
    made = network()
    state = made.embed(*tokens_of([4, 2]))
    before = {name: value.clone() for name, value in state.items()}
    with torch.inference_mode():
        made.segment(0, state)
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_segments_cost_what_their_layers_cost():
    assert network().macs(5) == [SHAPE.macs(5), 2 * SHAPE.macs(5)]


@pytest.mark.parametrize("exits", [[], [3, 1], [1, 1], [0, 2], [1, 4]])
def test_exits_that_are_no_depths_of_the_encoder_are_refused(exits):
    with pytest.raises(ValueError, match="rise within 1 to 3 layers"):
        TextExits(SHAPE, exits, 2)


# -- the adapter -------------------------------------------------------------------------------------------------------


def test_an_untrained_adapter_changes_nothing():
    torch.manual_seed(0)
    made = TextExits(SHAPE, [1, 3], 2, rank=2, words_rank=1).eval()
    plain = TextExits(SHAPE, [1, 3], 2).eval()
    plain.load_state_dict({name: value for name, value in made.state_dict().items() if name in plain.state_dict()})
    with torch.inference_mode():
        torch.testing.assert_close(made(*tokens_of([4, 2])), plain(*tokens_of([4, 2])))


def test_the_layers_that_answer_are_those_that_were_trained():
    made = network(dropout=0.0)
    rows = tokens_of([5, 3])
    with torch.inference_mode():
        answered = made(*rows)
    trained = made.train()(*rows)
    torch.testing.assert_close(answered, trained.detach(), atol=1e-5, rtol=1e-4)


def test_a_step_of_training_and_other_weights_reach_the_layers_that_answer():
    made = network(dropout=0.0)
    rows = tokens_of([5, 3])
    with torch.inference_mode():
        before = made(*rows)
    made.train()
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5)
    made(*rows).square().sum().backward()
    optimizer.step()
    with torch.inference_mode():
        assert not torch.allclose(made.eval()(*rows), before, atol=1e-3)
    around = torch.nn.Sequential(made)
    around.load_state_dict(torch.nn.Sequential(network()).state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(made(*rows), before)
        assert made.double()(*rows).dtype == torch.float64


def test_only_adapter_and_heads_are_trained_and_all_of_them_are():
    made = network().train()
    made(*tokens_of([5, 3])).square().sum().backward()
    moved = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    free = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert moved == free
    assert {name.split(".")[0] for name in free} == {"adapters", "words", "heads"}


def test_without_an_adapter_the_encoder_itself_is_trained():
    made = TextExits(SHAPE, [1, 3], 2).train()
    assert all(parameter.requires_grad for parameter in made.parameters())
    made(*tokens_of([5, 3])).square().sum().backward()
    assert made.layers[2].linear1.weight.grad is not None


def test_dropout_is_of_training_alone():
    made = network(dropout=0.5)
    rows = tokens_of([5, 3])
    with torch.inference_mode():
        assert torch.equal(made(*rows), made(*rows))
    made.train()
    assert not torch.equal(made(*rows), made(*rows))


# -- as a stage --------------------------------------------------------------------------------------------------------


class LastExit(torch.nn.Module):
    """What a stage that begins at the inputs runs."""

    def __init__(self, made: TextExits) -> None:
        super().__init__()
        self.made = made

    def forward(self, *inputs):
        return self.made(*inputs)[:, -1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_takes_texts_of_any_length_and_empty_ones(tmp_path, monkeypatch, precision):
    pytest.importorskip("tokenizers")
    arguments = write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    stage = TorchStage(LastExit(encoder(**arguments)), ["text"], precision=precision)
    stage.warm_up({"text": texts("")}, [1, 4])
    together = stage.run({"text": texts(*TEXTS)}).logits
    assert together.shape == (5, 2)
    alone = [stage.run({"text": texts(text)}).logits[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-4 if precision == "float32" else 0.1)


def test_a_factory_says_what_is_wrong_with_its_arguments(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    arguments = write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    factory = "cascade.models.text:encoder"
    with pytest.raises(SpecError, match="max_tokens must be 2 to 10, which the encoder knows, got 11"):
        ModelRef(factory=factory, args=arguments | {"max_tokens": 11}).build()
    sums = {"model.safetensors": arguments["sha256"]["model.safetensors"]}
    with pytest.raises(SpecError, match=r"sha256 must name tokenizer\.json, got model\.safetensors"):
        ModelRef(factory=factory, args=arguments | {"sha256": sums}).build()
    with pytest.raises(SpecError, match="not installed"):
        ModelRef(factory=factory, args=arguments | {"package": "no_such_encoder"}).build()
