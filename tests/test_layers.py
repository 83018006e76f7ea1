"""Imports point one way: the table of docs/architecture.md, "Layers", held against every import statement."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "qmux.addresses",
            "qmux.errors",
            "qmux.heard",
            "qmux.log",
            "qmux.paths",
            "qmux.tasks",
            "qmux.steering",
            "qmux.sockets",
            "qmux.pki",
            "qmux.resolver",
        }
    ),
    frozenset({"qmux.config", "qmux.messages", "qmux.channel"}),
    frozenset({"qmux.protocol", "qmux.bus", "qmux.pool"}),
    frozenset({"qmux.quic"}),
    frozenset({"qmux.relay"}),
    frozenset({"qmux.child", "qmux.worker", "qmux.admin"}),
    frozenset({"qmux.cli", "qmux.__main__"}),
)

WITHIN_A_LAYER = {
    ("qmux.errors", "qmux.paths"),  # an error's text is escaped as a path is
    ("qmux.pki", "qmux.errors"),
    ("qmux.pki", "qmux.heard"),
    ("qmux.log", "qmux.heard"),
    ("qmux.pki", "qmux.addresses"),  # the names that certificates are for
    ("qmux.tasks", "qmux.log"),
    ("qmux.messages", "qmux.config"),  # the words that a bind is described with
    ("qmux.channel", "qmux.messages"),
    ("qmux.bus", "qmux.pool"),  # what it carries
    ("qmux.worker", "qmux.child"),
    ("qmux.admin", "qmux.child"),
    ("qmux.__main__", "qmux.cli"),
}
"""The importer first. Whatever else shares a layer knows nothing of each other."""

SUPERVISOR_MAY = {
    f"qmux.{name}"
    for name in (
        "addresses",
        "errors",
        "heard",
        "log",
        "paths",
        "tasks",
        "steering",
        "pki",
        "config",
        "messages",
        "channel",
        "bus",
    )
}
CHILD_MAY = {"qmux.channel", "qmux.messages", "qmux.errors", "qmux.log", "qmux.paths", "qmux.tasks"}

ONLY_IN = {
    "aioquic": ("qmux.quic.aioquic_engine",),
    "qmux_native": ("qmux.quic.native_engine",),
    "uvloop": ("qmux.child",),
    "zmq": ("qmux.bus",),
    "click": ("qmux.cli",),
    "aiohttp": ("qmux.admin", "qmux.cli"),
    "tomli": ("qmux.config",),
    "supervisor": ("qmux.cli", "supervisor"),
}
"""Package → the modules that may import it."""

SANS_IO = {"asyncio", "socket", "threading", "select", "os", "time"}
"""What the protocol and the pool must do without: their callers have the clock and the sockets."""


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    found = {}
    for package in ("qmux", "supervisor"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that this file imports, also inside functions and for the type checker."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module


def part_of(module: str) -> str:
    """The package or module that stands in the table: ``qmux.pool.rows`` is part of ``qmux.pool``."""
    return ".".join(module.split(".")[:2]) if module.startswith("qmux.") else module.split(".")[0]


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def every_import() -> Iterator[tuple[str, str, str]]:
    """(where, importer, imported) for all modules."""
    for name, path in MODULES.items():
        for line, imported in imports(path):
            yield f"{path.relative_to(ROOT)}:{line}", name, imported


EVERY_IMPORT = list(every_import())


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 80
    assert len(EVERY_IMPORT) > 500


def test_every_module_has_a_layer() -> None:
    parts = {part_of(name) for name in MODULES} - {"qmux", "supervisor"}
    assert parts == frozenset().union(*LAYERS)


def test_the_table_in_the_documentation_is_this_one() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    documented = {int(number): frozenset(re.findall(r"`([a-z._]+)`", names)) for number, names in rows}
    assert documented == dict(enumerate(LAYERS))


def test_imports_point_one_way() -> None:
    wrong = [
        f"{where}: {importer} (layer {layer_of(part_of(importer))}) imports {imported}"
        for where, importer, imported in EVERY_IMPORT
        if importer.startswith("qmux.") and imported.startswith("qmux.") and not may_import(importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


def may_import(importer: str, imported: str) -> bool:
    ours, theirs = part_of(importer), part_of(imported)
    if ours == theirs or (ours, theirs) in WITHIN_A_LAYER:
        return True
    return layer_of(theirs) < layer_of(ours)


@pytest.mark.parametrize(("part", "other"), [("server", "client"), ("client", "server")])
def test_the_two_programs_of_the_workers_know_nothing_of_each_other(part: str, other: str) -> None:
    wrong = [
        f"{where}: imports {imported}"
        for where, importer, imported in EVERY_IMPORT
        if is_within(importer, f"qmux.worker.{part}") and is_within(imported, f"qmux.worker.{other}")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(MODULES["qmux"])) == [] or {name for _, name in imports(MODULES["qmux"])} == {"__future__"}


@pytest.mark.parametrize(
    ("part", "allowed"), [("supervisor", SUPERVISOR_MAY | {"qmux", "supervisor"}), ("qmux.child", CHILD_MAY)]
)
def test_what_only_a_few_may_be_imported_by(part: str, allowed: set[str]) -> None:
    wrong = [
        f"{where}: imports {imported}"
        for where, importer, imported in EVERY_IMPORT
        if is_within(importer, part) and imported.split(".")[0] in ("qmux", "supervisor")
        if part_of(imported) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_that_only_one_place_knows(package: str) -> None:
    users = [(where, importer) for where, importer, imported in EVERY_IMPORT if imported.split(".")[0] == package]
    assert users, f"nothing imports {package} any more"
    wrong = [where for where, importer in users if not any(is_within(importer, place) for place in ONLY_IN[package])]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", ["qmux.protocol", "qmux.pool"])
def test_pure_parts_do_no_io(part: str) -> None:
    wrong = [
        f"{where}: {imported}"
        for where, importer, imported in EVERY_IMPORT
        if part_of(importer) == part and imported.split(".")[0] in SANS_IO
    ]
    assert not wrong, "\n".join(wrong)


def test_a_running_supervisor_has_neither_engine_nor_loop() -> None:
    """Also through what it imports: its start and its memory are small, and no engine's defect can stop it."""
    names = [name for name in MODULES if is_within(name, "supervisor")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"supervisor", "zmq"} <= loaded
    assert not loaded & {"aioquic", "uvloop", "aiohttp", "click"}
