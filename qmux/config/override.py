"""What the command line says over the file: ``--workers``, ``--engine``, ``--log-level``, ``--log-format``."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from qmux.config.loaded import Loaded
from qmux.config.schema import MAX_WORKERS, EngineName, LogFormat, LogLevel
from qmux.errors import UsageError


def with_overrides(
    loaded: Loaded,
    *,
    workers: int | Literal["auto"] | None = None,
    engine: str | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
) -> Loaded:
    """``loaded`` with what is not None put in place of the file's. Raises UsageError for a value that cannot be."""
    config = loaded.config
    process: dict[str, Any] = {}
    if workers is not None:
        process["workers"] = _workers(workers)
    if engine is not None:
        process["engine"] = _one_of("--engine", engine, get_args(EngineName))
    log: dict[str, Any] = {}
    if log_level is not None:
        log["level"] = _one_of("--log-level", log_level, get_args(LogLevel))
    if log_format is not None:
        log["format"] = _one_of("--log-format", log_format, get_args(LogFormat))
    config = msgspec.structs.replace(
        config,
        process=msgspec.structs.replace(config.process, **process),
        log=msgspec.structs.replace(config.log, **log),
    )
    return msgspec.structs.replace(loaded, config=config)


def _workers(workers: int | str) -> int | None:
    if workers == "auto":
        return None
    if not isinstance(workers, int) or not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f'--workers {workers}: write a number from 1 to {MAX_WORKERS}, or "auto"')
    return workers


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"{option} {value}: choose one of {', '.join(choices)}")
    return value
