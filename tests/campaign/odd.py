"""Odd values, and ways to spoil bytes, texts and plain data. All is drawn from the generator that is given."""

import json
from collections.abc import Callable
from typing import Any

from numpy.random import Generator

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        0.5,
        -0.5,
        5,
        17,
        1000,
        10**9,
        10**18,
        10**30,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        " ",
        "x",
        "auto",
        "none",
        "null",
        "yes",
        "010",
        "1_000",
        "1:30",
        "1e3",
        "2020-01-01",
        "20240131",
        "0x10",
        "1,5",
    ),
    *(
        "é",
        "Tom &amp; Jerry",
        "1/2 ½ ﬁ",
        "</s>",
        "<s>",
        "<|endoftext|>",
        "{value}",
        "{value:>99}",
        "{value!r}",
        "{",
        "([",
    ),
    *(
        "a\nb",
        "a\tb",
        "a\rb",
        "a\0b",
        "\x1b]0;title\x07",
        "\u200b",
        "\u202e",
        "\ud800",
        "\U0001f600",
        "x" * 10_000,
        "\\",
        '"',
        "'",
    ),
    *(
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "/nowhere/at/all",
        "~",
        "*.csv",
        "[1]",
        "a=1/b.csv",
        ".",
        "-",
        "--help",
        "hf://x",
        "pypi://x",
    ),
    *([], {}, [[]], [None], {"x": 1}, ["x", "x"], [1, "a", None], {"": ""}, [[["deep"]]]),
]
SNIPPETS = [
    *(
        '!!int ""',
        "!!int x",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!binary x",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
    ),
    *(
        "!!python/object:os.system x",
        "!secret x",
        "&a [*a]",
        "*nope",
        "&a {x: *a}",
        "<<: {seed: 1}",
        "=",
        "? [a]\n: b",
        "? {a: b}\n: c",
    ),
    *(
        "[" * 100 + "]" * 100,
        "{a: " * 50 + "1" + "}" * 50,
        "9" * 5000,
        "0x" + "f" * 5000,
        "1e400",
        ".nan",
        ".inf",
        "-.inf",
        "0o17",
        "010",
    ),
    *(
        "1:30:00",
        "1_000",
        "0b1",
        "2020-13-45",
        "2020-01-01T00:00:00Z",
        "|\n  a\n  b",
        ">\n  a\n",
        '"\\uD800"',
        '"\\0"',
        "'a\n\n b'",
        "%YAML 9.9",
    ),
    *(
        "--- a\n--- b",
        "a: b: c",
        "- - - a",
        "\t",
        "@x",
        "`x`",
        "{",
        "[",
        '"',
        "'",
        "#",
        "x: 1\nx: 2",
        "\x85",
        "\u2028",
        "\ufeff",
        "\x07",
    ),
]


def one(random: Generator, values: Any) -> Any:
    """An element of a list, text or bytes."""
    return values[int(random.integers(len(values)))]


def broken_bytes(random: Generator, content: bytes) -> bytes:
    """The bytes with one kind of damage."""
    n = len(content)
    a, b = sorted(int(i) for i in random.integers(0, n + 1, 2))
    kinds: list[Callable[[], bytes]] = [
        lambda: content[:a],
        lambda: content[a:],
        lambda: content[:a] + content[b:],
        lambda: content[:a] + content[a:b] * 2 + content[b:],
        lambda: b"",
        lambda: b"\0" * n,
        lambda: content[:a] + random.bytes(8) + content[a:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("utf-8", "replace").encode("utf-16"),
        lambda: content + content,
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.replace(b"\n", b"\r\n", n // 100),
        lambda: content + one(random, ODD_BYTES),
        lambda: _flipped(random, content),
        lambda: _flipped(random, content),
    ]
    return one(random, kinds)()


ODD_BYTES = [b"\xff", b"\0", b"\n\n", b'"', b"{", b"\x80abc\n", b"\r", b"\xed\xa0\x80", b"a" * 100_000, b"\x1a"]


def _flipped(random: Generator, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(int(random.integers(1, 4)) if out else 0):
        out[int(random.integers(len(out)))] = int(random.integers(256))
    return bytes(out)


def broken_lines(random: Generator, text: str) -> str:
    """The text with lines taken out, doubled, exchanged, indented or replaced."""
    lines = text.splitlines() or [""]
    i, j = (int(n) for n in random.integers(0, len(lines), 2))
    kind = int(random.integers(6))
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(j, lines[i])
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 3:
        lines[i] = one(random, ["  ", " ", "\t", "- ", "? "]) + lines[i]
    elif kind == 4:
        at = int(random.integers(len(lines[i]) + 1))
        lines[i] = lines[i][:at] + one(random, SNIPPETS) + lines[i][at:]
    else:
        key, colon, _ = lines[i].partition(":")
        lines[i] = f"{key}{colon} {one(random, SNIPPETS)}"
    return "\n".join(lines) + "\n"


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within plain data, its own among them."""
    below = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [at, *(path for key, child in below for path in places(child, (*at, key)))]


def broken_value(random: Generator, value: Any) -> Any:
    """A copy of plain data with one value replaced, taken out, added, renamed or moved."""
    copy = json.loads(json.dumps(value))
    path = one(random, places(copy))
    if not path or random.random() < 0.05:
        return one(random, VALUES)
    section = copy
    for key in path[:-1]:
        section = section[key]
    key, kind = path[-1], int(random.integers(8))
    if kind == 0:
        del section[key]
    elif kind == 1 and isinstance(section, dict):
        section[one(random, [f"{key}x", f"{key}"[:-1], "x", "", "token", "é", "a\0b", "x" * 5000])] = section.pop(key)
    elif kind == 2 and isinstance(section, dict):
        section[one(random, ["x", "password", key, "extends"])] = one(random, VALUES)
    elif kind == 3:
        section[key] = [section[key]] * int(random.integers(1, 3))
    elif kind == 4 and isinstance(section[key], int | float):
        section[key] = section[key] * one(random, [-1, 10, 1000, 10**12, 0, 1.5])
    else:
        section[key] = one(random, VALUES)
    return copy
