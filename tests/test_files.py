"""Where things are, and habits that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

BESIDE_PACKAGES = {
    "integration": "the real daemons",
    "netsim": "a network that drops, delays and reorders",
    "docs": "what the documents say",
}
BESIDE_MODULES = {
    "test_layers.py": "imports",
    "test_files.py": "this",
    "test_needs.py": "conftest.py",
    "test_references.py": "what comments and pages point to",
    "test_foreground.py": "how the tests start programs",
}

UNTESTED_ALONE = {
    "errors": "a table of classes",
    "messages": "what qmux.channel carries",
}

OWN_TASKS = {
    "qmux/tasks.py": "the one place that makes them",
    "qmux/relay/attempt.py": "has ended when its only caller gets the result",
    "qmux/cli/demo_run.py": "a command that waits for whichever comes first, and then ends",
}
"""Who may start a task without a TaskSet, and why."""


def python_files(*places: str) -> Iterator[Path]:
    for place in places:
        yield from sorted((ROOT / place).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Calls of functions or methods with one of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if name in names:
                yield node


# --- tests/ mirrors the packages ---


def packages() -> set[str]:
    return {path.parent.name for path in (ROOT / "qmux").glob("*/__init__.py")}


def modules() -> set[str]:
    return {path.stem for path in (ROOT / "qmux").glob("*.py")} - {"__init__"}


def test_every_directory_of_tests_is_a_package() -> None:
    directories = {path.parent for path in python_files("tests")}
    assert not [relative(directory) for directory in directories if not (directory / "__init__.py").exists()]


def test_directories_mirror_the_packages() -> None:
    directories = {path.name for path in TESTS.iterdir() if (path / "__init__.py").exists()}
    assert directories - packages() - {"supervisor", "loadtest"} == set(BESIDE_PACKAGES)


def test_files_mirror_the_modules() -> None:
    files = {path.name for path in TESTS.glob("test_*.py")}
    assert files - {f"test_{module}.py" for module in modules()} == set(BESIDE_MODULES)


def test_nothing_is_without_tests() -> None:
    tested = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    tested |= {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    assert (packages() | modules()) - tested == set(UNTESTED_ALONE)


# --- habits ---


def test_tasks_have_owners() -> None:
    found = {
        relative(path)
        for path in python_files("qmux", "supervisor")
        if any(calls(parsed(path), "create_task", "ensure_future", "TaskGroup"))
    }
    assert found == set(OWN_TASKS)


def test_tests_wait_for_states_and_not_for_time() -> None:
    """A sleep belongs into a loop that looks for something, with a deadline; any other says on its line why it must."""
    wrong = []
    for path in python_files("tests"):
        lines = path.read_text().splitlines()
        for call in sleeps_outside_of_loops(parsed(path)):
            if "#" not in lines[call.lineno - 1]:
                wrong.append(f"{relative(path)}:{call.lineno}")
    assert not wrong, "\n".join(wrong)


def sleeps_outside_of_loops(tree: ast.Module) -> Iterator[ast.Call]:
    polling = {id(call) for node in ast.walk(tree) if isinstance(node, ast.While) for call in calls(node, "sleep")}
    for call in calls(tree, "sleep"):
        is_of_time = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "time"
        if is_of_time and id(call) not in polling:
            yield call


@pytest.mark.parametrize(("code", "expected"), [("import time\ntime.sleep(1)", 1), ("while x:\n time.sleep(1)", 0)])
def test_the_rule_about_sleeps_finds_something(code: str, expected: int) -> None:
    assert len(list(sleeps_outside_of_loops(ast.parse(code)))) == expected


def test_no_exception_is_swallowed() -> None:
    """Whoever catches everything calls something with it, raises, or says on that line why not."""
    wrong = []
    for path in python_files("qmux", "supervisor"):
        lines = path.read_text().splitlines()
        wrong += [
            f"{relative(path)}:{node.lineno}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.ExceptHandler) and swallows(node) and "#" not in lines[node.lineno - 1]
        ]
    assert not wrong, "\n".join(wrong)


def swallows(handler: ast.ExceptHandler) -> bool:
    names = {"Exception", "BaseException"}
    is_broad = handler.type is None or (isinstance(handler.type, ast.Name) and handler.type.id in names)
    return is_broad and not any(isinstance(node, ast.Call | ast.Raise) for node in ast.walk(handler))


@pytest.mark.parametrize(
    ("body", "expected"), [("pass", True), ("return None", True), ("raise", False), ("log.exception('x')", False)]
)
def test_the_rule_about_exceptions_finds_something(body: str, expected: bool) -> None:
    tree = ast.parse(f"def f():\n try:\n  g()\n except Exception:\n  {body}")
    (handler,) = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    assert swallows(handler) is expected


def test_every_module_says_what_it_is_about() -> None:
    silent = [relative(path) for path in python_files("qmux", "supervisor") if not ast.get_docstring(parsed(path))]
    assert not silent
