"""The networks of the image ladder: shapes, dtypes, costs, and the weights that the Fashion-MNIST ladder ships."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from cascade.models import networks
from cascade.models.flops import macs
from cascade.models.networks import PIXEL_MEAN, PIXEL_STD, PooledLinear, ResidualNet, StridedCNN, normalise

FASHION = Path(__file__).parents[2] / "deployments" / "fashion"
RUNGS = json.loads((FASHION / "train.json").read_text())
LADDER = ["linear", "tiny", "small", "medium", "large"]


def pixels(n: int, seed: int = 0, size: int = 28) -> Tensor:
    return torch.randint(0, 256, (n, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def shipped(rung: str) -> nn.Module:
    module, name = RUNGS[rung]["factory"].split(":")
    assert module == "cascade.models.networks"
    network: nn.Module = getattr(networks, name)(**RUNGS[rung]["args"])
    network.load_state_dict(safetensors.torch.load_file(FASHION / "weights" / f"{rung}.safetensors"))
    return network.eval()


def small_residual(**changes) -> ResidualNet:
    torch.manual_seed(0)
    return ResidualNet(**{"stem": 4, "widths": (8, 8), "depths": (1, 2), "strides": (2, 2), **changes}).eval()


NETWORKS = {
    "pooled linear": PooledLinear,
    "strided cnn": StridedCNN,
    "residual": small_residual,
    "residual with mirror": lambda: small_residual(mirror=True),
}


@pytest.mark.parametrize("factory", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("n", [1, 3])
def test_one_row_of_logits_comes_back_for_each_image(factory, n):
    logits = factory().eval()(pixels(n))
    assert logits.shape == (n, 10)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("factory", NETWORKS.values(), ids=NETWORKS.keys())
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(factory):
    network, batch = factory().eval(), pixels(5)
    with torch.inference_mode():
        together = network(batch)
        alone = torch.cat([network(batch[index : index + 1]) for index in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factory", NETWORKS.values(), ids=NETWORKS.keys())
def test_logits_have_the_dtype_of_the_weights(factory):
    assert factory().eval().bfloat16()(pixels(2)).dtype == torch.bfloat16


@pytest.mark.parametrize("factory", NETWORKS.values(), ids=NETWORKS.keys())
def test_channels_last_changes_the_layout_and_not_the_answer(factory):
    network, batch = factory().eval(), pixels(4)
    with torch.inference_mode():
        before = network(batch)
        after = network.to(memory_format=torch.channels_last)(batch)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


def test_pixels_are_standardised_over_the_whole_byte_range():
    levels = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-PIXEL_MEAN / PIXEL_STD, (255 - PIXEL_MEAN) / PIXEL_STD]]]])
    torch.testing.assert_close(normalise(levels, torch.float32), expected)


def test_a_mirroring_network_answers_an_image_and_its_mirror_image_alike():
    batch = pixels(3)
    network = small_residual(mirror=True)
    torch.testing.assert_close(network(batch), network(batch.flip(-1)))
    assert not torch.allclose(small_residual()(batch), small_residual()(batch.flip(-1)))


def test_mirroring_costs_twice_as_much_and_is_left_out_in_training():
    plain, mirroring = small_residual(), small_residual(mirror=True)
    assert macs(mirroring, pixels(1)) == 2 * macs(plain, pixels(1))
    batch = pixels(4)
    torch.testing.assert_close(plain.train()(batch), mirroring.train()(batch))


def test_macs_of_a_linear_model_are_its_weights():
    assert macs(PooledLinear(pool=2), pixels(1)) == 14 * 14 * 10


def test_macs_grow_with_the_batch():
    network = StridedCNN()
    assert macs(network, pixels(3)) == 3 * macs(network, pixels(1))


def test_other_sizes_and_class_counts_are_arguments():
    assert PooledLinear(pool=4, size=32, classes=7)(pixels(1, size=32)).shape == (1, 7)
    assert StridedCNN(size=32, classes=7).eval()(pixels(1, size=32)).shape == (1, 7)
    assert small_residual(classes=7)(pixels(1, size=32)).shape == (1, 7)


def test_a_pool_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="pool must divide size 28, got 3"):
        PooledLinear(pool=3)


def test_every_rung_of_the_ladder_is_shipped():
    assert list(RUNGS) == LADDER
    assert {path.stem for path in (FASHION / "weights").glob("*.safetensors")} == set(LADDER)


@pytest.mark.parametrize("rung", LADDER)
def test_shipped_weights_are_half_precision_and_small(rung):
    path = FASHION / "weights" / f"{rung}.safetensors"
    assert path.stat().st_size < 4_000_000
    floats = [value for value in safetensors.torch.load_file(path).values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float16}
    assert all(torch.isfinite(value).all() for value in floats)


@pytest.mark.parametrize("rung", LADDER)
def test_a_rung_costs_what_train_json_says(rung):
    network = shipped(rung)
    assert macs(network, pixels(1)) == RUNGS[rung]["macs"]
    assert sum(parameter.numel() for parameter in network.parameters()) == RUNGS[rung]["params"]


def test_each_rung_costs_five_to_twenty_times_the_one_before_and_is_more_often_right():
    for cheaper, dearer in itertools.pairwise(LADDER):
        assert 5 <= RUNGS[dearer]["macs"] / RUNGS[cheaper]["macs"] <= 20
        assert RUNGS[dearer]["accuracy_test"] > RUNGS[cheaper]["accuracy_test"]


@pytest.mark.parametrize("rung", LADDER)
def test_shipped_weights_are_as_accurate_as_train_json_says(rung):
    with np.load(FASHION / "data" / "test.npz") as test:
        image, labels = torch.from_numpy(test["image"][:500]), torch.from_numpy(test["labels"][:500])
    with torch.inference_mode():
        right = (shipped(rung)(image).argmax(1) == labels).double().mean().item()
    # 500 of 10,000 rows: three standard errors of a share near 0.83 are 0.05.
    assert right == pytest.approx(RUNGS[rung]["accuracy_test"], abs=0.05)


@pytest.mark.parametrize(("split", "n"), [("calibration", 5_000), ("test", 10_000)])
def test_shipped_data_is_pixels_and_labels(split, n):
    with np.load(FASHION / "data" / f"{split}.npz") as rows:
        assert set(rows.files) == {"image", "labels"}
        assert rows["image"].shape == (n, 28, 28)
        assert rows["image"].dtype == np.uint8
        assert rows["labels"].shape == (n,)
        assert rows["labels"].dtype == np.int64
        assert set(np.unique(rows["labels"])) == set(range(10))


def test_calibration_and_test_share_no_image():
    with np.load(FASHION / "data" / "calibration.npz") as calibration, np.load(FASHION / "data" / "test.npz") as test:
        seen = {row.tobytes() for row in calibration["image"]}
        shared = sum(row.tobytes() in seen for row in test["image"])
    assert shared == 0
