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
    "__main__": "run by tests/cli/test_help.py",
}

OWN_TASKS = {
    "qmux/tasks.py": "the one place that makes them",
    "qmux/relay/attempt.py": "has ended when its only caller gets the result",
    "qmux/cli/demo_run.py": "a command that waits for whichever comes first, and then ends",
}
"""Who may start a task without a TaskSet, and why."""

FIXED_WAITS = {
    "tests/waiting.py": "the poller, and faults that last for a time",
    "tests/aio.py": "the poller of coroutines",
    "tests/integration/churn.py": "users come and go when they like",
    "tests/integration/strangers.py": "clients leave at any point",
    "tests/integration/test_steering.py": "a pace that the other process can follow",
    "tests/quic/conftest.py": "the pace of the machine is measured",
    "tests/quic/test_pace.py": "the machine stands still",
    "tests/supervisor/test_steering.py": "nothing must happen",
    "tests/test_bus.py": "nothing must happen",
    "tests/worker/client/test_server_link.py": "nothing must happen, or not much",
    "tests/worker/test_signal.py": "nothing must happen",
}
"""Which tests wait for a time, where there is no state that they could wait for."""

OWN_LOOPS = {
    "tests/aio.py": "the one place that runs coroutines",
    "tests/bus_subscriber.py": "a program of its own",
    "tests/integration/services.py": "services in a thread beside the test",
    "tests/integration/test_network.py": "a network in a thread beside the test",
    "tests/quic/victim.py": "a program of its own",
    "tests/relay/exhausted.py": "a program of its own",
    "tests/relay/taker.py": "a program of its own",
}
"""Who may make an event loop, and why."""


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
    """There is one poller; who has to sleep all the same is in the list, and says on that line why."""
    wrong, found = [], set()
    for path in python_files("tests"):
        lines = path.read_text().splitlines()
        for call in sleeps(parsed(path)):
            found.add(relative(path))
            if "#" not in lines[call.lineno - 1]:
                wrong.append(f"{relative(path)}:{call.lineno}")
    assert not wrong, "\n".join(wrong)
    assert found == set(FIXED_WAITS)


def sleeps(tree: ast.Module) -> Iterator[ast.Call]:
    """Those that take time: ``sleep(0)`` is a turn of the loop."""
    for call in calls(tree, "sleep"):
        takes_none = bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
        if ast.unparse(call.func) in ("sleep", "time.sleep", "asyncio.sleep") and not takes_none:
            yield call


@pytest.mark.parametrize(
    ("code", "expected"),
    [("time.sleep(1)", 1), ("while x:\n await asyncio.sleep(0.1)", 1), ("sleep(x)", 1), ("asyncio.sleep(0)", 0)],
)
def test_the_rule_about_sleeps_finds_something(code: str, expected: int) -> None:
    assert len(list(sleeps(ast.parse(code)))) == expected


def test_coroutines_are_run_in_one_place() -> None:
    """Tests that are coroutines are run by the hook, others call ``tests.aio.run``."""
    makers = {"asyncio.run", "asyncio.Runner", "asyncio.new_event_loop", "uvloop.run", "uvloop.new_event_loop"}
    found = {
        relative(path)
        for path in python_files("tests")
        if any(ast.unparse(call.func) in makers for call in calls(parsed(path), "run", "Runner", "new_event_loop"))
    }
    assert found == set(OWN_LOOPS)


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
