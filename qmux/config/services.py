"""The names of services, and which tables of ``[services]`` there are: the same on both ends."""

from __future__ import annotations

import re

from qmux.config.document import Document
from qmux.config.problems import quoted_name

MAX_SERVICES = 256
"""What one ``Register`` may offer (``qmux.protocol.values``, which a test holds against this)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_service_name(name: str) -> bool:
    """The rule for names: they stand in certificates, logs and metrics."""
    return _NAME.fullmatch(name) is not None


def service_names(document: Document, example: str) -> list[str]:
    """The services of a document that can be read further; records what is wrong with the rest."""
    tables = document.tree.get("services")
    if isinstance(tables, dict) and tables and len(tables) <= MAX_SERVICES:
        return [name for name, table in tables.items() if _is_service(document, name, table)]
    if tables is None or tables == {}:
        document.add_name(("services",), f"no service; add one, as in [services.web] with {example}")
    elif isinstance(tables, dict):
        document.add_name(("services",), f"{len(tables)} services; at most {MAX_SERVICES}")
    else:
        document.add_name(("services",), "not a table; write a table for each service, as in [services.web]")
    return []


def _is_service(document: Document, name: str, table: object) -> bool:
    path = ("services", name)
    if not isinstance(table, dict):
        document.add(path, f"not a table; write [services.{quoted_name(name)}], or did you mean a key of a service?")
        return False
    if not is_service_name(name):
        rule = "a letter or digit, then letters, digits, dot, dash and underscore, at most 64"
        document.add_name(path, f"not a name for a service; a name is {rule}")
        return False
    return True
