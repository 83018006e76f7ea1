"""One server behind two addresses: the client serves it through one, and the other one harms nobody."""

from __future__ import annotations

import contextlib
import socket

import msgspec
import pytest

from qmux.messages import TIMINGS_VARIABLE, Timings
from tests.daemons import Deployment, free_port
from tests.integration.services import Service, echo
from tests.integration.users import ask
from tests.waiting import until

LOOK_S = 2.0
PROBES = 8
"""More than the connections that a server lets one session have at one worker."""

TIMINGS = Timings(duplicate_look_s=LOOK_S, stable_s=LOOK_S / 2)


@pytest.mark.engines("auto", extended=())
def test_probing_a_second_address_takes_no_users_and_no_place(deployment: Deployment) -> None:
    """Users with long connections are on every lane, while the second address is looked at again and again.

    Were the second address registered for the session, each look would leave a lane without new users, and in the end
    close the oldest with the users on it.
    """
    port = free_port()
    with Service(echo) as service:
        server = deployment.server({"web": f'bind = "127.0.0.1:{port}"'})
        addresses = [f"127.0.0.1:{deployment.quic_port}", f"localhost:{deployment.quic_port}"]
        deployment.extra_environment[TIMINGS_VARIABLE] = msgspec.json.encode(TIMINGS).decode()
        client = deployment.client("pod-1", {"web": service.target}, servers=addresses)
        server.until_clients(1, connections=2)
        until(lambda: "keeping the first" in client.log, "the second address is told as such")
        with contextlib.ExitStack() as stack:
            users = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(16)]

            def probes() -> int:
                return server.log.count("this server is already connected through another address")

            assert all(_answers(user) for user in users)
            before = probes()
            until(lambda: probes() >= before + PROBES, "the address was looked at often", 60)
            assert all(_answers(user) for user in users)
            with socket.create_connection(("127.0.0.1", port), 30) as newcomer:
                assert _answers(newcomer)
        assert server.status()["services"][0]["refused"] == {}

        def ready() -> list[int]:
            return [each["connections"] for each in server.status()["clients"] if each["state"] == "ready"]

        # A client whom the machine kept from answering is suspect for a moment.
        until(lambda: ready() == [2], "one client with its two connections")


def _answers(user: socket.socket) -> bool:
    user.settimeout(30)
    return ask(user, b"hello") == b"hello"
