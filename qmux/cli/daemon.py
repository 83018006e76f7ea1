"""What ``qmuxd`` and ``qmuxc`` share: their options, the default file, and starting the supervisor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import click

from qmux.cli import machine
from qmux.errors import StartError, UsageError

if TYPE_CHECKING:
    from qmux.config.loaded import Loaded

SYSTEM_DIR = Path("/etc/qmux")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

LOG_LEVELS = ("debug", "info", "warning", "error")


Workers: TypeAlias = "int | Literal['auto'] | None"


def parse_workers(ctx: click.Context, param: click.Parameter, value: str | None) -> Workers:
    """``"auto"``, a number of processes, or None if the option is not given."""
    if value is None:
        return None
    if value == "auto":
        return "auto"
    if not value.isdecimal() or len(value) > 9:
        raise click.BadParameter(f'"{value}" is neither auto nor a number of processes', ctx, param)
    return int(value)


def options(command: Decorated) -> Decorated:
    """The options that both daemons have."""
    for option in (
        click.option("--log-format", type=click.Choice(["human", "json"]), help="Overrides [log] format."),
        click.option("--log-level", type=click.Choice(LOG_LEVELS), help="Overrides [log] level."),
        click.option("--check", is_flag=True, help="Check the configuration and exit, as `qmux check` does."),
        click.option(
            "--engine", type=click.Choice(["auto", "aioquic", "native"]), help="QUIC engine; overrides the file."
        ),
        click.option(
            "--workers",
            callback=parse_workers,
            metavar="auto|N",
            help="Number of worker processes; overrides the file.",
        ),
    ):
        command = option(command)
    return command


def one_file(files: Sequence[Path], config: Path | None) -> Path | None:
    """The configuration that is named, as an argument or with ``-c``; None where none is. Raises UsageError."""
    named = [*files, *([config] if config is not None else [])]
    if len(named) > 1:
        listed = ", ".join(str(path) for path in named)
        raise UsageError(f"{len(named)} configurations ({listed}); name one: a file, or a directory of files")
    return named[0] if named else None


def config_path(given: Path | None, role: Literal["server", "client"]) -> Path:
    """The file or directory to use. Raises UsageError if none is given and the default files do not exist."""
    if given is not None:
        return given
    places = (Path(f"{role}.toml"), SYSTEM_DIR / f"{role}.toml")
    for path in places:
        if path.exists():
            click.echo(f"using {path.absolute()}", err=True)
            return path
    raise UsageError(
        f"no configuration: neither ./{places[0]} nor {places[1]} exists; write one with `qmux init {role}`, "
        "or name one with -c FILE"
    )


def start(load: Callable[[], Loaded], *, check_only: bool) -> int:
    """Check the configuration, or run the supervisor with it until it ends. Returns the exit code."""
    if check_only:
        loaded = load()
        machine.check(loaded, loaded.config.source)
        for warning in loaded.warnings:
            click.echo(f"warning: {warning}", err=True)
        click.echo(f"{loaded.config.source}: ok")
        return 0
    if not sys.platform.startswith("linux"):
        raise StartError(
            f"QMux's daemons run on Linux only, this is {sys.platform}; use a container or a Linux machine"
        )
    return supervisor_run()(load)


def last_words(text: str) -> None:
    """Say what ended a daemon, where its log goes without a file; nobody who does not read it can hold its end up."""
    from qmux import log as qmux_log

    qmux_log.say(text)


def supervisor_run() -> Callable[[Callable[[], Loaded]], int]:
    """``supervisor.run.run`` of QMux. Raises StartError if another package has that name."""
    import supervisor

    if not getattr(supervisor, "IS_QMUX", False):
        raise StartError(
            f"another package named supervisor is installed ({supervisor.__file__}) and hides QMux's own; "
            "install QMux in an environment of its own: pipx install qmux"
        )
    from supervisor.run import run

    return run


def overridden(
    loaded: Loaded,
    workers: Workers,
    engine: str | None,
    log_level: str | None,
    log_format: str | None,
) -> Loaded:
    """``loaded`` with the options of the command line, which override the file."""
    from qmux.config.override import with_overrides

    return with_overrides(loaded, workers=workers, engine=engine, log_level=log_level, log_format=log_format)
