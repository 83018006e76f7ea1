"""Installs what the systems under test and the load generators need: ``python -m loadtest --prepare``.

What Debian has packages for is left to ``scripts/test-tools``; rathole is built from crates.io into ``loadtest/cache``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from loadtest.processes import CACHE
from loadtest.system import StartFailed

RATHOLE = "0.5.0"

# Without its default features, and with newer dependencies than it was locked with: neither of the two ``time`` crates
# that these bring is accepted by the compilers of today. Plain TCP and Noise need nothing of it.
FEATURES = ("--no-default-features", "--features", "server,client,noise")

TOOLS = Path(__file__).parent.parent / "scripts" / "test-tools"


def prepare(say: Callable[[str], None]) -> None:
    """Install what is missing, and say what cannot be. Raises StartFailed where a build fails."""
    subprocess.run([str(TOOLS)], stdin=subprocess.DEVNULL, check=False)
    if (CACHE / "bin" / "rathole").exists():
        return
    cargo = shutil.which("cargo")
    if cargo is None:
        say("rathole is left out: no cargo to build it with (https://rustup.rs)")
        return
    say(f"Building rathole {RATHOLE}: some minutes, once.")
    command = [cargo, "install", "rathole", "--version", RATHOLE, *FEATURES, "--root", str(CACHE), "--quiet"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise StartFailed(f"rathole does not build:\n{done.stderr[-2000:]}")
