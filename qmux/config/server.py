"""A document as a ServerConfig: ``[server]``, ``[quic]``, ``[defaults]``, ``[services.NAME]``, ``[log]``."""

from __future__ import annotations

from collections.abc import Iterable

from qmux.config.addresses import DEFAULT_SERVER_PORT, parse_bind, parse_network
from qmux.config.document import Document
from qmux.config.keys import names_of
from qmux.config.problems import key_name
from qmux.config.process import PROCESS_KEYS, check_later_tables, read_log, read_process
from qmux.config.scanner import KeyPath
from qmux.config.schema import Bind, ListenAddress, QuicConfig, ServerConfig, ServiceConfig
from qmux.config.section import Names, Section
from qmux.config.services import service_names
from qmux.config.taken import Taken, TakenAddresses
from qmux.config.units import format_duration
from qmux.paths import text_of

TABLES = Names(("server", "quic", "tls", "services", "defaults", "admin", "log", "authorization"))
SERVER_KEYS = Names(
    (*PROCESS_KEYS, *names_of(ServerConfig, "process", "quic", "services", "log")),
    ("hard_stop_after", "switch_timeout", "max_old_generations"),
    ("servers", "server_name", "instance", "resolve_interval", "connect_timeout", "reconnect_max"),
    "client",
)
QUIC_KEYS = Names(names_of(QuicConfig))
SERVICE_KEYS = Names(
    names_of(ServiceConfig),
    (
        "udp_idle_timeout", "udp_flows_per_source", "maxconn_per_source", "rate_per_source", "bandwidth",
        "accept_proxy_from", "prefer_zone", "slow_start", "max_fails", "fail_timeout", "min_clients",
    ),
    ("target", "connect_timeout", "send_proxy", "weight", "backup", "health"),
    "client",
)  # fmt: skip


def read_server(document: Document) -> ServerConfig:
    """The whole server configuration; what is wrong is recorded in the document's problems."""
    Section(document, ()).check_names(TABLES)
    if "server" not in document.tree:
        document.add_name(("server",), "the table is missing; write [server] with bundle = FILE")
    section = Section(document, ("server",))
    section.check_names(SERVER_KEYS)
    taken = TakenAddresses()
    services = _read_services(document, taken)
    check_later_tables(document)
    config = ServerConfig(
        source=text_of(document.source_path),
        process=read_process(document, section, None),
        quic=_read_quic(document, services, taken),
        services=services,
        **section.read(ServerConfig),
        log=read_log(document),
    )
    return config


def _read_quic(document: Document, services: dict[str, ServiceConfig], taken: TakenAddresses) -> QuicConfig:
    section = Section(document, ("quic",))
    section.check_names(QUIC_KEYS)
    binds = section.each("bind", parse_bind)
    _check_quic_overlaps(document, section, services, taken)
    default = (
        () if any(service.quic_bind for service in services.values()) else (ListenAddress("", DEFAULT_SERVER_PORT),)
    )
    quic = QuicConfig(
        bind=tuple(dict.fromkeys(bind for _, bind in binds)) if section.has("bind") else default,
        **section.read(QuicConfig),
    )
    _check_keep_alive(section, quic)
    return quic


def _check_keep_alive(section: Section, quic: QuicConfig) -> None:
    if quic.keep_alive_s < quic.idle_timeout_s:
        return
    key = "keep_alive" if section.has("keep_alive") else "idle_timeout"
    idle, alive = format_duration(quic.idle_timeout_s), format_duration(quic.keep_alive_s)
    section.add(key, f"keep_alive ({alive}) must be shorter than idle_timeout ({idle}), or idle clients are dropped")


def _read_services(document: Document, taken: TakenAddresses) -> dict[str, ServiceConfig]:
    defaults = Section(document, ("defaults",))
    defaults.check_names(SERVICE_KEYS)
    _read_service(defaults, "defaults")  # what is wrong there is wrong even where every service sets its own
    services: dict[str, ServiceConfig] = {}
    for name in service_names(document, 'bind = ":80"'):
        section = Section(document, ("services", name), defaults)
        section.check_names(SERVICE_KEYS)
        services[name], paths = _read_service(section, name)
        _check_traffic_overlaps(document, zip(paths, services[name].traffic_binds(), strict=True), taken)
        if not section.has("bind") and not section.has_tables():
            section.add_missing("bind", 'missing; where do users connect? write it as in bind = ":80"')
    return services


def _read_service(section: Section, name: str) -> tuple[ServiceConfig, tuple[KeyPath, ...]]:
    """The service, and where each address of its ``bind`` is written."""
    binds = section.each("bind", parse_bind)
    service = ServiceConfig(
        name=name,
        bind=tuple(bind for _, bind in binds),
        quic_bind=tuple(dict.fromkeys(bind for _, bind in section.each("quic_bind", parse_bind))),
        **section.read(ServiceConfig),
        allow=tuple(network for _, network in section.each("allow", parse_network)),
        deny=tuple(network for _, network in section.each("deny", parse_network)),
    )
    return service, tuple(path for path, _ in binds)


def _check_traffic_overlaps(document: Document, binds: Iterable[tuple[KeyPath, Bind]], taken: TakenAddresses) -> None:
    """Two services, or two binds of one, cannot listen at the same address: which would get the user connection?"""
    for path, bind in binds:
        if (clash := taken.take(path, bind)) is not None:
            _add_clash(document, path, bind, clash)


def _check_quic_overlaps(
    document: Document, section: Section, services: dict[str, ServiceConfig], taken: TakenAddresses
) -> None:
    """The same QUIC address twice is one bind; one that only overlaps another (":8443", "127.0.0.1:8443") is not."""
    found = list(section.each("bind", parse_bind))
    defaults = Section(document, ("defaults",))
    for name in services:
        found += Section(document, ("services", name), defaults).each("quic_bind", parse_bind)
    known = set()
    for path, address in found:
        if address in known:
            continue
        known.add(address)
        bind = Bind("quic", "udp", address)
        if (clash := taken.take(path, bind)) is None:
            continue
        if clash.bind.purpose == "quic":
            text = f'it overlaps "{clash.bind}"; write the same address in both places: it is one bind then'
            document.add(path, text)
        else:
            _add_clash(document, path, bind, clash)


def _add_clash(document: Document, path: KeyPath, bind: Bind, clash: Taken) -> None:
    what = "the same address as" if bind.address == clash.bind.address else f'it overlaps "{clash.bind}" of'
    where = f"{key_name(clash.path)} ({document.place(clash.path)})"
    document.add(path, f"{what} {where}; give each its own port or address")
