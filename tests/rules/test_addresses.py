"""Which addresses another machine can reach, by their text."""

import pytest

from globalstore.rules.addresses import is_local_only, routable
from globalstore.rules.refusals import InvalidArgument


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.8.7", "::1", "[::1]", "0.0.0.0", "::", "[::]", "*", "localhost",
        "LocalHost", " ip6-localhost ", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]", "::ffff:0.0.0.0",
        "::1%lo", "0:0:0:0:0:0:0:1",
    ],
)  # fmt: skip
def test_addresses_that_mean_this_machine(address: str) -> None:
    assert is_local_only(address)
    with pytest.raises(InvalidArgument, match="node_address"):
        routable("node_address", address)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "192.168.1.1", "node-7", "localhost.example", "fd00::7", "[fd00::7]", "128.0.0.1"],
)
def test_addresses_that_others_may_reach(address: str) -> None:
    assert routable("node_address", f" {address} ") == address
