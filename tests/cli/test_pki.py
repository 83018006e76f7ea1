"""``qmux pki``: what it writes and says, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.programs import invoke, ok, run


def test_from_nothing_to_bundles(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    assert f"next: qmux pki issue server NAME --dir {pki}" in ok("pki", "init", "--dir", pki)
    text = ok("pki", "issue", "server", "t.example.com", "192.0.2.1", "--dir", pki)
    assert text.startswith(f"{pki}/t.example.com.pem: server t.example.com, 192.0.2.1, 365 days\n")
    text = ok("pki", "issue", "client", "pod-1", "--service", "a", "--service", "b", "--dir", pki)
    assert text.startswith(f"{pki}/pod-1.pem: client pod-1, may serve a, b, 365 days\n")
    assert sorted(path.name for path in pki.iterdir()) == ["ca.key", "ca.pem", "pod-1.pem", "t.example.com.pem"]


def test_it_works_in_the_current_directory(tmp_path: Path) -> None:
    assert run("qmux", "pki", "init", cwd=tmp_path).returncode == 0
    assert run("qmux", "pki", "issue", "server", "localhost", cwd=tmp_path).returncode == 0
    assert (tmp_path / "localhost.pem").exists()


def test_show_for_people_and_for_programs(tmp_path: Path) -> None:
    ok("pki", "init", "--dir", tmp_path)
    ok("pki", "issue", "client", "pod-1", "--service", "a", "--dir", tmp_path)
    text = ok("pki", "show", tmp_path / "pod-1.pem")
    facts = json.loads(ok("pki", "show", "--json", tmp_path / "pod-1.pem"))
    assert [fact["kind"] for fact in facts] == ["client", "CA"]
    for fact in facts:
        assert fact["fingerprint"] in text
    assert "services     a\n" in text
    assert "PRIVATE KEY" not in text
    assert json.loads(ok("pki", "show", "--json", tmp_path / "ca.pem"))[0]["kind"] == "CA"


def test_every_failure_has_its_code_and_no_traceback(tmp_path: Path) -> None:
    cases: list[tuple[int, str, tuple[str, ...]]] = [
        (3, "make a CA first: qmux pki init", ("issue", "server", "localhost")),
        (2, "Missing argument 'NAME...'", ("issue", "server")),
        (2, "name each: --service NAME", ("issue", "client", "pod-1")),
        (2, "cannot be a client name", ("issue", "client", "../x", "--service", "a")),
        (3, "x.pem: cannot be read", ("show", "x.pem")),
        (3, "server.toml: has no certificate", ("show", "server.toml")),
        (2, 'no such command "enrol"', ("enrol",)),
        (2, "enroll: not available in this version", ("enroll",)),
        (1, "file/pki: Not a directory", ("init", "--dir", "file/pki")),
    ]
    (tmp_path / "server.toml").write_text("[server]\n")
    (tmp_path / "file").write_text("")
    for code, line, words in cases:
        done = run("qmux", "pki", *words, cwd=tmp_path)
        assert (done.returncode, line in done.stderr) == (code, True), (words, done.stderr)
    run("qmux", "pki", "init", cwd=tmp_path)
    done = run("qmux", "pki", "init", cwd=tmp_path)
    assert (done.returncode, "exists already" in done.stderr) == (3, True)


def test_a_commands_own_example_works(tmp_path: Path) -> None:
    from qmux.cli import pki

    lines = [line.split()[1:] for line in pki.EXAMPLE.splitlines() if line.startswith("  qmux ")]
    assert len(lines) == 3
    for words in lines:
        done = run("qmux", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert invoke("pki", "show", tmp_path / "pki" / "pod-1.pem").exit_code == 0
