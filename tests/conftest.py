"""What every test may use: ``needs`` names the programs beside QMux that a test runs."""

from __future__ import annotations

import os
import shutil

import pytest

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
"""Servers such as haproxy and sshd are here, where a plain user's PATH has nothing."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*programs): skip where one of these programs is missing, and fail there where CI is set"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


def needs(*programs: str) -> None:
    """Skip this test where one of ``programs`` is missing; fail where CI is set, since there it must have run."""
    missing = [program for program in programs if find_program(program) is None]
    if not missing:
        return
    reason = f"not installed: {' '.join(missing)} (make test installs them as root on Debian)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def find_program(name: str) -> str | None:
    """The path of a program, also of one that only root has in its PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRECTORIES}")
