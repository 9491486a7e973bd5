"""A port belongs to the routers of one ladder, however many they are, for as long as one of them is there."""

import socket
import sys

import pytest

from cascade.errors import ConfigError
from cascade.serving.address import Address
from cascade.serving.environment import free_port
from cascade.serving.port_claim import PortClaim, claims

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")


@pytest.fixture
def port() -> int:
    return free_port()


async def test_routers_of_one_ladder_share_a_port_and_those_of_another_are_told(port):
    address = Address("127.0.0.1", port)
    first, second, other = PortClaim(address, "fashion"), PortClaim(address, "fashion"), PortClaim(address, "sentiment")
    await first.open()
    await second.open()
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: the routers of ladder 'fashion' do"):
        await other.open()
    assert claims(port) == [("127.0.0.1", "fashion")] * 2  # one that was refused leaves nothing behind
    await first.close()
    with pytest.raises(ConfigError, match="'fashion'"):
        await other.open()
    await second.close()
    await other.open()
    assert claims(port) == [("127.0.0.1", "sentiment")]
    await other.close()
    await other.close()


@pytest.mark.parametrize("wide", ["0.0.0.0", "::"])
async def test_an_address_of_all_hosts_is_that_of_each(port, wide):
    everywhere, here = PortClaim(Address(wide, port), "fashion"), PortClaim(Address("127.0.0.1", port), "sentiment")
    await everywhere.open()
    with pytest.raises(ConfigError, match="'fashion'"):
        await here.open()
    await everywhere.close()
    await here.open()
    with pytest.raises(ConfigError, match="'sentiment'"):
        await everywhere.open()
    await here.close()


async def test_other_ports_and_other_hosts_are_nobodys_business(port):
    mine = [
        PortClaim(Address("127.0.0.1", port), "fashion"),
        PortClaim(Address("127.0.0.2", port), "sentiment"),
        PortClaim(Address("127.0.0.1", free_port()), "sentiment"),
    ]
    for claim in mine:
        await claim.open()
    for claim in mine:
        await claim.close()


async def test_other_sockets_of_the_machine_are_passed_over(port):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(f"\0cascade-port/{port}/odd")
        claim = PortClaim(Address("127.0.0.1", port), "fashion")
        await claim.open()
        await claim.close()
