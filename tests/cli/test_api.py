"""Asking a daemon that does not answer as it should: always one line that says what is wrong."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qmux.cli import api
from qmux.errors import UnreachableError
from tests.cli.programs import run


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """One connection is answered with these bytes; None: with nothing, for as long as the test asks."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                with connection.makefile("rb") as request:  # all of it: whoever closes before gives its sender EPIPE
                    headers = http.client.parse_headers(request) if request.readline() else {}
                    request.read(int(headers.get("Content-Length", 0)))
                if answer is None:
                    done.wait(10)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        done.set()
        thread.join()


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http_answer(b"{}", "503 Service Unavailable"), "the daemon answered 503 Service Unavailable to /v1/status"),
        (http_answer(b"not json"), "no valid answer"),
        (http_answer(b"[1]"), "it is not an object"),
        (b"SSH-2.0-OpenSSH\r\n", "no valid answer"),
        (b"", "no valid answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "no valid answer"),
    ],
)
def test_a_strange_answer_is_unreachable(tmp_path: Path, answer: bytes, words: str) -> None:
    path = tmp_path / "admin.sock"
    with answering(path, answer), pytest.raises(UnreachableError, match=words) as caught:
        api.status(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_silence_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "STATUS_TIMEOUT_S", 0.3)
    path = tmp_path / "admin.sock"
    with answering(path, None), pytest.raises(UnreachableError, match="did not answer within"):
        api.status(path)


def test_a_good_answer_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with answering(path, http_answer(b'{"ok": true}')):
        assert api.reload(path, dry_run=True, full=False) == {"ok": True}


def test_nobody_there_is_exit_code_5(tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for path, words in ((tmp_path / "none.sock", "no such socket"), (dead, "nothing listens there")):
        for command in (["status"], ["status", "--json"], ["reload"], ["reload", "--dry-run"]):
            done = run("qmux", *command, "--socket", path)
            assert (done.returncode, words in done.stderr) == (5, True), done.stderr
