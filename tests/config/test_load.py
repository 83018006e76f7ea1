"""Whole configurations: what loads, to which values, and which of both daemons a file is for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from qmux.config.load import load
from qmux.config.loaded import Loaded
from qmux.config.schema import (
    ClientConfig,
    ListenAddress,
    QuicConfig,
    ServerAddress,
    ServerConfig,
    ServiceConfig,
    Target,
)
from qmux.errors import ConfigError

SERVER = '[server]\nbundle = "server.pem"\n\n[services.web]\nbind = ":80"\n'
CLIENT = '[client]\nservers = "s"\nbundle = "client.pem"\n\n[services.web]\ntarget = "127.0.0.1:3000"\n'

Load = Callable[[str], Loaded]
ProblemsOf = Callable[[str], list[str]]


def server_of(loaded: Loaded) -> ServerConfig:
    assert isinstance(loaded.config, ServerConfig)
    return loaded.config


def client_of(loaded: Loaded) -> ClientConfig:
    assert isinstance(loaded.config, ClientConfig)
    return loaded.config


def test_a_server_with_nothing_but_what_it_needs_has_the_defaults(load_text: Load) -> None:
    config = server_of(load_text(SERVER))
    assert config.quic == QuicConfig(bind=(ListenAddress("", 8443),))
    assert config.services == {"web": ServiceConfig(name="web", bind=(ListenAddress("", 80),))}
    assert (config.process.workers, config.max_clients, config.process.stop_after_s) == (None, 4096, 25.0)


def test_every_key_of_a_server(load_text: Load, place: Path) -> None:
    config = server_of(
        load_text(
            '[server]\nbundle="server.pem"\nworkers=3\nengine="aioquic"\nruntime_dir="run"\nstate_dir="/st"\n'
            'max_clients=5\nstop_after="1m"\ndrain_delay="2s"\nuser="root"\ngroup="root"\n'
            '[quic]\nbind=["127.0.0.1:1","[::1]:1","127.0.0.1:1"]\nlanes=2\nidle_timeout="20s"\nkeep_alive="1s"\n'
            'heartbeat="500ms"\nhandshake_timeout="1s"\nmax_streams=7\nstream_window="64KiB"\nretry_threshold=0\n'
            '[services."a.b-c_1"]\nbind=["127.0.0.1:80","127.0.0.1:81"]\nquic_bind="127.0.0.1:2"\nprotocol="tcp"\n'
            'balance="source-hash"\nearly_data=true\nqueue_timeout="0s"\nsetup_timeout="1s"\nretries=0\n'
            'idle_timeout="1h"\nhalf_closed_timeout="1s"\nmaxconn=9\nallow=["10.0.0.0/8"]\ndeny="10.1.0.0/16"\n'
            '[log]\nlevel="debug"\nformat="json"\nfile="x.log"\n'
        )
    )
    assert config.process.runtime_dir == str(place / "run")
    assert config.process.state_dir == "/st"
    assert (config.process.workers, config.process.engine, config.process.stop_after_s) == (3, "aioquic", 60.0)
    assert (config.process.user, config.process.group) == ("root", "root")
    assert (config.max_clients, config.drain_delay_s) == (5, 2.0)
    assert config.quic == QuicConfig(
        bind=(ListenAddress("127.0.0.1", 1), ListenAddress("::1", 1)), lanes=2,
        idle_timeout_s=20.0, keep_alive_s=1.0, heartbeat_s=0.5,
        handshake_timeout_s=1.0, max_streams=7, stream_window_bytes=65_536, retry_threshold=0,
    )  # fmt: skip
    assert config.services["a.b-c_1"] == ServiceConfig(
        name="a.b-c_1", bind=(ListenAddress("127.0.0.1", 80), ListenAddress("127.0.0.1", 81)),
        quic_bind=(ListenAddress("127.0.0.1", 2),),
        balance="source-hash", early_data=True, queue_timeout_s=0.0, setup_timeout_s=1.0, retries=0,
        idle_timeout_s=3600.0, half_closed_timeout_s=1.0, maxconn=9, allow=("10.0.0.0/8",), deny=("10.1.0.0/16",),
    )  # fmt: skip
    assert (config.log.level, config.log.format, config.log.file) == ("debug", "json", str(place / "x.log"))


def test_every_key_of_a_client(load_text: Load, place: Path) -> None:
    config = client_of(
        load_text(
            '[client]\nservers=["s:1","[::1]:2","s:1"]\nbundle="client.pem"\nserver_name="t.example"\ninstance="pod"\n'
            'weight=3\nbackup=true\nworkers=2\nresolve_interval="1m"\nconnect_timeout="1s"\nreconnect_max="5s"\n'
            '[services.a]\ntarget="unix:app.sock"\nconnect_timeout="1s"\nweight=4\nbackup=false\n'
            '[services.b]\ntarget="[::1]:5"\n'
        )
    )
    assert config.servers == (ServerAddress("s", 1), ServerAddress("::1", 2))
    assert (config.server_name, config.instance, config.process.workers) == ("t.example", "pod", 2)
    assert (config.resolve_interval_s, config.connect_timeout_s, config.reconnect_max_s) == (60.0, 1.0, 5.0)
    a, b = config.services["a"], config.services["b"]
    assert (a.target, a.connect_timeout_s, a.weight, a.backup) == (Target(path=str(place / "app.sock")), 1.0, 4, False)
    assert (b.target, b.connect_timeout_s, b.weight, b.backup) == (Target("::1", 5), 5.0, 3, True)


def test_a_client_with_nothing_but_what_it_needs(load_text: Load) -> None:
    config = client_of(load_text(CLIENT))
    assert config.process.workers == 1
    assert config.instance == os.uname().nodename
    assert config.servers == (ServerAddress("s", 8443),)


def test_defaults_stand_in_and_a_service_overrides_them(load_text: Load) -> None:
    config = server_of(
        load_text(
            SERVER + '[services.api]\nbind=":81"\nretries=1\nidle_timeout="off"\n'
            '[defaults]\nretries=5\nidle_timeout="1m"\nallow="10.0.0.0/8"\nbalance="round-robin"\n'
        )
    )
    web, api = config.services["web"], config.services["api"]
    assert (web.retries, web.idle_timeout_s, web.allow, web.balance) == (5, 60.0, ("10.0.0.0/8",), "round-robin")
    assert (api.retries, api.idle_timeout_s, api.allow) == (1, None, ("10.0.0.0/8",))


def test_a_mistake_in_defaults_is_told_even_where_no_service_uses_it(problems: ProblemsOf) -> None:
    assert problems(SERVER + 'retries = 1\n[defaults]\nretries = "x"\n') == [
        '8: defaults.retries = "x": not a whole number; write one from 0 to 16'
    ]


def test_the_same_quic_bind_twice_is_one(load_text: Load) -> None:
    text = SERVER + 'quic_bind=":8443"\n[services.api]\nbind=":81"\nquic_bind=[":8443",":8444"]\n[quic]\nbind=":8443"\n'
    assert server_of(load_text(text)).quic_addresses() == (ListenAddress("", 8443), ListenAddress("", 8444))


def test_no_quic_bind_of_its_own_where_a_service_names_one(load_text: Load) -> None:
    config = server_of(load_text(SERVER + 'quic_bind=":8444"\n'))
    assert config.quic_addresses() == (ListenAddress("", 8444),)


def test_the_same_port_for_traffic_and_quic_is_no_clash(problems: ProblemsOf) -> None:
    assert problems(SERVER + 'quic_bind=":80"\n') == []


def test_empty_tables_of_later_features_are_let_be(problems: ProblemsOf) -> None:
    assert problems(SERVER + "[admin]\n[tls]\n") == []


def test_the_example_of_the_page(problems: ProblemsOf) -> None:
    text = (
        '[server]\n# 2\nbundle = "server.pem"\n\n[services.web]\nbind = ":80"\n# 7\n# 8\nidle_timeout = 30\n'
        '# 10\n# 11\n# 12\n# 13\nballance = "round-robin"\n'
    )
    assert problems(text) == [
        '9: services.web.idle_timeout = 30: a duration needs a unit; did you mean "30s"?',
        '14: services.web.ballance: unknown key; did you mean "balance"?',
    ]


def test_a_bom_and_crlf_are_no_mistake(place: Path) -> None:
    Path("x.toml").write_bytes(b"\xef\xbb\xbf" + (SERVER + "retries = 99\n").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    assert caught.value.problems[0].startswith("x.toml:6: services.web.retries = 99: out of range")


@pytest.mark.parametrize(
    ("text", "role", "message"),
    [
        (
            CLIENT,
            "server",
            "x.toml:1: [client]: this is a client's configuration, not a server's; run: qmuxc -c x.toml",
        ),
        (
            SERVER,
            "client",
            "x.toml:1: [server]: this is a server's configuration, not a client's; run: qmuxd -c x.toml",
        ),
    ],
)
def test_the_other_daemons_file(place: Path, text: str, role: str, message: str) -> None:
    Path("x.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"), "server" if role == "server" else "client")
    assert str(caught.value) == f"{message}\n1 error in x.toml"


@pytest.mark.parametrize("role", ["server", "client", None])
def test_an_empty_file(place: Path, role: Literal["server", "client"] | None) -> None:
    Path("x.toml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"), role)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        f"x.toml:1: {role or 'server'}: the table is missing",
        "x.toml:1: services: no service",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "x.toml: no such file; name another, or write one: qmux init server, or client"),
        (b"[server]\n# \xff\n", "x.toml:2: not UTF-8 text; save the file as UTF-8"),
        (b"#" * ((1 << 20) + 1), "x.toml: is larger than 1048576 bytes: this is some other file"),
        (b"a = " + b"[" * 5000, None),
    ],
    ids=["missing", "latin-1", "huge", "deep"],
)
def test_files_that_are_none(place: Path, content: bytes | None, message: str | None) -> None:
    if content is not None:
        Path("x.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    assert len(caught.value.problems) == 1
    assert message is None or caught.value.problems[0] == message


def test_a_fifo_is_not_waited_for(place: Path) -> None:
    os.mkfifo("x.toml")
    with pytest.raises(ConfigError, match=r"x\.toml: is not a regular file"):
        load(Path("x.toml"))
