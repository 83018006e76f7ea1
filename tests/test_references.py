"""What comments, docstrings and pages point to exists: files by their paths, sections of pages by their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

READ = ("qmux", "supervisor", "loadtest", "native/src", "tests", "conf", "deploy", "docs")
SUFFIXES = {".py", ".rs", ".md", ".toml", ".service"}

BASES = ("", "qmux", "native", "native/src", "docs")
"""Where a path may begin, besides the file that names it."""

PATH = re.compile(r"(?<![\w./~<{*-])((?:[a-z_][\w-]*/)+[\w-]+\.(?:py|rs|md|toml))(?![\w*{])")
SECTION = re.compile(r"(docs/[a-z]+\.md|[a-z]+\.md)(?:\)|`)*,? \"([^\"]+)\"")

OURS = ("qmux", "supervisor", "loadtest", "native", "tests", "conf", "docs", "deploy", "src", "scripts")
"""The first parts of paths of this project: those of other projects, and made ones in tests, are not looked for."""


def files() -> Iterator[Path]:
    yield ROOT / "README.md"
    for place in READ:
        yield from (path for path in sorted((ROOT / place).rglob("*")) if path.suffix in SUFFIXES)


def joined(text: str) -> str:
    """Comments over several lines as one line: a reference may be broken anywhere."""
    return re.sub(r"\s*\n\s*(?:#|//[/!]?)?\s*", " ", text)


FILES = {path: path.read_text() for path in files() if path != Path(__file__)}


def test_there_is_something_to_check() -> None:
    named = [match for text in FILES.values() for match in PATH.findall(text)]
    assert len(named) > 50


def missing_paths(path: Path, text: str) -> list[str]:
    """Those that are named in ``text``, which stands in ``path``, and are not there."""
    places = [path.parent, *(ROOT / base for base in BASES)]
    ours = (named for named in PATH.findall(text) if named.split("/")[0] in OURS)
    return [named for named in ours if not any((place / named).is_file() for place in places)]


def missing_sections(path: Path, text: str) -> list[str]:
    """Pages and their sections that are not there; and what points to a page outside of this project."""
    missing = re.findall(r"\b(?:design|facts|surface)(?:\.md)?,? §\d+", text)
    for page, title in SECTION.findall(joined(text)):
        found = next((place / page for place in (path.parent, ROOT, ROOT / "docs") if (place / page).is_file()), None)
        if found is None:
            missing.append(page)
        elif not re.search(rf"^(#+ |\*\*){re.escape(title)}", found.read_text(), re.MULTILINE):
            missing.append(f'{page}, "{title}"')
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_is_there(path: Path) -> None:
    assert missing_paths(path, FILES[path]) == []
    assert missing_sections(path, FILES[path]) == []


@pytest.mark.parametrize(
    "text",
    [
        "# See qmux/nowhere.py.",
        "(`supervisor/lost.py`)",
        '# (docs/architecture.md, "A section that is\n# not there")',
        '(docs/none.md, "Layers")',
        "by design §" + "5",
    ],
)
def test_what_is_not_there_is_found(text: str) -> None:
    assert missing_paths(ROOT / "README.md", text) + missing_sections(ROOT / "README.md", text) != []
