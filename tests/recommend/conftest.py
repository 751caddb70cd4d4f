"""The models, histories and plain scores of the decoding tests."""

import json
from pathlib import Path

import pytest

from calrec_lite.data.domain import Domain
from tests.decode.conftest import causal, everything, exact, package, paths, prompts, towers, tree  # noqa: F401


@pytest.fixture
def users(tmp_path: Path, domain: Domain) -> Path:
    """60 lines: good ones, and one of each kind of bad."""
    titles = domain.catalogue.titles
    lines: list[bytes] = [
        json.dumps({"user": f"u{n}", "history": [titles[(n + j) % len(titles)] for j in range(n % 5)]}).encode()
        for n in range(60)
    ]
    lines[3] = b'{"user": "half'
    lines[4] = b""
    lines[9] = b'{"user": "no history"}'
    lines[10] = b'{"user": "text", "history": "a title"}'
    lines[20] = b'{"user": "latin", "history": ["caf\xe9"]}'
    lines[21] = b'{"user": "surrogate", "history": ["\\ud83d"]}'
    lines[30] = json.dumps({"user": "c", "history": [], "candidates": titles[:2]}).encode()
    lines[31] = b'{"user": "none", "history": [], "candidates": []}'
    lines[32] = b'{"user": "unknown", "history": [], "candidates": ["no such title"]}'
    lines[33] = json.dumps({"history": [titles[0]]}).encode()
    lines[34] = b"[" * 100_000
    path = tmp_path / "users.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path
