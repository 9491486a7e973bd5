"""Training: the same bits from the same seed, in one go or in two; what is frozen rests; what is wrong is said."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from exit_cases import adapter, blocks
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from cascade.errors import ConfigError
from cascade.models.checkpoints import CheckpointFolder, Provenance, load_start, write_weights
from cascade.models.exit_losses import DistillationLoss, EquilibriumLoss, JointLoss
from cascade.models.frozen import frozen_digest, trained_state
from cascade.models.stage import load_weights
from cascade.models.training import TensorRows, accuracies, seeded, train
from cascade.models.training_options import TrainingOptions


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on busy cores make a tiny step take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OPTIONS = TrainingOptions(epochs=4, batch_size=16, lr=0.01)


def rows(count=120, seed=0, **more):
    """Four classes that a straight line can tell apart, nearly."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorRows([x], (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long(), **more)


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def provenance(network, options=OPTIONS, objective=None):
    return Provenance(
        options=options.model_dump(mode="json"),
        objective=(objective or JointLoss()).description,
        network={"factory": "exit_cases:blocks"},
        data=rows().digest(),
        frozen=frozen_digest(network),
    )


@pytest.mark.parametrize(
    "objective", [JointLoss(), DistillationLoss(0.5, 2.0), EquilibriumLoss()], ids=lambda o: type(o).__name__
)
def test_every_loss_trains_every_exit(objective):
    network = blocks()
    before = accuracies(network, rows())
    done = train(network, rows(400), objective, OPTIONS.model_copy(update={"epochs": 12}), held_out=rows(200, 1))
    assert [epoch.number for epoch in done] == list(range(1, 13))
    assert done[-1].loss < done[0].loss
    assert min(done[-1].accuracy) > 0.85 > max(before)
    assert not network.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    made = []
    for seed in (5, 5, 6):
        network = blocks(dropout=0.3)
        train(network, rows(), JointLoss(), OPTIONS.model_copy(update={"seed": seed}))
        made.append(state(network))
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_training_does_not_throw_the_dice_of_others():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(blocks(dropout=0.5), rows(), JointLoss(), OPTIONS)
    assert torch.equal(torch.rand(3), expected)


def test_epochs_have_dice_of_their_own():
    draws = []
    for epoch in (1, 1, 2):
        with seeded(3, epoch) as dice:
            draws.append((torch.rand(2).tolist(), torch.rand(2, generator=dice).tolist()))
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_that_was_put_down_ends_on_the_same_bits(tmp_path, optimizer):
    options = OPTIONS.model_copy(update={"optimizer": optimizer})
    whole = blocks(dropout=0.3)
    history = train(whole, rows(), JointLoss(), options, held_out=rows(50, 1))

    class Killed(Exception):
        pass

    def kill(epoch):
        if epoch.number == 2:
            raise Killed

    first = blocks(dropout=0.3)
    origin = provenance(first, options)
    with pytest.raises(Killed):
        train(
            first,
            rows(),
            JointLoss(),
            options,
            held_out=rows(50, 1),
            checkpoints=CheckpointFolder(tmp_path, origin, resume=True),  # of nothing: it begins
            epoch_done=kill,
        )
    second = blocks(seed=9, dropout=0.3)  # other weights, which the checkpoint replaces
    steps = []
    resumed = train(
        second,
        rows(),
        JointLoss(),
        options,
        held_out=rows(50, 1),
        checkpoints=CheckpointFolder(tmp_path, origin, resume=True),
        step_done=lambda done, total: steps.append((done, total)),
    )
    assert same(state(second), state(whole))
    assert [(epoch.number, epoch.loss, epoch.accuracy) for epoch in resumed] == [
        (epoch.number, epoch.loss, epoch.accuracy) for epoch in history
    ]
    assert steps[0] == (16, 32)
    assert steps[-1] == (32, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "epoch-4.safetensors"]


def test_a_finished_run_is_not_trained_further(tmp_path):
    network = blocks()
    origin = provenance(network)
    train(network, rows(), JointLoss(), OPTIONS, checkpoints=CheckpointFolder(tmp_path, origin, resume=False))
    again = blocks(seed=1)
    train(again, rows(), JointLoss(), OPTIONS, checkpoints=CheckpointFolder(tmp_path, origin, resume=True))
    assert same(state(again), state(network))


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path):
    network = blocks()
    folder = CheckpointFolder(tmp_path, provenance(network), resume=False)
    train(network, rows(), JointLoss(), OPTIONS.model_copy(update={"epochs": 1}), checkpoints=folder)
    with pytest.raises(ConfigError, match="resume it"):
        CheckpointFolder(tmp_path, provenance(network), resume=False)
    other = provenance(network, OPTIONS.model_copy(update={"lr": 0.5}), DistillationLoss(0.5, 2.0))
    with pytest.raises(ConfigError, match="other lr, loss, share, temperature;"):
        train(network, rows(), JointLoss(), OPTIONS, checkpoints=CheckpointFolder(tmp_path, other, resume=True))


@pytest.mark.parametrize("damage", ["index", "tensors", "missing"])
def test_a_broken_checkpoint_is_said_to_be_one(tmp_path, damage):
    network = blocks()
    origin, options = provenance(network), OPTIONS.model_copy(update={"epochs": 1})
    train(network, rows(), JointLoss(), options, checkpoints=CheckpointFolder(tmp_path, origin, resume=False))
    tensors = tmp_path / "epoch-1.safetensors"
    if damage == "index":
        (tmp_path / "checkpoint.json").write_text("{}")
    elif damage == "tensors":
        tensors.write_bytes(tensors.read_bytes()[:40])
    else:
        tensors.unlink()
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        train(network, rows(), JointLoss(), options, checkpoints=CheckpointFolder(tmp_path, origin, resume=True))


def test_a_checkpoint_holds_plain_values_and_tensors_only(tmp_path):
    network = blocks()
    folder = CheckpointFolder(tmp_path, provenance(network), resume=False)
    train(network, rows(), JointLoss(), OPTIONS, checkpoints=folder)
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    tensors = load_file(tmp_path / index["tensors"])
    assert {name.split("/")[0] for name in tensors} == {"network", "optimizer"}
    assert "optimizer/heads.0.weight/exp_avg" in tensors
    assert index["provenance"]["data"] == rows().digest()


class TestFrozen:
    def test_what_is_frozen_rests_with_its_running_means(self):
        network = adapter()
        before = state(network)
        train(network, rows(), JointLoss(), OPTIONS)
        after = state(network)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == set(trained_state(network))
        assert "blocks.0.2.running_mean" not in moved
        assert {"blocks.1.2.running_mean", "heads.0.weight"} <= moved

    def test_weights_leave_out_what_was_frozen_and_load_all_the_same(self, tmp_path):
        network = adapter()
        train(network, rows(), JointLoss(), OPTIONS)
        write_weights(network, tmp_path / "adapter.safetensors")
        assert not any(name.startswith("stem") for name in load_file(tmp_path / "adapter.safetensors"))
        assert same(state(load_weights(adapter(), tmp_path / "adapter.safetensors")), state(network))
        write_weights(network, tmp_path / "all.safetensors", frozen=True)
        assert load_file(tmp_path / "all.safetensors").keys() == network.state_dict().keys()
        assert same(state(load_weights(adapter(), tmp_path / "all.safetensors")), state(network))

    def test_a_trained_tensor_must_not_be_missing(self, tmp_path):
        network = adapter()
        write_weights(network, tmp_path / "adapter.safetensors")
        with pytest.raises(ConfigError, match=r"stem\.weight"):
            load_weights(blocks(2), tmp_path / "adapter.safetensors")

    def test_another_trunk_is_noticed(self):
        one, other = adapter(), adapter()
        assert frozen_digest(one) == frozen_digest(other) != ""
        with torch.no_grad():
            other.stem.weight[0, 0] += 1e-3
        assert frozen_digest(one) != frozen_digest(other)
        assert frozen_digest(blocks()) == ""

    def test_of_an_unfrozen_network_everything_is_trained_shared_tensors_too(self):
        network = blocks()
        network.heads[1] = network.heads[0]  # and yet both names stand in the file
        assert trained_state(network).keys() == network.state_dict().keys()

    def test_nothing_to_train_is_an_error(self):
        with pytest.raises(ConfigError, match="nothing to train"):
            train(blocks().requires_grad_(False), rows(), JointLoss(), OPTIONS)


def test_half_precision_weights_are_within_its_rounding(tmp_path):
    network = blocks()
    digest = write_weights(network, tmp_path / "half.safetensors", precision="float16")
    found = load_file(tmp_path / "half.safetensors")
    assert found["stem.weight"].dtype == torch.float16
    assert found["blocks.0.2.num_batches_tracked"].dtype == torch.int64
    back = load_weights(blocks(seed=3), tmp_path / "half.safetensors")
    assert torch.equal(back.stem.weight, network.stem.weight.half().float())
    assert load_start(blocks(), tmp_path / "half.safetensors") == digest


def test_a_weight_that_is_not_finite_is_not_written(tmp_path):
    network = blocks()
    with torch.no_grad():
        network.stem.weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match=r"stem\.weight.*float16"):
        write_weights(network, tmp_path / "w.safetensors", precision="float16")
    assert not (tmp_path / "w.safetensors").exists()


class TestRows:
    @given(st.integers(2, 60), st.floats(0, 0.9), st.integers(0, 99))
    def test_a_split_divides_the_rows(self, count, share, seed):
        whole = TensorRows([torch.arange(count)], torch.arange(count))
        held = round(share * count)
        if held >= count:
            return
        kept, out = whole.split(share, seed)
        parts = [part.batch(torch.arange(len(part)), None)[1].tolist() for part in (kept, out) if part is not None]
        assert sorted(chain(*parts)) == list(range(count))
        assert (0 if out is None else len(out)) == held
        again, _ = whole.split(share, seed)
        assert again.batch(torch.arange(len(again)), None)[1].tolist() == parts[0]

    def test_bytes_stay_numpy_objects(self):
        texts = np.array([b"a", b"bc", b"def"], dtype=object)
        inputs, labels = TensorRows([texts], np.array([0, 1, 0])).batch(torch.tensor([2, 0]), None)
        assert inputs[0].tolist() == [b"def", b"a"]
        assert labels.tolist() == [0, 0]

    def test_the_digest_tells_rows_apart(self):
        texts = TensorRows([np.array([b"ab", b"c"], dtype=object)], np.array([0, 1]))
        digests = {
            rows().digest(),
            rows(seed=1).digest(),
            texts.digest(),
            TensorRows([np.array([b"a", b"bc"], dtype=object)], np.array([0, 1])).digest(),
            TensorRows([np.array([b"ab", b"c"], dtype=object)], np.array([1, 1])).digest(),
        }
        assert len(digests) == 5
        assert rows().digest() == rows().digest()

    def test_dice_are_there_in_training_only(self):
        seen = []

        def noisy(inputs, dice):
            seen.append(dice is not None)
            return inputs

        train(blocks(), rows(20, collate=noisy), JointLoss(), TrainingOptions(epochs=1), held_out=rows(20, collate=noisy))
        assert True in seen
        assert seen[0] is seen[-1] is False

    @pytest.mark.parametrize(("inputs", "labels"), [([], [0]), ([torch.ones(2)], [0]), ([torch.ones(0)], [])])
    def test_rows_must_be_there_and_as_many(self, inputs, labels):
        with pytest.raises(ConfigError, match="same rows"):
            TensorRows(inputs, np.array(labels, dtype=np.int64))


def test_every_row_is_seen_once_an_epoch_in_steps_of_one_size():
    seen = []

    class Noting(TensorRows):
        def batch(self, places, dice):
            if dice is not None:
                seen.append(places.tolist())
            return super().batch(places, dice)

    x = torch.randn(33, 3)
    train(blocks(), Noting([x], torch.zeros(33)), JointLoss(), TrainingOptions(epochs=1, batch_size=16))
    assert sorted(chain(*seen)) == list(range(33))
    assert [len(places) for places in seen] == [11, 11, 11]


def test_the_learning_rate_rises_and_falls():
    options = TrainingOptions(lr=2.0, warm_up=0.1)
    at = [options.learning_rate(share) for share in (0.05, 0.1, 0.55, 1.0)]
    assert at == pytest.approx([1.0, 2.0, 1.0, 0.0])
    assert TrainingOptions(lr=2.0, warm_up=0.0, schedule="constant").learning_rate(1.0) == 2.0


class Broken(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.linear(x))


def explode(_):
    raise KeyError("pos")


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Broken(explode), "cannot be run on the rows: 'pos'"),
        (Broken(lambda y: y[:, :, None, None]), r"must return logits .* got \[2, 2, 1, 1\]"),
        (Broken(lambda y: [y]), "must return logits .* got list"),
        (Broken(lambda y: y[:, None]), r"labels must lie in 0\.\.1"),
        (Broken(lambda y: torch.stack([y, y * float("nan")], 1).repeat(1, 1, 2)), "not finite in epoch 1"),
        (Broken(lambda y: y.repeat(1, 2)), r"rows, exits, classes\], got \[16, 4\]"),
    ],
    ids=["raises", "four dimensions", "no tensor", "too few classes", "not finite", "no exits"],
)
def test_a_network_that_cannot_be_trained_is_refused(network, named):
    with pytest.raises(ConfigError, match=named):
        train(network, rows(32), JointLoss(), OPTIONS.model_copy(update={"epochs": 1}))
