"""``qmux demo``: it answers, it stays, it cleans up, and it says what failed."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import arguments, run
from tests.waiting import until, until_line


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name, as TMPDIR of the demo."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="q") as name:
        yield Path(name)


def processes_of(folder: str) -> list[str]:
    """The command lines that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if folder in words:
            found.append(words)
    return found


def test_once_ends_after_the_first_answer_and_leaves_nothing(folder: Path) -> None:
    done = run("qmux", "demo", "--once", env={"TMPDIR": str(folder)}, timeout_s=60)
    assert done.returncode == 0, done.stderr
    for client in ("client-1", "client-2"):
        assert re.search(rf"through the tunnel, \d+ ms: Hello from the service behind {client}", done.stdout)
    assert re.search(r"The tunnel answered \d+\.\d s after the start", done.stdout)
    assert list(folder.iterdir()) == []
    assert processes_of(str(folder)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_until_a_signal_and_then_cleans_up(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        ["env", f"TMPDIR={folder}", *arguments("qmux", "demo")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = until_line(process, lambda line: "Ctrl-C" in line)
        url = next(line.split()[-1] for line in lines if line.startswith("Point a browser"))
        config = next(line.split()[-1] for line in lines if "qmux status" in line)
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b"Hello from the service" in answer.read()
        until(lambda: run("qmux", "status", "-c", config).stdout.count("client-") >= 2, "both clients in the status")
        assert len(processes_of(str(folder))) >= 3
    finally:
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "stopping\n")
    assert list(folder.iterdir()) == []
    assert processes_of(str(folder)) == []


def test_it_can_be_stopped_before_it_answers(folder: Path) -> None:
    process = subprocess.Popen(
        ["env", f"TMPDIR={folder}", *arguments("qmux", "demo")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until_line(process, lambda line: "client-2" in line)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "stopping\n")
    assert list(folder.iterdir()) == []
    assert processes_of(str(folder)) == []


def test_a_temporary_directory_with_a_long_name_is_no_hindrance(folder: Path) -> None:
    parent = folder / ("x" * 100)
    parent.mkdir()
    done = run("qmux", "demo", "--once", env={"TMPDIR": str(parent)}, timeout_s=60)
    assert done.returncode == 0, done.stderr


def test_a_part_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").write_text("")
    done = run("qmux", "demo", "--once", env={"PYTHONPATH": str(tmp_path)}, timeout_s=60)
    assert done.returncode == 1
    # Whichever part ends first: all of them find it.
    assert re.search(r"(server|client-\d) ended with exit code 4; its log:", done.stderr), done.stderr
    assert "another package named supervisor is installed" in done.stderr
