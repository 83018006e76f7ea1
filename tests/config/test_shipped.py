"""What we ship: the files of ``conf``, with the defaults that they show, and the page that describes every key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from qmux.config.client import CLIENT_KEYS, CLIENT_SERVICE_KEYS
from qmux.config.load import load
from qmux.config.schema import ClientConfig, ListenAddress, ServerConfig, Target
from qmux.config.server import QUIC_KEYS, SERVER_KEYS, SERVICE_KEYS

ROOT = Path(__file__).parents[2]
NOT_DEFAULTS = {
    "cert", "key", "ca", "user", "group", "runtime_dir", "state_dir", "maxconn", "allow", "deny", "file", "server_name",
    "instance",
}  # fmt: skip
"""Keys whose comment shows an example, since their default is that nothing is set."""


@pytest.fixture
def shipped(place: Path) -> Path:
    for name in ("server.toml", "client-a.toml", "client-b.toml"):
        shutil.copy(ROOT / "conf" / name, place / name)
    for name in "ab":
        shutil.copy("client.pem", f"client-{name}.pem")
    return place


def test_the_server_of_the_picture(shipped: Path) -> None:
    loaded = load(Path("server.toml"), "server")
    config = loaded.config
    assert isinstance(config, ServerConfig)
    assert loaded.warnings == ()
    assert {name: service.bind for name, service in config.services.items()} == {
        "a": (ListenAddress("", 80),),
        "b": (ListenAddress("", 443),),
    }
    assert config.quic_addresses() == (ListenAddress("", 8443), ListenAddress("", 8444))
    assert config.source == str(shipped / "server.toml")
    assert config.process.tls.bundle == str(shipped / "server.pem")


@pytest.mark.parametrize(("name", "port"), [("a", 3000), ("b", 5000)])
def test_the_clients_of_the_picture(shipped: Path, name: str, port: int) -> None:
    config = load(Path(f"client-{name}.toml"), "client").config
    assert isinstance(config, ClientConfig)
    assert config.services[name].target == Target("127.0.0.1", port)


@pytest.mark.parametrize("name", ["server.toml", "client-a.toml", "client-b.toml"])
def test_a_comment_shows_the_default(shipped: Path, name: str) -> None:
    plain = load(Path(name)).config
    text = Path(name).read_text()
    shown = set(re.findall(r"^#(\w+) =", text, re.MULTILINE))
    assert shown & NOT_DEFAULTS
    text = re.sub(r"^#(\w+)( =)", lambda m: m[0] if m[1] in NOT_DEFAULTS else m[1] + m[2], text, flags=re.MULTILINE)
    if name == "server.toml":  # here the default of [quic] bind depends on the services, which set it
        text = re.sub(r"^bind( = .*\n#lanes|.*8443.*where clients)", r"#bind\1", text, flags=re.MULTILINE)
    Path(name).write_text(text)
    assert load(Path(name)).config == plain


@pytest.mark.parametrize("name", ["server.toml", "client-a.toml"])
def test_every_example_is_valid(shipped: Path, name: str) -> None:
    text = re.sub(r"^#(\w+ = )", r"\1", Path(name).read_text(), flags=re.MULTILINE)
    text = re.sub(r"^(cert|key|ca|user|group) = .*$", "", text, flags=re.MULTILINE)
    Path(name).write_text(text)
    config = load(Path(name)).config
    assert config.log.file
    assert config.process.runtime_dir.startswith("/run/qmux")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("server.toml", {*SERVER_KEYS.known, *QUIC_KEYS.known, *SERVICE_KEYS.known}),
        ("client-a.toml", {*CLIENT_KEYS.known, *CLIENT_SERVICE_KEYS.known}),
    ],
)
def test_every_key_is_shown(name: str, keys: set[str]) -> None:
    text = (ROOT / "conf" / name).read_text()
    assert {key for key in keys if not re.search(rf"^#?{key} =", text, re.MULTILINE)} == set()


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of a table of docs/configuration.md: key → the cells."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = (line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `"))
    return {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:]] for cells in found}


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("`[server]`", SERVER_KEYS.known),
        ("`[quic]`", QUIC_KEYS.known),
        ("`[services.NAME]` on a server, and `[defaults]`", SERVICE_KEYS.known),
        ("`[client]`", CLIENT_KEYS.known),
        ("`[services.NAME]` on a client", CLIENT_SERVICE_KEYS.known),
        ("`[log]`", ("level", "format", "file")),
    ],
)
def test_the_page_has_every_key_and_no_other(heading: str, keys: tuple[str, ...]) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert set(rows(page, heading)) == set(keys)


def test_the_page_names_every_key_that_is_not_there_yet() -> None:
    later = (ROOT / "docs" / "configuration.md").read_text().split("\n## Not in this version", 1)[1]
    keys = {*SERVER_KEYS.later, *SERVICE_KEYS.later, *CLIENT_KEYS.later, *CLIENT_SERVICE_KEYS.later}
    assert {key for key in keys if f"`{key}`" not in later} == set()


def test_a_configuration_travels_as_msgpack(shipped: Path) -> None:
    for name in ("server.toml", "client-a.toml"):
        config = load(Path(name)).config
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=type(config)) == config
