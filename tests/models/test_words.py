"""Rules and words as a stage: which features a text has, what they add up to, and that rows do not touch each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import WORDS, texts, write_package

from cascade.errors import BadRequest, ConfigError

pytest.importorskip("vaderSentiment")

from cascade.models.stage import TorchStage
from cascade.models.words import PAIR_FACTOR, RulesAndWords, rules_and_words

PAIRS = 7


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        made = write_package(folder, "tiny_words")
        yield {name: made[name] for name in ("package", "folder", "sha256", "classes", "max_tokens")} | {"pairs": PAIRS}


@pytest.fixture(scope="module")
def network(arguments) -> RulesAndWords:
    torch.manual_seed(0)
    made = rules_and_words(**arguments)
    torch.nn.init.normal_(made.words.weight)
    return made.eval()


def test_features_are_the_set_of_pieces_and_of_pairs_of_neighbours(network):
    _, features, counts = network.prepare(texts("good film good film", ""))
    start, end, good, film = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "good", "film"))
    pairs = {(start, good), (good, film), (film, good), (film, end)}
    expected = {start, end, good, film} | {len(WORDS) + (a * PAIR_FACTOR + b) % PAIRS for a, b in pairs}
    first, second = features.split(counts.tolist())
    assert first.tolist() == sorted(expected)
    assert second.tolist() == sorted({start, end, len(WORDS) + (start * PAIR_FACTOR + end) % PAIRS})


def test_logits_are_those_of_the_rules_and_the_sum_of_the_weights_by_the_root_of_their_number(network):
    text = texts("not a good film!")
    scores, features, _ = network.prepare(text)
    weights = network.words.weight[features]
    expected = network.rules.head(scores)[0] + weights.sum(dim=0) / len(features) ** 0.5
    torch.testing.assert_close(network(text)[0], expected)


def test_untrained_words_leave_the_rules_alone(arguments):
    network = rules_and_words(**arguments)
    text = texts("good", "bad film")
    torch.testing.assert_close(network(text), network.rules(text))


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.sampled_from([*WORDS[4:], "great"]), max_size=12), min_size=1, max_size=6))
def test_rows_do_not_touch_each_other(network, rows):
    batch = texts(*(" ".join(words) for words in rows))
    alone = torch.cat([network(batch[row : row + 1]) for row in range(len(batch))])
    torch.testing.assert_close(network(batch), alone)


def test_what_lies_beyond_the_last_token_is_read_by_the_rules_alone(network, arguments):
    long = "the " * arguments["max_tokens"]
    first, second = texts(long), texts(long + "bad")
    assert network.prepare(first)[1].tolist() == network.prepare(second)[1].tolist()
    assert network.prepare(first)[0].tolist() != network.prepare(second)[0].tolist()


def test_a_stage_answers_with_it(network):
    result = TorchStage(network, ["text"]).run({"text": texts("good", "")[:, None]})
    assert result.logits.shape == (2, 2)
    assert np.isfinite(result.logits).all()


def test_text_that_is_not_utf8_is_told(network):
    array = texts("fine", "x")
    array[1] = b"\xff"
    with pytest.raises(BadRequest, match="row 1: the text is not UTF-8"):
        network(array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": {}}, "sha256 must name tokenizer.json, got nothing"),
        ({"sha256": {"tokenizer.json": "0" * 64}}, "SHA-256"),
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"max_tokens": 1}, "max_tokens at least 2"),
        ({"package": "no_such_package_of_words"}, "no_such_package_of_words"),
    ],
)
def test_what_it_cannot_be_made_of_is_told(arguments, changes, message):
    with pytest.raises(ConfigError, match=message):
        rules_and_words(**(arguments | changes))
