"""How a network is run: precisions, layouts and padding against plain float32, for every shipped network.

Tolerances. Rounding to a format of p significant bits is off by at most u = 2^-p of a number. A layer rounds its inputs, its
weights and its outputs, and such errors, being independent, add up by the root of their number: the shipped networks have up
to ten layers, so about sqrt(10) u of the logits' size, here 4 u of their root mean square and 8 u of their largest. In
float32 the sums themselves are rounded too, as often as they have terms, and another layout or batch size adds them up in
another order: up to 2304 terms (256 channels of 3 x 3), so sqrt(2304) u = 48 u.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cascade.models.fake_device import FakeDevice
from cascade.models.stage import Execution, TorchStage, load_weights
from cascade.spec import Ladder

LADDER = Ladder.read(Path(__file__).parents[2] / "deployments" / "fashion" / "cascade.yaml")
STAGES = {stage.name: stage for stage in LADDER.spec.stages}
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
ROWS = 24


@pytest.fixture(scope="module")
def image():
    with np.load(LADDER.path(LADDER.spec.data.test)) as rows:
        return rows["image"][:ROWS]


def stage(name, device=None, precision="float32", **execution):
    spec = STAGES[name]
    network = load_weights(spec.model.build(), LADDER.weights(spec))
    execution = Execution(**{"max_rows": 16, **execution})
    return TorchStage(network, ["image"], precision=precision, device=device, execution=execution)


def on_a_gpu(name, image, seed=0, **changes):
    found = stage(name, FakeDevice(seed), **changes)
    found.warm_up({"image": image[:1]}, [1, 16])
    return found


def errors(got, exact):
    """Root mean square and largest error, as shares of the same of the logits."""
    off = np.abs(got - exact)
    return np.sqrt((off**2).mean() / (exact**2).mean()), off.max() / np.abs(exact).max()


@pytest.mark.parametrize("cast_weights", [False, True], ids=["autocast", "weights"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", STAGES)
def test_half_precision_is_off_by_its_rounding_and_no_more(image, name, precision, cast_weights):
    exact = stage(name).run({"image": image}).logits
    rough = stage(name, precision=precision, cast_weights=cast_weights).run({"image": image}).logits
    assert rough.dtype == np.float32
    mean, most = errors(rough, exact)
    assert 0 < mean <= 4 * ROUNDOFF[precision]
    assert most <= 8 * ROUNDOFF[precision]


@pytest.mark.parametrize("name", STAGES)
def test_another_layout_changes_the_order_of_sums_and_no_more(image, name):
    exact = stage(name).run({"image": image}).logits
    assert errors(stage(name, channels_last=True).run({"image": image}).logits, exact)[1] <= 48 * ROUNDOFF["float32"]


@pytest.mark.parametrize("name", STAGES)
def test_padding_to_a_bucket_changes_no_row(image, name):
    padded = on_a_gpu(name, image)
    assert padded.pipeline.graphed
    for count in (1, 3, 5, 9, 16):
        exact = stage(name).run({"image": image[:count]}).logits
        result = padded.run({"image": image[:count]})
        assert result.logits.shape == exact.shape
        assert errors(result.logits, exact)[1] <= 48 * ROUNDOFF["float32"]


@pytest.mark.parametrize("name", STAGES)
def test_everything_at_once_is_off_by_the_rounding_of_the_precision(image, name):
    fast = on_a_gpu(name, image, precision="bfloat16", cast_weights=True, channels_last=True, in_flight=3)
    waits = [fast.begin({"image": image[start : start + 6]}) for start in (0, 6, 12)]
    got = np.concatenate([wait().logits for wait in waits])
    mean, most = errors(got, stage(name).run({"image": image[:18]}).logits)
    assert mean <= 4 * ROUNDOFF["bfloat16"]
    assert most <= 8 * ROUNDOFF["bfloat16"]


# -- what goes through the pipeline, and what does not ---------------------------------------------------------------


def linear(**arguments):
    torch.manual_seed(0)
    return TorchStage(nn.Linear(3, 2), ["x"], **arguments)


def linear_rows(count):
    return {"x": np.random.default_rng(3).normal(size=(count, 3)).astype(np.float32)}


def warmed(**arguments):
    found = linear(device=FakeDevice(), execution=Execution(max_rows=4), **arguments)
    found.warm_up({"x": np.zeros((1, 3), np.float32)}, [1])
    return found


def test_on_the_cpu_there_is_no_pipeline_and_execution_changes_nothing():
    plain, other = linear(), linear(execution=Execution(graphs=False, buckets=(3, 4), in_flight=5, compile=True))
    for each in (plain, other):
        each.warm_up({"x": np.zeros((1, 3), np.float32)}, [1, 4])
        assert (each.pipeline, each.in_flight, each.lost) == (None, 1, False)
    rows = linear_rows(4)
    np.testing.assert_array_equal(plain.run(rows).logits, other.run(rows).logits)
    assert plain.run(rows).energy is None


def test_a_batch_beyond_the_largest_bucket_is_run_without_padding():
    np.testing.assert_allclose(warmed().run(linear_rows(7)).logits, linear().run(linear_rows(7)).logits, rtol=1e-6)


def test_floating_inputs_are_cast_with_the_weights():
    rough = linear(precision="bfloat16", execution=Execution(cast_weights=True)).run(linear_rows(8)).logits
    np.testing.assert_allclose(rough, linear().run(linear_rows(8)).logits, atol=0.05)


class Lengths(nn.Module):
    """Over bytes, which come as numpy arrays of objects."""

    def forward(self, text):
        return torch.tensor([[len(each), 1.0] for each in text])


def test_a_network_over_bytes_has_no_pipeline():
    found = TorchStage(Lengths(), ["text"], device=FakeDevice())
    found.warm_up({"text": np.array([b""], object)}, [1])
    assert found.pipeline is None
    assert found.run({"text": np.array([b"ab", b""], object)}).logits.tolist() == [[2, 1], [0, 1]]


def test_a_network_without_logits_has_no_pipeline_and_is_left_to_whoever_reads_them():
    found = TorchStage(nn.Flatten(0), ["x"], device=FakeDevice())
    found.warm_up({"x": np.zeros((1, 3), np.float32)}, [])
    assert found.pipeline is None
    assert found.run(linear_rows(2)).logits.shape == (6,)


# -- compiling ---------------------------------------------------------------------------------------------------------


def compiled_by(compiler):
    found = linear(device=FakeDevice(), execution=Execution(compile=True, max_rows=2), compiler=compiler)
    found.warm_up({"x": np.zeros((1, 3), np.float32)}, [1])
    return found.run(linear_rows(2)).logits


def test_a_network_is_compiled_for_fixed_sizes():
    asked = []

    def compiler(network, **options):
        asked.append(options)
        return lambda x: network(x) + 1

    np.testing.assert_allclose(compiled_by(compiler), linear().run(linear_rows(2)).logits + 1, rtol=1e-6)
    assert asked == [{"dynamic": False}]


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_a_network_that_cannot_be_compiled_is_run_as_it_is_and_the_log_says_so(caplog, when):
    def fail(*_):
        raise OSError("no compiler here")

    def compiler(network, **options):
        return fail() if when == "compiling" else fail

    np.testing.assert_allclose(compiled_by(compiler), linear().run(linear_rows(2)).logits, rtol=1e-6)
    assert "no compiler here" in caplog.text
