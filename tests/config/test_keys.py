"""What the schema says of a key is what the parser, the reload, the documentation and the examples have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from qmux.config.keys import Key, Later, Limits, NeedsRestart, NotInFile, OrWord, keys_of, names_of, read_by_rule
from qmux.config.schema import (
    ClientConfig,
    ClientServiceConfig,
    LogConfig,
    ProcessConfig,
    QuicConfig,
    ServerConfig,
    ServiceConfig,
)
from qmux.config.units import format_duration, format_size
from tests.config.test_shipped import rows

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()

TABLES: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "`[server]`": (ProcessConfig, ServerConfig),
    "`[quic]`": (QuicConfig,),
    "`[services.NAME]` on a server, and `[defaults]`": (ServiceConfig,),
    "`[client]`": (ProcessConfig, ClientConfig),
    "`[services.NAME]` on a client": (ClientServiceConfig,),
    "`[log]`": (LogConfig,),
}

OTHER_DEFAULTS = {
    ("`[services.NAME]` on a server, and `[defaults]`", "maxconn"): "no limit",
    ("`[client]`", "workers"): "`1`",
    ("`[services.NAME]` on a client", "weight"): "that of `[client]`",
    ("`[services.NAME]` on a client", "backup"): "that of `[client]`",
}
"""Those that another table has, that the role decides or that are no value, as the page says them."""

EVERY = [
    pytest.param(heading, key, id=f"{heading}-{key.name}")
    for heading, structs in TABLES.items()
    for struct in structs
    for key in read_by_rule(struct)
]


def written(key: Key, value: object) -> str:
    """A value of the schema as the page has it."""
    if value is None:
        return f'"{key.word}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if key.kind == "duration":
        return f'"{format_duration(float(str(value)))}"'
    if key.kind == "size":
        return f'"{format_size(int(str(value)))}"'
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(("heading", "key"), EVERY)
def test_the_page_says_the_default(heading: str, key: Key) -> None:
    said = rows(PAGE, heading)[key.name][0]
    assert said == OTHER_DEFAULTS.get((heading, key.name), f"`{written(key, key.default)}`")


@pytest.mark.parametrize(("heading", "key"), [each for each in EVERY if each.values[1].limits is not None])
def test_the_page_says_the_limits(heading: str, key: Key) -> None:
    assert key.limits is not None
    row = " ".join(rows(PAGE, heading)[key.name])
    assert written(key, key.limits.high) in row
    assert written(key, key.limits.low) in row or not key.limits.low


class Example(msgspec.Struct):
    name: Annotated[str, NotInFile()]
    wait_s: Annotated[float, Limits(0.1, 5.0)] = 3.0
    rest_s: Annotated[float | None, Limits(0.1, 5.0), OrWord("off")] = None
    window_bytes: Annotated[int, Limits(1, 9)] = 4
    count: Annotated[int, Limits(1, 9), NeedsRestart("it is counted at the start")] = 2
    kind: Annotated[Literal["tcp"], Later(("udp",))] = "tcp"
    open: bool = False
    path: str = ""


def test_a_field_says_everything_of_its_key() -> None:
    keys = keys_of(Example)
    assert names_of(Example, "path") == ("wait", "rest", "window", "count", "kind", "open")
    assert [key.kind for key in keys.values()] == ["duration", "duration", "size", "number", "choice", "flag", "other"]
    assert keys["rest_s"] == Key("rest_s", "duration", None, Limits(0.1, 5.0), "off")
    assert keys["count"].needs_restart == "it is counted at the start"
    assert (keys["kind"].choices, keys["kind"].later) == (("tcp",), ("udp",))
    assert "path" not in [key.name for key in read_by_rule(Example)]
