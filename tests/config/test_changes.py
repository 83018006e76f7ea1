from __future__ import annotations

from collections.abc import Callable

import pytest

from qmux.config.changes import Change, changes, merge_in_place
from qmux.config.loaded import Loaded
from qmux.config.schema import Config, ServerConfig

Load = Callable[[str], Loaded]

SERVER = (
    '[server]\nbundle = "server.pem"\n[quic]\nbind = ":8443"\n[services.web]\nbind = ":80"\n[services.api]\n'
    'bind = ":81"\nquic_bind = ":8444"\n'
)
CLIENT = '[client]\nservers = "s"\nbundle = "client.pem"\n[services.web]\ntarget = "127.0.0.1:1"\n'

Pair = Callable[[str, str], tuple[Config, Config]]


@pytest.fixture
def pair(load_text: Load) -> Pair:
    return lambda old, new: (load_text(old).config, load_text(new).config)


def test_nothing(pair: Pair) -> None:
    old, new = pair(SERVER, SERVER + "# a comment\n")
    assert changes(old, new) == []
    assert merge_in_place(old, new) == new


@pytest.mark.parametrize(
    ("replace", "by", "key", "was", "becomes"),
    [
        ('bind = ":80"', 'bind = ":90"', "services.web.bind", '":80"', '":90"'),
        ('bind = ":80"', 'bind = [":1", "[::1]:2"]', "services.web.bind", '":80"', '[":1", "[::1]:2"]'),
        ('bind = ":80"', 'bind = ":80"\nqueue_timeout = "1s"', "services.web.queue_timeout", '"3s"', '"1s"'),
        ('bind = ":80"', 'bind = ":80"\nidle_timeout = "90s"', "services.web.idle_timeout", '"off"', '"90s"'),
        ('bind = ":80"', 'bind = ":80"\nmaxconn = 5', "services.web.maxconn", "-", "5"),
        ('bind = ":80"', 'bind = ":80"\nallow = "10.0.0.0/8"', "services.web.allow", "-", '"10.0.0.0/8"'),
        ("[quic]", '[quic]\nstream_window = "64KiB"', "quic.stream_window", '"1MiB"', '"64KiB"'),
        ("[quic]", "[quic]\nlanes = 2", "quic.lanes", '"auto"', "2"),
        ("[quic]", "max_clients = 5\n[quic]", "server.max_clients", "4096", "5"),
        ("[quic]", 'stop_after = "1m"\n[quic]', "server.stop_after", '"25s"', '"1m"'),
        ("[quic]", '[log]\nlevel = "debug"\n[quic]', "log.level", '"info"', '"debug"'),
    ],
)  # fmt: skip
def test_in_place(pair: Pair, replace: str, by: str, key: str, was: str, becomes: str) -> None:
    old, new = pair(SERVER, SERVER.replace(replace, by, 1))
    assert changes(old, new) == [Change(key, was, becomes, "in place")]
    assert merge_in_place(old, new) == new


@pytest.mark.parametrize(
    ("line", "key"),
    [("workers = 5", "workers"), ('engine = "aioquic"', "engine"),
     ('user = "root"', "user"), ('group = "root"', "group"),
     ('runtime_dir = "/x"', "runtime_dir"), ('state_dir = "/x"', "state_dir")],
)  # fmt: skip
def test_what_needs_a_restart_stays_as_it_was(pair: Pair, line: str, key: str) -> None:
    old, new = pair(SERVER, SERVER.replace("[quic]", f"{line}\nmax_clients = 5\n[quic]"))
    found = {change.key: change for change in changes(old, new)}
    assert found[f"server.{key}"].how == "restart"
    assert found[f"server.{key}"].why
    assert found["server.max_clients"].how == "in place"
    merged = merge_in_place(old, new)
    assert merged.process == old.process
    assert isinstance(merged, ServerConfig)
    assert merged.max_clients == 5
    assert [change.key for change in changes(old, merged)] == ["server.max_clients"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(":8443", ":9443"),
        lambda text: text.replace(":8444", ":9444"),
        lambda text: text.replace('quic_bind = ":8444"\n', ""),
        lambda text: text.split("[services.api]")[0],
        lambda text: text.replace('bind = ":80"', 'bind = ":80"\nquic_bind = ":9445"'),
        lambda text: text.replace('[quic]\nbind = ":8443"\n', ""),
        lambda text: text.split("[services.api]")[0].replace(":8443", ":9443") + 'retries = 1\nquic_bind = ":9445"\n',
    ],
)
def test_quic_sockets_stay_as_they_are(pair: Pair, edit: Callable[[str], str]) -> None:
    old, new = pair(SERVER, edit(SERVER))
    assert any(change.how == "restart" and "QUIC sockets" in change.why for change in changes(old, new))
    merged = merge_in_place(old, new)
    assert isinstance(merged, ServerConfig)
    assert isinstance(old, ServerConfig)
    assert set(merged.quic_addresses()) == set(old.quic_addresses())
    assert list(merged.services) == list(new.services)
    assert not any(change.how == "restart" for change in changes(old, merged))


def test_a_quic_bind_that_only_moves_needs_no_restart(pair: Pair) -> None:
    moved = SERVER.replace('quic_bind = ":8444"\n', "").replace('bind = ":8443"', 'bind = [":8443", ":8444"]')
    old, new = pair(SERVER, moved)
    assert {change.how for change in changes(old, new)} == {"in place"}
    assert merge_in_place(old, new) == new


def test_services_that_come_and_go(pair: Pair) -> None:
    old, new = pair(SERVER, SERVER.replace("services.web", 'services."x.y"'))
    found = {change.key: (change.old, change.new, change.how) for change in changes(old, new)}
    assert found['services."x.y".bind'] == ("-", '":80"', "in place")
    assert found["services.web.bind"] == ('":80"', "-", "in place")


def test_of_a_client(pair: Pair) -> None:
    old, new = pair(CLIENT, CLIENT.replace('"s"', '["s", "t:1"]\nworkers = 2').replace("0.1:1", "0.1:2"))
    assert [(change.key, change.old, change.new, change.how) for change in changes(old, new)] == [
        ("client.workers", "1", "2", "restart"),
        ("client.servers", '"s:8443"', '["s:8443", "t:1"]', "in place"),
        ("services.web.target", '"127.0.0.1:1"', '"127.0.0.1:2"', "in place"),
    ]
    assert merge_in_place(old, new).process.workers == 1


def test_the_other_role(pair: Pair) -> None:
    old, new = pair(SERVER, CLIENT)
    (change,) = changes(old, new)
    assert (change.key, change.how) == ("role", "restart")
    assert merge_in_place(old, new) == old


def test_a_change_as_a_line() -> None:
    assert (
        str(Change("server.workers", "2", "3", "restart", "because"))
        == "server.workers: 2 → 3 (needs a restart: because)"
    )
    assert str(Change("services.a.retries", "2", "3", "in place")) == "services.a.retries: 2 → 3 (in place)"
