"""Segments of a network through the code that serves them: on the CPU and on a fake GPU, by arrays and by what is kept."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.models.exit_networks import ResidualExits
from cascade.models.exits import Segment, joined, rows_of
from cascade.models.fake_device import FakeDevice
from cascade.models.stage import Execution, StageResult, TorchStage
from cascade.serving.states import Kept, gather_states

EXITS = 3
ROWS = 9


@cache
def network() -> ResidualExits:
    torch.manual_seed(3)
    found = ResidualExits(stem=4, widths=(4, 6, 8), depths=(1, 1, 2), strides=(2, 2, 1), grid=2, classes=5)
    for module in found.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return found.eval()


def images(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(rows, 16, 16), dtype=np.uint8)


def stages(device: FakeDevice | None = None, **how) -> list[TorchStage]:
    """One for each exit, warmed up."""
    found: list[TorchStage] = []
    example = {"image": images(1)}
    takes = None
    for index in range(EXITS):
        names = ["image"] if takes is None else list(takes)
        after = index - 1 if index else None
        segment = Segment(network(), index, after=after, takes=names, leaves=index < EXITS - 1)
        stage = TorchStage(segment, names, device=device, state_dtypes=takes, execution=Execution(max_rows=4), **how)
        stage.warm_up(example, [1, 4])
        example, takes = stage.run(example).state or {}, stage.state_dtypes
        found.append(stage)
    return found


def whole() -> np.ndarray:
    """Logits [rows, exits, classes] of all exits in one pass."""
    with torch.inference_mode():
        return network()(torch.from_numpy(images())).numpy()


@cache
def cpu() -> list[TorchStage]:
    return stages()


@cache
def gpu() -> list[TorchStage]:
    return stages(FakeDevice(seed=1))


def cut(rows: int, sizes: list[int]) -> list[slice]:
    """Batches of these sizes, and one of what is left."""
    parts, start = [], 0
    for size in sizes:
        if start < rows:
            parts.append(slice(start, min(rows, start + size)))
            start += size
    return [*parts, slice(start, rows)] if start < rows else parts


SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=6)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(ROWS)), leaving=st.sets(st.integers(0, ROWS - 1), max_size=6), sizes=SIZES)
@pytest.mark.parametrize("found", [cpu, gpu], ids=["cpu", "gpu"])
def test_rows_that_travel_are_answered_as_in_one_pass_however_they_are_batched(found, order, leaving, sizes):
    going = list(range(ROWS))
    kept: dict[int, Kept] = {}
    for index, stage in enumerate(found()):
        for part in cut(len(going), sizes):
            rows = going[part]
            inputs = gather_states([kept[row] for row in rows]) if index else {"image": images()[rows]}
            result = stage.run(inputs)
            np.testing.assert_allclose(result.logits, whole()[rows, index], rtol=1e-4, atol=1e-5)
            assert (result.state is None) == (index == EXITS - 1)
            for place, row in enumerate(rows):
                kept[row] = Kept(index, result.state or {}, place)
        going = [row for row in order if row in going and row not in leaving]


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(ROWS)), sizes=SIZES)
@pytest.mark.parametrize("found", [cpu, gpu], ids=["cpu", "gpu"])
def test_rows_that_are_kept_are_answered_as_in_one_pass_however_they_are_batched(found, order, sizes):
    going, state = list(range(ROWS)), None
    for index, stage in enumerate(found()):
        parts = []
        for part in cut(len(going), sizes):
            inputs = {"image": images()[going[part]]} if state is None else rows_of(state, part)
            result = stage.run(inputs, keep=True)
            np.testing.assert_allclose(result.logits, whole()[going[part], index], rtol=1e-4, atol=1e-5)
            assert result.state is None
            parts.append(result.kept)
        if index < EXITS - 1:
            state = rows_of(joined(parts), torch.tensor(order))
            going = [going[place] for place in order]


def test_several_batches_of_several_segments_are_under_way_on_one_device_at_a_time():
    first, second, _ = gpu()
    kept = first.run({"image": images(4)}, keep=True).kept
    waits = [second.begin(rows_of(kept, slice(k, k + 2)), keep=True) for k in (0, 2)]
    waits.append(first.begin({"image": images(3)}, keep=True))
    results = [wait() for wait in waits]
    np.testing.assert_allclose(np.concatenate([r.logits for r in results[:2]]), whole()[:4, 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[2].logits, whole()[:3, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", [None, FakeDevice()], ids=["cpu", "gpu"])
@pytest.mark.parametrize("cast_weights", [False, True])
def test_a_state_in_half_precision_travels_without_a_loss(device, cast_weights):
    execution = Execution(cast_weights=cast_weights, max_rows=4, graphs=False)
    own = copy.deepcopy(network())  # its weights may be rounded
    example, takes = {"image": images(3)}, None
    logits, kept_logits, kept = [], [], None
    for index in range(2):
        names = ["image"] if takes is None else list(takes)
        segment = Segment(own, index, after=index - 1 if index else None, takes=names, leaves=True)
        stage = TorchStage(segment, names, device=device, precision="bfloat16", execution=execution, state_dtypes=takes)
        result: StageResult = stage.run(example)
        again = stage.run(example if kept is None else kept, keep=True)
        logits.append(result.logits)
        kept_logits.append(again.logits)
        assert {array.dtype for array in result.state.values()} == {np.dtype(np.float32)}
        assert set(stage.state_dtypes.values()) == {torch.bfloat16}
        example, takes, kept = result.state, stage.state_dtypes, again.kept
    np.testing.assert_array_equal(logits, kept_logits)


@pytest.mark.parametrize(("after", "last"), [(None, 3), (1, 1), (2, 1), (None, -1)])
def test_an_exit_that_is_not_there_or_not_behind_the_one_before_is_refused(after, last):
    with pytest.raises(ValueError, match=r"no exit .* the exits 0 to 2"):
        Segment(network(), last, after=after)


def test_a_segment_may_pass_an_exit_whose_answer_nobody_asks_for():
    first = TorchStage(Segment(network(), 0, leaves=True), ["image"])
    last = TorchStage(
        Segment(network(), 2, after=0, takes=["features"]), ["features"], state_dtypes={"features": torch.float32}
    )
    result = last.run(first.run({"image": images()}).state)
    np.testing.assert_allclose(result.logits, whole()[:, 2], rtol=1e-4, atol=1e-5)
    assert result.state is None


def test_a_part_of_a_batch_has_its_part_of_the_state():
    result = cpu()[0].run({"image": images(4)})
    part = result.part(slice(1, 3))
    np.testing.assert_array_equal(part.state["features"], result.state["features"][1:3])
    assert part.run_s == pytest.approx(result.run_s / 2)
