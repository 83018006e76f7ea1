"""The configuration may not promise what the protocol cannot carry; the layers forbid importing its limits there."""

from __future__ import annotations

import socket

import pytest

from qmux.config import addresses, client, schema, services
from qmux.protocol import values


def test_limits_are_those_of_the_protocol() -> None:
    assert services.MAX_SERVICES <= values.MAX_SERVICES
    assert schema.MAX_WEIGHT <= values.MAX_WEIGHT
    assert client.MAX_INSTANCE <= values.MAX_NAME
    assert schema.MAX_LANES <= values.MAX_LANES_TOLD
    assert schema.MAX_STREAMS <= 1 << 20
    assert schema.MAX_TIMEOUT_S * 1000 <= values.MAX_DURATION_MS
    assert schema.MAX_QUIC_IDLE_S * 1000 <= values.MAX_DURATION_MS


def test_the_longest_unix_path_is_what_the_kernel_takes() -> None:
    for length, fits in ((addresses.MAX_UNIX_PATH_BYTES, True), (addresses.MAX_UNIX_PATH_BYTES + 1, False)):
        path = "/tmp/" + "x" * (length - len("/tmp/"))
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match=r"too long|No such file") as caught:
            sock.connect(path)
        assert ("too long" not in str(caught.value)) is fits
