"""Loading a configuration: TOML files → checked values and certificate material, or every problem at once."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from qmux.config.client import read_client
from qmux.config.document import Document, read_document
from qmux.config.loaded import Loaded
from qmux.config.material import load_material
from qmux.config.problems import Problems, key_name, shown
from qmux.config.schema import ClientConfig, Config
from qmux.config.server import read_server
from qmux.errors import ConfigError
from qmux.pki.material import Material


def load(path: Path, role: Literal["server", "client"] | None = None) -> Loaded:
    """Read, check and complete the configuration in the file or directory ``path``, certificates included.

    ``role`` None takes what the file is: one with ``[client]`` is a client's. Raises ConfigError with every problem.
    """
    document = read_document(path)
    found = _role(document, role)
    config: Config = read_client(document) if found == "client" else read_server(document)
    material, warnings = _material(document, config)
    document.problems.raise_any(document.source)
    assert material is not None  # else a problem was raised
    return Loaded(config, material, warnings)


def _role(document: Document, wanted: Literal["server", "client"] | None) -> Literal["server", "client"]:
    is_client, is_server = "client" in document.tree, "server" in document.tree
    if is_client and is_server:
        first = document.place(("server",))
        text = f"[client] beside [server] ({first}): a file is for one of both; move one into a file of its own"
        document.problems.add(document.place(("client",)), text)
        document.problems.raise_any(document.source)
    found: Literal["server", "client"] = "client" if is_client else "server"
    if wanted is None or wanted == found or not (is_client or is_server):
        return wanted or found
    command = "qmuxc" if is_client else "qmuxd"
    place = document.place((found,))
    text = f"[{found}]: this is a {found}'s configuration, not a {wanted}'s; run: {command} -c {document.source}"
    raise ConfigError([f"{place}: {text}"], document.source)


def _material(document: Document, config: Config) -> tuple[Material | None, tuple[str, ...]]:
    """The certificate material; its problems are recorded at the keys that name the files."""
    table = "client" if isinstance(config, ClientConfig) else "server"
    files = config.process.tls
    if not files.bundle and not (files.cert and files.key and files.ca):
        return None, ()  # a problem is recorded already
    role: Literal["server", "client"] = "client" if table == "client" else "server"
    checked = load_material(files, role, list(config.services), datetime.datetime.now(datetime.UTC))
    warnings = Problems()
    for finding in checked.findings:
        path = (table, finding.key)
        text = f"{key_name(path)} = {shown(document.value(path))}: {finding.text}"
        (warnings if finding.is_warning else document.problems).add(document.place(path), text)
    return checked.material, tuple(warnings.lines())
