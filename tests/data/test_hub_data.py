"""`hf://datasets/...` over real HTTP, from a small Hub on this machine: a file, and a folder by its reader's names."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
FILES = {
    "README.md": b"# films\n",
    "events.jsonl": b'{"user": "u", "item": "a", "title": "Tea"}\n{"user": "u", "item": "b", "title": "Cup"}\n',
    "small/ratings.csv": b"userId,movieId,rating,timestamp\n1,7,5.0,978300760\n1,31,3.5,978300750\n",
    "small/movies.csv": b"movieId,title,genres\n7,Noir (1995),Action|Drama\n31,Old (1990),Comedy\n",
    "small/tags.csv": b"not wanted\n",
    "large/ratings.csv": b"not wanted\n",
}


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        head = f"/datasets/owner/films/resolve/{COMMIT}/"
        name = path.replace("/resolve/main/", f"/resolve/{COMMIT}/").removeprefix(head)
        if path.startswith("/api/datasets/owner/films/revision/"):
            siblings = [{"rfilename": file} for file in FILES]
            body, kind = json.dumps({"id": "owner/films", "sha": COMMIT, "siblings": siblings}).encode(), "json"
        elif path.startswith("/api/datasets/owner/films/tree/"):
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in FILES.items()
            ]
            body, kind = json.dumps(tree).encode(), "json"
        elif name in FILES:
            body, kind = FILES[name], "octet-stream"
            self.server.sent.append(name)  # type: ignore[attr-defined]
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.sent = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


CODE = """
import json, sys
from calrec_lite.data.prepare import prepare
from calrec_lite.errors import InputError
from calrec_lite.recipe import DomainSpec
for reader, place in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        domain = prepare("d", DomainSpec(reader=reader, interactions=place, min_user_events=1), 0)
        print(json.dumps(domain.catalogue.titles))
    except InputError as error:
        print(error)
"""


def prepared(tmp_path: Path, hub: ThreadingHTTPServer, *arguments: str, offline: str = "0") -> list[str]:
    """In a process of its own: huggingface_hub reads its environment once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    hf = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env={**clean, **hf}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_file_and_a_readers_folder(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    where = ["table", "hf://datasets/owner/films/events.jsonl", "movielens", "hf://datasets/owner/films/small/"]
    read = ['["Cup", "Tea"]', '["Noir (1995)", "Old (1990)"]']
    assert prepared(tmp_path, hub, *where) == read
    assert set(hub.sent) == {"events.jsonl", "small/ratings.csv", "small/movies.csv"}  # type: ignore[attr-defined]
    assert prepared(tmp_path, hub, *where, offline="1") == read  # out of the cache
    wrong = ["movielens", f"hf://datasets/owner/films@{COMMIT}/none/", "table", "hf://datasets/owner/films/small/"]
    first, second, third = prepared(tmp_path, hub, *wrong, "table", "hf://datasets/owner/films/no.csv")
    assert first == f"{wrong[1]}: holds none of the reader's files (u.data, u.data.gz, u.data.zst, u.data.zip, ...)"
    assert second == f"{wrong[3]}: write it as hf://datasets/OWNER/NAME/FILE or hf://OWNER/NAME/FILE"
    assert third.startswith("hf://datasets/owner/films/no.csv: cannot be had from the Hub (")
