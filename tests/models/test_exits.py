"""Networks with exits: resumed in any batches they answer as in one pass."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade.models.exits import BlockExits, ExitNetwork, State, joined, rows_of


class Tower(BlockExits):
    """Four linear blocks, exits behind the first, the third and the last."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Linear(3, 8),
            [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)],
            {3: nn.Linear(8, 5), 1: nn.Linear(8, 5), 4: nn.Linear(8, 5)},
        )


class Running(ExitNetwork):
    """Works on rows of different lengths: ``lengths`` says how much of ``tokens`` is a row's own."""

    @property
    def exits(self) -> int:
        return 2

    def embed(self, *inputs: Tensor) -> State:
        (tokens,) = inputs
        lengths = (tokens != 0).sum(dim=1)
        return {"tokens": tokens[:, : int(lengths.max())].float(), "lengths": lengths}

    def segment(self, index: int, state: State) -> tuple[State, Tensor]:
        tokens, lengths = state["tokens"], state["lengths"]
        own = torch.arange(tokens.shape[1]) < lengths[:, None]
        tokens = torch.where(own, tokens + 1.0, 7.0)  # what lies beyond a row's length is not kept clean
        total = torch.where(own, tokens, 0.0).sum(dim=1)
        return {"tokens": tokens, "lengths": lengths}, torch.stack([total, lengths * (index + 1.0)], dim=1)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(9)), st.lists(st.integers(1, 8), max_size=3), st.lists(st.integers(1, 8), max_size=3))
def test_resumed_in_any_batches_and_order_a_network_answers_as_in_one_pass(
    order: list[int], first_cuts: list[int], second_cuts: list[int]
) -> None:
    network = Tower().eval()
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = network(inputs)
        state = network.embed(inputs)
        places = torch.arange(9)
        got = torch.empty_like(whole)
        for index, cuts in enumerate((first_cuts, second_cuts, first_cuts)):
            bounds = sorted({0, 9, *cuts})
            parts = []
            for start, stop in pairwise(bounds):
                after, logits = network.segment(index, rows_of(state, slice(start, stop)))
                got[places[start:stop], index] = logits
                parts.append(after)
            state = rows_of(joined(parts), torch.tensor(order))
            places = places[torch.tensor(order)]
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-6)


def test_rows_of_different_lengths_are_joined_with_zeros_behind_the_short_ones() -> None:
    network = Running()
    short, long = torch.tensor([[4, 5, 0, 0, 0]]), torch.tensor([[1, 2, 3, 4, 0]])
    parts = [network.segment(0, network.embed(rows))[0] for rows in (short, long)]
    assert [part["tokens"].shape[1] for part in parts] == [2, 4]
    together = joined(parts)
    assert together["tokens"].tolist() == [[5.0, 6.0, 0.0, 0.0], [2.0, 3.0, 4.0, 5.0]]
    _, logits = network.segment(1, together)
    torch.testing.assert_close(logits, network(torch.cat([short, long]))[:, 1])


def test_rows_leave_a_state_and_the_others_stay_as_they_were() -> None:
    state = {"features": torch.arange(12.0).reshape(4, 3), "lengths": torch.tensor([1, 2, 3, 4])}
    kept = rows_of(state, torch.tensor([3, 1]))
    assert kept["features"].tolist() == [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]
    assert kept["lengths"].tolist() == [4, 2]


@pytest.mark.parametrize("places", [(), (1,), (1, 5), (-1, 4)])
def test_heads_that_stand_nowhere_or_leave_the_last_block_out_are_refused(places: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="heads must stand behind 0 to 4 blocks"):
        BlockExits(nn.Identity(), [nn.Identity() for _ in range(4)], {place: nn.Identity() for place in places})
