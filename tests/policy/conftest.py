"""What every test of the policy floor shares: no sockets, one fixed hypothesis profile. Knows no Ray and no torch."""

import pytest
from hypothesis import settings
from pytest_socket import disable_socket, enable_socket

settings.register_profile("policy", deadline=None, derandomize=True, database=None)
settings.load_profile("policy")


@pytest.fixture(autouse=True)
def no_sockets():
    """A pure floor opens no socket; a test that does is wrong. (The socket pair that pytest-asyncio opens is its own.)"""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
