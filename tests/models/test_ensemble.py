"""A committee says the mean of what its members say, and is one network to everything else."""

import pytest
import torch

from cascade.errors import ConfigError
from cascade.models.ensemble import Committee, joined
from cascade.models.networks import PooledLinear, StridedCNN

LINEAR = {"factory": "cascade.models.networks:PooledLinear", "args": {"pool": 4}}
CNN = {"factory": "cascade.models.networks:StridedCNN", "args": {"widths": [4], "kernels": [3], "strides": [4]}}


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_its_probabilities_are_the_mean_of_its_members():
    committee = Committee([LINEAR, CNN | {"temperature": 2.0}]).eval()
    rows = images(6)
    with torch.inference_mode():
        one, two = (member(rows) for member in committee.members)
        expected = (torch.softmax(one, 1) + torch.softmax(two / 2.0, 1)) / 2
        torch.testing.assert_close(torch.softmax(committee(rows), 1), expected)
        torch.testing.assert_close(committee(rows).exp(), expected)


def test_members_that_are_all_sure_leave_finite_logits():
    class Sure(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[500.0, 0.0]]).repeat(len(x), 1)

    committee = Committee([LINEAR, LINEAR])
    committee.members = torch.nn.ModuleList([Sure(), Sure()])
    assert torch.isfinite(committee(images(2))).all()


def test_its_weights_are_those_of_its_members_joined():
    torch.manual_seed(0)
    members = [PooledLinear(pool=4).eval(), StridedCNN([4], [3], [4]).eval()]
    committee = Committee([LINEAR, CNN]).eval()
    committee.load_state_dict(joined(member.state_dict() for member in members), strict=True)
    with torch.inference_mode():
        for member, expected in zip(committee.members, members, strict=True):
            torch.testing.assert_close(member(images(3)), expected(images(3)))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([LINEAR], "at least two members, got 1"),
        ([LINEAR, {"args": {}}], r"members\.1: expected factory"),
        ([LINEAR, LINEAR | {"weights": "x"}], r"members\.1: expected factory, args and temperature"),
        ([LINEAR, LINEAR | {"temperature": 0}], r"members\.1\.temperature"),
    ],
)
def test_a_member_that_is_none_is_named(members, named):
    with pytest.raises(ConfigError, match=named):
        Committee(members)
