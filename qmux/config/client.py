"""A document as a ClientConfig: ``[client]``, ``[services.NAME]``, ``[log]``."""

from __future__ import annotations

import functools
import socket

from qmux.config.addresses import check_host, parse_server, parse_target
from qmux.config.document import Document
from qmux.config.process import PROCESS_KEYS, check_later_tables, read_log, read_process
from qmux.config.schema import ClientConfig, ClientServiceConfig, Target
from qmux.config.section import Names, Section
from qmux.config.server import SERVER_KEYS, SERVICE_KEYS
from qmux.config.services import service_names

TABLES = Names(
    ("client", "tls", "services", "admin", "log"), (), ("server", "quic", "defaults", "authorization"), "server"
)
CLIENT_KEYS = Names(
    (
        *PROCESS_KEYS, "servers", "server_name", "instance", "weight", "backup", "resolve_interval",
        "connect_timeout", "reconnect_max",
    ),
    ("zone",),
    tuple(key for key in (*SERVER_KEYS.known, *SERVER_KEYS.later) if key not in PROCESS_KEYS),
    "server",
)  # fmt: skip
CLIENT_SERVICE_KEYS = Names(
    ("target", "connect_timeout", "weight", "backup"),
    ("send_proxy", "health"),
    (*SERVICE_KEYS.known, *SERVICE_KEYS.later),
    "server",
)

MAX_SERVERS = 64
"""Addresses in ``servers``: each costs a connection for each of its workers."""

MAX_WEIGHT = 256
MAX_INSTANCE = 128
"""Of what ``Register`` carries (``qmux.protocol.values``)."""

MAX_CONNECT_S = 300.0


def read_client(document: Document) -> ClientConfig:
    """The whole client configuration; what is wrong is recorded in the document's problems."""
    Section(document, ()).check_names(TABLES)
    if "client" not in document.tree:
        document.add_name(("client",), "the table is missing; write [client] with servers = and bundle = FILE")
    section = Section(document, ("client",))
    section.check_names(CLIENT_KEYS)
    servers = tuple(dict.fromkeys(server for _, server in section.each("servers", parse_server)))
    if section.exists and not section.has("servers"):
        section.add_missing("servers", 'missing; where is the server? as in servers = ["tunnel.example.com:8443"]')
    elif len(servers) > MAX_SERVERS:
        section.add("servers", f"{len(servers)} servers; at most {MAX_SERVERS}")
    check_later_tables(document)
    return ClientConfig(
        source=str(document.source_path),
        process=read_process(document, section, 1),
        servers=servers,
        services=_read_services(document, section),
        server_name=section.parsed("server_name", check_host) or "",
        instance=_instance(section),
        resolve_interval_s=section.duration("resolve_interval", 30.0, 1.0, 86_400.0),
        connect_timeout_s=section.duration("connect_timeout", 3.0, 0.1, MAX_CONNECT_S),
        reconnect_max_s=section.duration("reconnect_max", 15.0, 0.1, 3600.0),
        log=read_log(document),
    )


def _read_services(document: Document, client: Section) -> dict[str, ClientServiceConfig]:
    weight, backup = client.number("weight", 1, 1, MAX_WEIGHT), client.flag("backup", False)
    parse = functools.partial(parse_target, base=document.base)
    services = {}
    for name in service_names(document, 'target = "127.0.0.1:3000"'):
        section = Section(document, ("services", name))
        section.check_names(CLIENT_SERVICE_KEYS)
        if not section.has("target") and not section.has_tables():
            section.add_missing("target", 'missing; where is the service? as in target = "127.0.0.1:3000"')
        services[name] = ClientServiceConfig(
            name=name,
            target=section.parsed("target", parse) or Target(),
            connect_timeout_s=section.duration("connect_timeout", 5.0, 0.1, MAX_CONNECT_S),
            weight=section.number("weight", weight, 1, MAX_WEIGHT),
            backup=section.flag("backup", backup),
        )
    return services


def _instance(section: Section) -> str:
    """How this client is called in the server's status: the host name, if nothing else is said."""
    name = section.text("instance", socket.gethostname()[:MAX_INSTANCE])
    if len(name) > MAX_INSTANCE:
        section.add("instance", f"{len(name)} characters; at most {MAX_INSTANCE}")
    return name
