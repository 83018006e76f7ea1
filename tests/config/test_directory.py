"""A directory as a configuration: its files in order, each key set once."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmux.config.load import load
from qmux.config.schema import ServerConfig
from qmux.errors import ConfigError


@pytest.fixture
def conf_d(place: Path) -> Path:
    (place / "conf.d").mkdir()
    (place / "server.pem").rename(place / "conf.d" / "server.pem")
    return Path("conf.d")


def problems_of(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory)
    assert caught.value.source == str(directory)
    return list(caught.value.problems)


def test_tables_may_be_spread_over_files(conf_d: Path, place: Path) -> None:
    (conf_d / "10-base.toml").write_text('[server]\nbundle = "server.pem"\n[defaults]\nretries = 1\n')
    (conf_d / "20-web.toml").write_text('[services.web]\nbind = ":80"\n[server]\nworkers = 3\n')
    (conf_d / "30-api.toml").write_text('[services.api]\nbind = ":81"\n')
    (conf_d / "notes.txt").write_text("not TOML")
    (conf_d / ".20-web.toml.swp.toml").write_text("not TOML")
    config = load(conf_d).config
    assert isinstance(config, ServerConfig)
    assert list(config.services) == ["web", "api"]
    assert config.process.workers == 3
    assert config.services["web"].retries == 1
    assert config.source == str(place / "conf.d")
    assert config.process.tls.bundle == str(place / "conf.d" / "server.pem")  # relative to the directory


def test_a_key_that_two_files_set_names_both(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('[server]\nbundle = "server.pem"\nworkers = 2\n')
    (conf_d / "b.toml").write_text('[server]\n\nworkers = 3\n[services.web]\nbind = ":80"\n')
    assert problems_of(conf_d) == [
        "conf.d/b.toml:3: server.workers = 3: set already in conf.d/a.toml:3; each key is set once"
    ]


def test_a_table_and_a_value_of_the_same_name(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('[server]\nbundle = "server.pem"\n[services.web]\nbind = ":80"\n')
    (conf_d / "b.toml").write_text("services = 1\n")
    assert problems_of(conf_d) == [
        "conf.d/b.toml:1: services = 1: set already in conf.d/a.toml:3; each key is set once"
    ]


def test_problems_come_in_the_order_of_files_and_lines(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('[server]\nbundle = "server.pem"\nworkerz = 2\n')
    (conf_d / "b.toml").write_text('[services.web]\nbind = "80"\n')
    (conf_d / "c.toml").write_text('[quic]\nlanes = 99\n[services.api]\nbind = ":81"\nretries = -1\n')
    assert [problem.split(" ", 1)[0] for problem in problems_of(conf_d)] == [
        "conf.d/a.toml:3:", "conf.d/b.toml:2:", "conf.d/c.toml:2:", "conf.d/c.toml:5:",
    ]  # fmt: skip


def test_the_syntax_errors_of_all_files(conf_d: Path) -> None:
    (conf_d / "a.toml").write_text("[server\n")
    (conf_d / "b.toml").write_text("\nx = yes\n")
    assert [problem.split(" ", 1)[0] for problem in problems_of(conf_d)] == ["conf.d/a.toml:1:", "conf.d/b.toml:2:"]


def test_without_a_file(conf_d: Path) -> None:
    assert problems_of(conf_d) == ["conf.d: has no *.toml file; put one there, or name a file"]


def test_with_too_many_files(conf_d: Path) -> None:
    for number in range(257):
        (conf_d / f"{number}.toml").write_text("")
    assert problems_of(conf_d) == ["conf.d: has 257 *.toml files; at most 256 are read"]
