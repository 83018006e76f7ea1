"""The scanner against the parser: the same keys, and the lines that they were written on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from qmux.config.scanner import KeyPath, scan

SAMPLES = Path("conf")


def paths_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every key, table and array element of parsed TOML."""
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found |= paths_of(inner, (*path, index))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "a = 1",
        "a=1\nb=2\n",
        "a.b.c = 1\na.b.d = 2\na . e = 3\n",
        "[a]\nb = 1\n[a.c]\nd = 2\n",
        "[a.b.c]\nd = 1\n[a]\ne = 2\n",
        '["a b"."c.d"]\n"e = f" = 1\n\'g"h\' = 2\n',
        '"\\u00e4\\t\\"" = 1\n"" = 2\n',
        "[[a]]\nb = 1\n[[a]]\nb = 2\n[[a.c]]\nd = 3\n[a.c.e]\nf = 4\n[[a.c]]\nd = 5\n",
        "a = {b = 1, c.d = 2, e = {f = [1, {g = 2}]}}\nh = 3\n",
        "a = {}\nb = []\nc = [[], [[]], {}]\n",
        "a = [\n  1, # one ] }\n  2,\n\n  [3,\n 4], # x\n]\nb = 1\n",
        'a = ["]", "}", "#", \'[{\', "a\\"b]"]\nb = 1\n',
        'a = """\nb = 1\n[c]\n"""\nd = 1\n',
        'a = """x""""\nb = """y"""""\nc = """a "" b " c"""\nd = """\\""""\n',
        "a = '''\nb = 1\n'''\nc = ''''x''''\nd = '''''y'''''\n",
        'a = """\\\n   b = 1 \\\n  """\nc = 2\n',
        "a = 1979-05-27 07:32:00 # c = 1\nb = 07:32:00\nc = 1979-05-27T00:32:00.99-07:00\n",
        "a = +1_000\nb = -inf\nc = 0xDEAD\nd = 1e5\ne = true\n",
        'a = "b = 1 # c"\r\nd = "e"\r\n[f]\r\ng = 1\r\n',
        "  [ a . b ] # x\n\t c  =  1\n",
        '[a]\nb = [ { c = 1 }, { c = 2, d = """x\ny""" } ]\ne = 1\n',
        "a = [1, 2, 3,]\nb = [{c=1},]\n",
        "3.14 = 1\n1e5 = 2\n-x- = 3\n",
    ],
)
def test_finds_the_keys_that_the_parser_finds(text: str) -> None:
    assert set(scan(text.replace("\r\n", "\n"))) == paths_of(tomli.loads(text))


@pytest.mark.parametrize("file", sorted(SAMPLES.rglob("*.toml")), ids=lambda file: file.name)
def test_finds_the_keys_of_every_sample(file: Path) -> None:
    text = file.read_text()
    try:
        tree = tomli.loads(text)
    except tomli.TOMLDecodeError:
        assert file.name.startswith("not-toml")
        return
    assert set(scan(text)) == paths_of(tree)


def test_lines() -> None:
    text = (
        "# x\n[a]\nb = 1\n\n[a.c]\nd = [\n  1,\n  2,\n]\ne = '''\n\n'''\nf.g = 1\n[[h]]\ni = 1\n[[h]]\ni = {j =\t2}\n"
    )
    lines = scan(text)
    assert lines[("a",)] == 2
    assert lines["a", "b"] == 3
    assert lines["a", "c"] == 5
    assert lines["a", "c", "d"] == 6
    assert lines["a", "c", "d", 1] == 8
    assert lines["a", "c", "e"] == 10
    assert lines["a", "c", "f", "g"] == 13
    assert lines["h", 0, "i"] == 15
    assert lines["h", 1] == 16
    assert lines["h", 1, "i", "j"] == 17


def test_a_table_is_where_its_own_header_is() -> None:
    assert scan("[a.b]\nc = 1\n[a]\nd = 1\n")[("a",)] == 3


# Documents are generated as text from a tree, with each construct that TOML has for it drawn at random.

BARE = st.text("abcXYZ019_-", min_size=1, max_size=4)
ANY_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), include_characters='\t"#[]{}=.,\\'), max_size=6
)


def basic(text: str) -> str:
    quoted = [f"\\u{ord(c):04X}" if c in '"\\' or (not c.isprintable() and c < "\U00010000") else c for c in text]
    return f'"{"".join(quoted)}"'


KEYS = st.one_of(BARE, ANY_TEXT.map(basic), BARE.map(lambda key: f"'{key}'"))
LITERAL = st.text('abc"#[]{}=,\\ ', max_size=6)
SCALARS = st.one_of(
    st.sampled_from(["1", "-0.5", "true", "inf", "0b1", "1979-05-27", "1979-05-27 07:32:00Z", "07:32:00", "1_0"]),
    ANY_TEXT.map(basic),
    LITERAL.map(lambda text: f"'{text}'"),
    st.text("abc\n#[]{}=, '", max_size=12).map(lambda text: f'"""{text}"""'),
    st.text('abc\n#[]{}=, "\\', max_size=12).map(lambda text: f"'''{text}'''"),
    st.sampled_from(['"""a""""', '"""a"""""', "'''a''''", '"""\\\n  a"""', '"""\\"\\""""', '"""a"b""c"""']),
)
GAPS = st.sampled_from(["", " ", "\n", " # ] } , = \n", "\t"])


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = [draw(GAPS) + item + draw(GAPS) for item in draw(st.lists(values, max_size=3))]
    return "[" + ",".join(items) + draw(st.sampled_from(["", ","] if items else [""])) + draw(GAPS) + "]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    return "{" + ", ".join(f"{key} = {draw(values)}" for key in keys) + "}"


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        name = draw(st.sampled_from([".", " . "])).join(draw(st.lists(KEYS, min_size=1, max_size=3)))
        header, end = draw(st.sampled_from([("[", "]"), ("[[", "]]"), (None, "")]))
        lines.append(f"{name} = {draw(VALUES)}" if header is None else f"{header}{name}{end}")
        lines.append(draw(st.sampled_from(["", "# x = 1", "   "])))
    return "\n".join(lines)


@settings(max_examples=400, deadline=None)
@given(documents())
def test_finds_the_keys_of_generated_documents(text: str) -> None:
    try:
        tree = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return  # a key twice, a table twice: the scanner is never asked
    assert set(scan(text)) == paths_of(tree)


@settings(max_examples=200, deadline=None)
@given(documents(), st.integers(0, 20))
def test_lines_move_with_what_stands_above(text: str, above: int) -> None:
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    moved = scan("# x\n" * above + text)
    assert moved == {path: line + above for path, line in scan(text).items()}
