"""``qmux demo``: a whole deployment on this machine, from certificates to an answer through the tunnel."""

from __future__ import annotations

import click

EXAMPLE = """\b
Example:
  qmux demo
  qmux demo --once                 exit after the first answer
"""


@click.command(epilog=EXAMPLE)
@click.option("--once", is_flag=True, help="Exit after the first answer instead of waiting for Ctrl-C.")
def command(once: bool) -> int:
    """Try QMux: run a server, two clients and a sample web service on this machine, in a temporary directory."""
    import asyncio

    from qmux.cli.demo_run import run

    return asyncio.run(run(once=once))
