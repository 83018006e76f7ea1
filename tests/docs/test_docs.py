"""What README, docs and deploy name is there, and what README says to type works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "loadtest/README.md", *(REPOSITORY / "docs").glob("*.md")])
UNITS = sorted((REPOSITORY / "deploy").glob("*.service"))
NAMED_FILE = re.compile(r"`((?:qmux|supervisor|loadtest|tests|conf|deploy|scripts)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
MADE = ("loadtest/out", "loadtest/cache")
"""Folders that come with the first run."""

COMMAND_S = 60.0


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert lost == []


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = [name for name in NAMED_FILE.findall(page.read_text()) if not name.startswith(MADE)]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_deployment_of_the_readme_can_be_typed(tmp_path: Path) -> None:
    """Every line of it in one folder, the daemons with ``--check``."""
    readme = (REPOSITORY / "README.md").read_text()
    block = readme.partition("## A deployment")[2].partition("```sh\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert [line.split()[0] for line in lines] == ["qmux"] * 3 + ["qmux", "qmuxd", "qmux", "qmuxc"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in lines:
        command = f"{line} --check" if line.startswith(("qmuxd", "qmuxc")) else line
        done = subprocess.run(
            command.split(),
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        for bundle in (tmp_path / "pki").glob("*.pem"):  # as the comments say: to the machine that needs it
            shutil.copy2(bundle, tmp_path)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("not installed: systemd-analyze")
    # It also looks for the programs, which are not installed here.
    text = re.sub(r"/opt/qmux/bin/\w+", "/bin/true", unit.read_text())
    (tmp_path / unit.name).write_text(text)
    for drop_in in unit.parent.glob(f"{unit.stem}-*.conf"):
        (tmp_path / f"{unit.name}.d").mkdir(exist_ok=True)
        shutil.copy(drop_in, tmp_path / f"{unit.name}.d")
    command = ["systemd-analyze", "verify", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stderr
    # What systemd 254 has, older ones say that they ignore it, as the comments in the units do.
    lines = [line for line in done.stderr.splitlines() if not re.search(r"RestartSteps|RestartMaxDelaySec", line)]
    assert [line for line in lines if "qmux" in line] == []
