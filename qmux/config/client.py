"""A document as a ClientConfig: ``[client]``, ``[services.NAME]``, ``[log]``."""

from __future__ import annotations

import functools
import socket
from collections.abc import Sequence

from qmux.config.addresses import AddressError, certified_name, parse_server, parse_server_name, parse_target
from qmux.config.document import Document
from qmux.config.keys import names_of
from qmux.config.process import PROCESS_KEYS, check_later_tables, read_log, read_process
from qmux.config.scanner import KeyPath
from qmux.config.schema import ClientConfig, ClientServiceConfig, ServerAddress, Target
from qmux.config.section import Names, Section
from qmux.config.server import SERVER_KEYS, SERVICE_KEYS
from qmux.config.services import service_names
from qmux.paths import text_of

TABLES = Names(
    ("client", "tls", "services", "admin", "log"), (), ("server", "quic", "defaults", "authorization"), "server"
)
CLIENT_KEYS = Names(
    (
        *PROCESS_KEYS,
        *names_of(ClientConfig, "process", "services", "log"),
        *names_of(ClientServiceConfig, "target", "connect_timeout_s"),
    ),
    ("zone",),
    tuple(key for key in (*SERVER_KEYS.known, *SERVER_KEYS.later) if key not in PROCESS_KEYS),
    "server",
)
CLIENT_SERVICE_KEYS = Names(
    names_of(ClientServiceConfig),
    ("send_proxy", "health"),
    (*SERVICE_KEYS.known, *SERVICE_KEYS.later),
    "server",
)

MAX_SERVERS = 64
"""Addresses in ``servers``: each costs a connection for each of its workers."""

MAX_INSTANCE = 128
"""Of what ``Register`` carries (``qmux.protocol.values``)."""


def read_client(document: Document) -> ClientConfig:
    """The whole client configuration; what is wrong is recorded in the document's problems."""
    Section(document, ()).check_names(TABLES)
    if "client" not in document.tree:
        document.add_name(("client",), "the table is missing; write [client] with servers = and bundle = FILE")
    section = Section(document, ("client",))
    section.check_names(CLIENT_KEYS)
    found = section.each("servers", parse_server)
    servers = tuple(dict.fromkeys(server for _, server in found))
    if section.exists and not section.has("servers"):
        section.add_missing("servers", 'missing; where is the server? as in servers = ["tunnel.example.com:8443"]')
    elif len(servers) > MAX_SERVERS:
        section.add("servers", f"{len(servers)} servers; at most {MAX_SERVERS}")
    if not section.has("server_name"):
        _check_names(document, found)
    check_later_tables(document)
    return ClientConfig(
        source=text_of(document.source_path),
        process=read_process(document, section, 1),
        servers=servers,
        services=_read_services(document, section),
        server_name=section.parsed("server_name", parse_server_name) or "",
        instance=_instance(section),
        **section.read(ClientConfig),
        log=read_log(document),
    )


def _check_names(document: Document, servers: Sequence[tuple[KeyPath, ServerAddress]]) -> None:
    """Record the servers that no certificate can be for."""
    for path, server in servers:
        try:
            certified_name(server)
        except AddressError as error:
            document.add(path, str(error))


def _read_services(document: Document, client: Section) -> dict[str, ClientServiceConfig]:
    shared = client.read(ClientServiceConfig)  # ``weight`` and ``backup`` of [client] are the services' defaults
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
            **section.read(ClientServiceConfig, weight=shared["weight"], backup=shared["backup"]),
        )
    return services


def _instance(section: Section) -> str:
    """How this client is called in the server's status: the host name, if nothing else is said."""
    name = section.text("instance", socket.gethostname()[:MAX_INSTANCE])
    if len(name) > MAX_INSTANCE:
        section.add("instance", f"{len(name)} characters; at most {MAX_INSTANCE}")
    return name
