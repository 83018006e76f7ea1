"""Nothing waits for who reads the log, and nothing is lost without a word."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmux import log as qmux_log
from qmux.log import writer as writer_module
from qmux.log.handler import FLUSH_S
from qmux.log.lines import MAX_LINE_BYTES
from qmux.log.writer import MAX_QUEUED_BYTES, Writer
from tests.log.made import Written
from tests.waiting import until

log = logging.getLogger("qmux.test")

SOON_S = 5.0
"""Far above what anything here takes on a busy machine, far below for ever."""


class Pipe:
    """A pipe that nobody reads until ``read_all``."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.got = b""
        self._thread: threading.Thread | None = None

    def fill(self) -> None:
        """Nothing more fits, as after some hundred lines that nobody read."""
        os.set_blocking(self.writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"-" * 4095 + b"\n")
        os.set_blocking(self.writer, True)

    def read_all(self) -> None:
        """From now on somebody does."""

        def run() -> None:
            while data := os.read(self.reader, 65536):
                self.got += data

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def lines(self) -> list[str]:
        return [line for line in self.got.decode().split("\n")[:-1] if not line.startswith("---")]

    def close(self) -> None:
        if self._thread is None:
            self.read_all()
        assert self._thread is not None
        os.close(self.writer)
        self._thread.join(SOON_S)
        os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for handler in logging.getLogger().handlers:
        if isinstance(handler, qmux_log.LogHandler):
            handler.writer.close()
    pipe.close()


def configure(fd: int) -> None:
    qmux_log.configure("info", "human", "worker-0", fd)


def flush() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()


def number_of(line: str) -> int:
    match = re.search(r"line (\d+)", line)
    assert match is not None, line
    return int(match[1])


def test_a_reader_that_stopped_holds_nobody_and_is_told_what_it_missed(pipe: Pipe) -> None:
    pipe.fill()
    configure(pipe.writer)
    count = MAX_QUEUED_BYTES // 100
    started = time.monotonic()
    for number in range(count):
        log.info(f"line {number}")
    assert time.monotonic() - started < SOON_S
    pipe.read_all()
    until(lambda: "log lines were lost" in pipe.got.decode(), "the loss is said", SOON_S)
    log.info(f"line {count}")
    until(lambda: f"line {count}" in pipe.got.decode(), "it flows again", SOON_S)
    *written, loss, last = pipe.lines
    numbers = [number_of(line) for line in written]
    assert numbers == list(range(len(numbers)))
    assert f"count={count - len(numbers)} reason=" in loss
    assert number_of(last) == count


def test_the_loss_is_said_where_it_was(pipe: Pipe) -> None:
    """Lines that were taken again, before the reader came to the end of the first ones."""
    writer = Writer(pipe.writer, lambda count, reason: f"lost {count}")
    pipe.fill()
    big = "x" * 4000
    while not writer._dropped:
        writer.put(big)
    pipe.read_all()
    until(lambda: writer._put_bytes - writer._done_bytes < MAX_QUEUED_BYTES / 2, "room again", SOON_S)
    writer.put("after")
    assert writer.flush(SOON_S)
    writer.close()
    until(lambda: pipe.lines[-1:] == ["after"], "all read", SOON_S)
    assert pipe.lines[-2] == "lost 1"


def test_processes_that_share_a_pipe_tear_no_line(pipe: Pipe) -> None:
    writers = [Writer(pipe.writer, lambda count, reason: f"lost {count}") for _ in range(4)]
    pipe.fill()
    for _ in range(20):
        for name, writer in zip("abcd", writers, strict=True):
            writer.put(name * MAX_LINE_BYTES)
            writer.put("\n".join([name * (MAX_LINE_BYTES // 3)] * 4))
    pipe.read_all()
    for writer in writers:
        assert writer.flush(SOON_S)
        writer.close()
    until(lambda: len(pipe.lines) == 20 * 4 * 5, "all lines", SOON_S)
    assert all(len(set(line)) == 1 for line in pipe.lines)


def test_a_descriptor_that_another_made_non_blocking(pipe: Pipe) -> None:
    pipe.fill()
    configure(pipe.writer)
    os.set_blocking(pipe.writer, False)
    for number in range(5):
        log.info("line %d", number)
    pipe.read_all()
    until(lambda: len(pipe.lines) == 5, "all lines", SOON_S)
    assert not os.get_blocking(pipe.writer), "it is not ours to change"


def test_a_reader_that_is_gone_costs_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    configure(writer)
    os.close(writer)
    log.info("nobody hears")
    flush()


def test_what_was_lost_before_a_rotation_is_told_after_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    configure(writer)
    for number in range(3):
        log.info("line %d", number)
    os.close(writer)
    written = Written()
    configure(written.fd)
    log.info("line 3")
    loss, line = written.lines
    assert 'log lines were lost  count=3 reason="Broken pipe"' in loss
    assert number_of(line) == 3


def test_without_a_descriptor_to_spare_it_writes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(fcntl, "fcntl", none_left)
    written = Written()
    configure(written.fd)
    log.info("line 1")
    assert number_of(written.text) == 1
    configure(written.fd)
    log.info("line 2")
    assert [number_of(line) for line in written.lines] == [1, 2]


def test_a_closed_descriptor_costs_lines_only() -> None:
    written = Written()
    os.close(written.fd)
    configure(written.fd)
    log.info("nobody hears")
    flush()


def test_a_target_that_is_stuck_does_not_hold_the_next_one(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "HANDOVER_S", 0.05)
    pipe.fill()
    configure(pipe.writer)
    log.info("first")
    written = Written()
    configure(written.fd)
    log.info("second")
    assert written.text.endswith("second\n")
    pipe.read_all()
    until(lambda: [line[-5:] for line in pipe.lines] == ["first"], "what the old one had is not lost", SOON_S)


def test_the_old_target_is_finished_first() -> None:
    """A log that is reopened without a rotation is the same file."""
    written = Written()
    configure(written.fd)
    for number in range(100):
        log.info(f"line {number}")
    again = Written()
    configure(again.fd)
    os.dup2(written.fd, again.fd)
    for number in range(100, 200):
        log.info(f"line {number}")
    assert [number_of(line) for line in written.lines + again.lines][:100] == list(range(100))


# --- whole processes ---


def python(code: str, *arguments: str, stderr: int, timeout_s: float = 20.0) -> subprocess.CompletedProcess[bytes]:
    start = (
        "import logging, os, resource, sys, threading\n"
        "from qmux import log as qmux_log\n"
        "qmux_log.configure('info', 'human', 'test')\n"
        "qmux_log.log_uncaught()\n"
        "log = logging.getLogger('test')\n"
    )
    return subprocess.run([sys.executable, "-c", start + code, *arguments], stderr=stderr, timeout=timeout_s)


@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("log.error('the end')", 0),
        ("log.error('the end'); raise RuntimeError('a defect')", 1),
        ("log.error('the end'); qmux_log.say('last words'); sys.exit(4)", 4),
        ("log.error('the end'); logging.shutdown(); os._exit(3)", 3),
    ],
)
def test_an_end_waits_for_no_reader(pipe: Pipe, code: str, returncode: int) -> None:
    pipe.fill()
    started = time.monotonic()
    assert python(code, stderr=pipe.writer).returncode == returncode
    assert time.monotonic() - started < SOON_S + 4 * FLUSH_S


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("log.error('the end')", "error   test        the end"),
        ("raise RuntimeError('a defect')", "RuntimeError: a defect"),
        ("qmux_log.say('last words'); os._exit(3)", "last words"),
        ("threading.Thread(target=lambda: 1 / 0).start()", "ZeroDivisionError: division by zero"),
        ("log.error('before'); os.fork() or (log.error('child'), logging.shutdown(), os._exit(0)); os.wait()", "child"),
        ("for n in range(500): log.error(f'line {n}')", "error   test        line 499"),
    ],
)
def test_the_last_lines_arrive(code: str, last: str) -> None:
    written = Written()
    python(code, stderr=written.fd)
    assert written.lines[-1].endswith(last)
    assert written.text.count(last) == 1


def test_a_full_disk_costs_lines_which_are_counted(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a disk that is full within a line, and has room later."""
    path = tmp_path / "log"
    code = (
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))\n"
        "for n in range(20): log.error(f'line {n} ' + 'x' * 100)\n"
        "for each in logging.getLogger().handlers: each.flush()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "log.error('line 20 again')\n"
    )
    with path.open("ab") as file:
        assert python(code, stderr=file.fileno()).returncode == 0
    *whole, torn, loss, again = path.read_text().splitlines()
    assert [number_of(line) for line in whole] == list(range(len(whole)))
    assert len(whole) > 3
    assert not torn.endswith("x" * 100)
    assert f'log lines were lost  count={20 - len(whole)} reason="File too large"' in loss
    assert again.endswith("line 20 again")


def test_a_signal_does_not_cut_a_line(pipe: Pipe) -> None:
    pipe.fill()
    configure(pipe.writer)
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        for number in range(3):
            log.info("line %d", number)
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    pipe.read_all()
    until(lambda: [number_of(line) for line in pipe.lines] == [0, 1, 2], "all lines", SOON_S)
