"""Every kind of mistake in ``conf/invalid``: the file says itself what it must be told, with its own line numbers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from qmux.config.load import load
from qmux.config.problems import MAX_SHOWN_PROBLEMS
from qmux.errors import ConfigError

FILES = sorted((Path(__file__).parents[2] / "conf" / "invalid").glob("*.toml"))


def expected(text: str) -> list[str]:
    return [match[1] for match in re.finditer(r"^# (\d+: .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_says_exactly_what_the_file_expects(file: Path, place: Path) -> None:
    shutil.copy(file, place / file.name)
    with pytest.raises(ConfigError) as caught:
        load(Path(file.name))
    lines = [f"{file.name}:{line}".replace("DIR", str(place)) for line in expected(file.read_text())]
    assert lines
    count = f"{len(lines)} error{'s' if len(lines) > 1 else ''} in {file.name}"
    assert str(caught.value).splitlines() == [*lines, count]


def test_problems_are_capped(place: Path) -> None:
    services = "".join(f'[services.s{n}]\nbind = "x"\n' for n in range(200))
    (place / "x.toml").write_text(f'[server]\nbundle = "server.pem"\n{services}')
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    assert len(caught.value.problems) == MAX_SHOWN_PROBLEMS + 1
    assert caught.value.problems[-1] == "x.toml: 100 more problems were left out"
