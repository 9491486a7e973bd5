"""VADER as a stage: its own scores, row by row."""

import numpy as np
import pytest
import torch

from cascade.errors import BadRequest

pytest.importorskip("vaderSentiment")

from cascade.models.stage import TorchStage
from cascade.models.vader import SCORES, VaderRules


def texts(*each: bytes) -> np.ndarray:
    array = np.empty(len(each), dtype=object)
    array[:] = each
    return array


def test_the_scores_are_those_that_the_package_documents():
    scores = VaderRules().prepare(texts(b"VADER is smart, handsome, and funny.", b"", b"not good"))
    assert scores.shape == (3, len(SCORES))
    # From the README of vaderSentiment 3.3.2.
    np.testing.assert_allclose(scores[0], [0.8316, 0.746, 0.0, 0.254], atol=1e-6)
    assert scores[1].tolist() == [0, 0, 0, 0]
    assert scores[2, 0] < 0


def test_a_regression_on_the_scores_answers():
    network = VaderRules()
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        network.head.bias.zero_()
    result = TorchStage(network, ["text"]).run({"text": texts(b"good", b"terrible", b"", b"a table")})
    assert np.sign(result.logits[:, 1] - result.logits[:, 0]).tolist() == [1, -1, 0, 0]


def test_text_that_is_not_utf8_is_told():
    with pytest.raises(BadRequest, match="row 0: the text is not UTF-8"):
        VaderRules()(texts(b"\xff"))
