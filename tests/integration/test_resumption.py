"""Clients that connect again: they resume their sessions where the server still has them, and lose nothing else."""

from __future__ import annotations

import re

import psutil
import pytest

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.test_network import Network
from tests.integration.users import says
from tests.netsim.proxy import Conditions
from tests.waiting import until

pytestmark = pytest.mark.engines("native", "aioquic")


def handshakes(daemon: Daemon, line: str) -> list[str]:
    """How the connections came about that the lines with ``line`` speak of, in their order."""
    lines = [text for text in daemon.log.splitlines() if line in text]
    return [re.findall(r'handshake="?(full|resumed early|resumed)', text)[0] for text in lines]


def counter(server: Daemon, name: str) -> int:
    return sum(row.get("endpoint", {}).get(name, 0) for row in server.workers())


def failures(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log.splitlines() if re.search("ERROR|CRITICAL|Traceback", line)]


def test_a_client_that_registers_again_resumes(deployment: Deployment) -> None:
    """The server asks for it: its clients must hear of another keep-alive."""
    port = free_port()
    services = {"web": f'bind = "127.0.0.1:{port}"'}
    with Service(named("x")) as service:
        server = deployment.server(services)
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        assert handshakes(server, "client registered") == ["full", "full"]
        changed = deployment.server_text(services, quic='keep_alive = "7s"')
        deployment.write("server.toml", changed)
        assert server.reload()["ok"]
        until(lambda: handshakes(server, "client registered")[2:] == ["resumed early"] * 2, "both lanes resumed")
        until(lambda: counter(server, "handshakes_resumed") == 2, "counted")
        assert counter(server, "tickets_refused") == 0
        assert says(port) == "x"
        assert failures(server) + failures(client) == []


@pytest.mark.engines("auto", extended=("aioquic",))
def test_a_client_that_was_cut_off_resumes(deployment: Deployment) -> None:
    """The first try begins in the dark, and goes on when there is light again."""
    port = free_port()
    services = {"web": f'bind = "127.0.0.1:{port}"'}
    with Service(named("x")) as service, Network(deployment.quic_port, Conditions()) as network:
        # The server still knows its connections then. Where it does not, its resets may end the old ones before the try
        # is through: all is lost, the client begins anew, and its tickets are spent.
        quic = 'idle_timeout = "20s"\nkeep_alive = "1s"'
        server = deployment.server(services, quic=quic)
        servers = ["{}:{}".format(*network.address)]
        client = deployment.client("pod-1", {"web": service.target}, servers=servers)
        server.until_clients(1, connections=2)
        network.blackhole(True)
        until(lambda: "does not answer" in client.log, "the client is cut off")
        network.blackhole(False)
        until(lambda: "resumed early" in handshakes(server, "client registered"), "resumed", 30)
        until(lambda: says(port, 2) == "x", "served again")
        assert failures(server) + failures(client) == []


@pytest.mark.engines("auto", extended=("aioquic",))
def test_a_new_worker_or_server_knows_no_session(deployment: Deployment) -> None:
    """The client offers its tickets, and registers early; a full handshake follows, and the registration again."""
    port = free_port()
    services = {"web": f'bind = "127.0.0.1:{port}"'}
    with Service(named("x")) as service:
        server = deployment.server(services)
        client = deployment.client("pod-1", {"web": service.target})
        server.until_clients(1, connections=2)
        victim = server.workers()[0]
        psutil.Process(victim["pid"]).kill()
        until(lambda: handshakes(server, "client registered") == ["full"] * 3, "registered at the successor")
        until(lambda: counter(server, "tickets_refused") >= 1, "the ticket of the dead worker came")
        server.until_clients(1, connections=2)
        server.stop()
        server = deployment.server(services)
        server.until_clients(1, connections=2)
        assert set(handshakes(server, "client registered")) == {"full"}
        until(lambda: says(port, 2) == "x", "served by the new server")
        assert failures(client) == []
