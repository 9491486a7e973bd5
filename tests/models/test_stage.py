"""A stage over tiny networks: what goes in, what comes out, and what is refused when its weights are loaded."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cascade.errors import ConfigError
from cascade.models.stage import TorchStage, load_weights


class Signed(nn.Module):
    """Two inputs in an order that matters: the scores, and whether to keep their sign."""

    def forward(self, scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        assert keep.dtype == torch.bool
        return torch.where(keep[:, None], scores, -scores)


class Telling(nn.Module):
    """Remembers the sizes and the state it was called in."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.sizes.append(len(x))
        return self.linear(x)


def linear_rows(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 3)).astype(np.float32)


def test_a_batch_gives_the_logits_that_the_network_gives():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    rows = linear_rows(5)
    result = TorchStage(network, ["x"]).run({"x": rows})
    expected = rows @ network.weight.detach().cpu().numpy().T + network.bias.detach().cpu().numpy()
    assert result.logits.dtype == np.float32
    np.testing.assert_allclose(result.logits, expected, atol=1e-5)
    assert result.run_s > 0


def test_inputs_are_passed_in_the_order_of_the_spec_and_others_are_left_out():
    scores, keep = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([True, False])
    stage = TorchStage(Signed(), ["scores", "keep"])
    result = stage.run({"keep": keep, "other": np.zeros(2), "scores": scores})
    assert result.logits.tolist() == [[1, 2], [-3, -4]]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float64", "bool", "uint16"])
def test_inputs_keep_their_number_type(dtype):
    seen = []

    class Typed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.dtype)
            return x.float()

    rows = np.ones((2, 2), dtype=dtype)
    result = TorchStage(Typed(), ["x"]).run({"x": rows})
    assert seen == [getattr(torch, dtype)]
    assert result.logits.tolist() == [[1, 1], [1, 1]]
    assert result.logits.dtype == np.float32


def test_a_view_on_received_bytes_can_be_run():
    rows = np.frombuffer(linear_rows(4).tobytes(), np.float32).reshape(4, 3)
    assert not rows.flags.writeable
    network = nn.Linear(3, 2)
    np.testing.assert_array_equal(
        TorchStage(network, ["x"]).run({"x": rows}).logits, TorchStage(network, ["x"]).run({"x": rows.copy()}).logits
    )


def test_a_network_is_run_in_evaluation_mode_and_without_gradients():
    network = Telling()
    assert network.training
    TorchStage(network, ["x"]).run({"x": linear_rows(2)})
    assert network.sizes == [2]


def test_warming_up_runs_each_size_once():
    network = Telling()
    TorchStage(network, ["x"]).warm_up({"x": np.zeros((1, 3), np.float32)}, [1, 4, 7])
    assert network.sizes == [1, 4, 7]


def test_a_lower_precision_is_run_under_autocast_and_answers_in_float32():
    network = nn.Linear(3, 2)
    rows = linear_rows(8)
    exact = TorchStage(network, ["x"]).run({"x": rows}).logits
    rough = TorchStage(network, ["x"], precision="bfloat16").run({"x": rows}).logits
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.1)


def test_weights_are_loaded_and_half_precision_is_widened(tmp_path):
    saved = {"weight": torch.randn(2, 3).half(), "bias": torch.randn(2).half()}
    save_file(saved, tmp_path / "w.safetensors")
    network = load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    assert network.weight.dtype == torch.float32
    assert torch.equal(network.weight.detach(), saved["weight"].float())


@pytest.mark.parametrize(
    ("tensors", "mention"),
    [
        ({"weight": (2, 3)}, "bias"),
        ({"weight": (2, 3), "bias": (2,), "extra": (1,)}, "extra"),
        ({"weight": (3, 3), "bias": (2,)}, "weight"),
    ],
    ids=["missing", "left over", "another shape"],
)
def test_weights_that_do_not_fit_are_refused_with_the_tensor_named(tmp_path, tensors, mention):
    path = tmp_path / "w.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(ConfigError, match=mention) as refused:
        load_weights(nn.Linear(3, 2), path)
    assert "w.safetensors" in refused.value.detail
    assert "Linear" in refused.value.detail
