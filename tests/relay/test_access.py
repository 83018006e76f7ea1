from __future__ import annotations

import pytest

from qmux.relay.access import AccessList


@pytest.mark.parametrize(
    ("allow", "deny", "host", "permitted"),
    [
        ((), (), "192.0.2.1", True),
        (("192.0.2.0/24",), (), "192.0.2.255", True),
        (("192.0.2.0/24",), (), "192.0.3.0", False),
        ((), ("192.0.2.0/24",), "192.0.2.1", False),
        ((), ("192.0.2.0/24",), "198.51.100.1", True),
        (("192.0.2.0/24",), ("192.0.2.7/32",), "192.0.2.7", False),
        (("192.0.2.0/24",), ("192.0.2.7/32",), "192.0.2.8", True),
        (("192.0.2.7/32",), ("192.0.2.0/24",), "192.0.2.7", False),  # deny wins
        (("192.0.2.0/24", "2001:db8::/32"), (), "2001:db8::1", True),
        (("192.0.2.0/24",), (), "2001:db8::1", False),
        ((), ("0.0.0.0/0",), "2001:db8::1", True),
        (("fe80::/10",), (), "fe80::1%eth0", True),
        (("192.0.2.1",), (), "192.0.2.1", True),  # a single address
        (("192.0.2.1/24",), (), "192.0.2.9", True),  # host bits are not looked at
    ],
)
def test_permits(allow: tuple[str, ...], deny: tuple[str, ...], host: str, permitted: bool) -> None:
    assert AccessList(allow, deny).permits(host) is permitted
