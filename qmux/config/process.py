"""What ``[server]`` and ``[client]`` share, and ``[log]``, ``[admin]``, ``[tls]``: the keys of any daemon."""

from __future__ import annotations

from pathlib import Path

from qmux.config.accounts import AccountError, find_group, find_user
from qmux.config.addresses import AddressError
from qmux.config.directories import check_runtime_dir, default_runtime_dir
from qmux.config.document import Document
from qmux.config.keys import names_of
from qmux.config.schema import LogConfig, ProcessConfig, TlsFiles
from qmux.config.section import Names, Section
from qmux.paths import path_of, text_of

LOG_KEYS = Names(names_of(LogConfig))
PROCESS_KEYS = (*names_of(TlsFiles), *names_of(ProcessConfig, "tls"))

MAX_TEXT = 4096
"""A path of Linux has at most PATH_MAX bytes."""


def read_process(document: Document, section: Section, default_workers: int | None) -> ProcessConfig:
    """The ProcessConfig of ``[server]`` or ``[client]``."""
    return ProcessConfig(
        tls=_tls_files(document, section),
        user=_account(section, "user"),
        group=_account(section, "group"),
        runtime_dir=_runtime_dir(document, section),
        state_dir=_path(document, section, "state_dir"),
        **section.read(ProcessConfig, workers=default_workers),
    )


def read_log(document: Document) -> LogConfig:
    """``[log]``."""
    section = Section(document, ("log",)) if "log" in document.tree else None
    if section is None:
        return LogConfig()
    section.check_names(LOG_KEYS)
    return LogConfig(file=_path(document, section, "file"), **section.read(LogConfig))


def check_later_tables(document: Document) -> None:
    """Refuse what a later version reads: a key that is ignored would be a promise broken in silence."""
    for table, later in (("tls", ("denylist", "reload")), ("admin", ("bind", "token_file"))):
        if table in document.tree:
            Section(document, (table,)).check_names(Names((), later))
    if "authorization" in document.tree:
        document.add_name(("authorization",), "not available in this version; remove the table")


def _tls_files(document: Document, section: Section) -> TlsFiles:
    files = {name: _path(document, section, name) for name in ("bundle", "cert", "key", "ca")}
    parts = [name for name in ("cert", "key", "ca") if section.has(name)]
    if section.has("bundle") and parts:
        section.add("bundle", f"set beside {', '.join(parts)}; write either bundle, or cert, key and ca")
    elif not section.has("bundle") and section.exists:
        command = "issue server NAME" if section.path == ("server",) else "issue client NAME --service SERVICE"
        if not parts:
            text = f"missing; a certificate is always needed: bundle = FILE, as qmux pki {command} writes it"
            section.add_missing("bundle", text)
        elif missing := [name for name in ("cert", "key", "ca") if name not in parts]:
            section.add_missing(missing[0], f"missing; {' and '.join(parts)} alone will not do: or write bundle = FILE")
    return TlsFiles(**files)


def _path(document: Document, section: Section, key: str) -> str:
    """A path (``paths.text_of``), made absolute: a relative one is relative to the file, or the directory of files."""
    text = section.text(key)
    if len(text.encode()) > MAX_TEXT:
        section.add(key, f"a path has at most {MAX_TEXT} bytes")
        return ""
    return text_of((document.base / text).absolute()) if text else ""


def _runtime_dir(document: Document, section: Section) -> str:
    path = _path(document, section, "runtime_dir")
    try:
        check_runtime_dir(
            Path(path_of(path)) if path else default_runtime_dir(str(section.path[0]), text_of(document.source_path))
        )
    except AddressError as error:
        if path:
            section.add("runtime_dir", str(error))
        else:
            section.add_missing("runtime_dir", f"not set, and the default is too long: {error}")
    return path


def _account(section: Section, key: str) -> str:
    name = section.text(key)
    if not name:
        return ""
    try:
        if key == "user":
            find_user(name)
        else:
            find_group(name)
    except AccountError as error:
        section.add(key, str(error))
        return ""
    return name
