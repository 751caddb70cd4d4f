"""A Hub on 127.0.0.1: the endpoints that a push needs, over real HTTP, with connections that can be cut.

Paths and payloads are those of huggingface_hub's `hf_api.py`, `_commit_api.py` and `lfs.py`; files of 10 kB or more
are LFS objects, as the real Hub decides by type and size. Refusals do the worst a server can: they quote the token.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

LFS_FROM = 10_000  # bytes


@dataclass
class Branch:
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Repository:
    private: bool
    branches: dict[str, Branch]


class Hub(ThreadingHTTPServer):
    """State of the server, which tests read and set.

    `cut_objects`: sha256 -> how many of its next PUTs are cut half-way. `cut_commits`: how many of the next commits
    are carried out but never answered. `taken_away`: a file that is removed once its upload is announced.
    `received`: sha256 of each object that arrived whole, in order.
    """

    daemon_threads = True

    def __init__(self, token: str, role: str = "write") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.role = token, role
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []
        self.cut_objects: Counter[str] = Counter()
        self.cut_commits = 0
        self.times_cut = 0
        self.requests: list[str] = []
        self.refuse_card = False
        self.taken_away: Path | None = None
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.path == "/api/whoami-v2":
            access = {"displayName": "test", "role": self.server.role}
            self._answer({"name": "me", "type": "user", "orgs": [], "auth": {"type": "t", "accessToken": access}})
        elif found := re.fullmatch(r"/api/(models|spaces)/(\w+/[\w.-]+)(?:/revision/([^/]+))?", self.path):
            name = _kept(*found.groups()[:2])
            if branch := self._branch(name, found[3] or "main"):
                siblings = [{"rfilename": name} for name in sorted(branch.files)]
                private = self.server.repositories[name].private
                head = (branch.commits or ["0" * 40])[-1]
                self._answer({"id": found[2], "private": private, "sha": head, "siblings": siblings})
        else:
            self._answer({"error": "no such endpoint"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._admitted():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            bad = {"errors": [{"message": "license is unknown"}], "warnings": []}
            self._answer(*((bad, 400) if self.server.refuse_card else ({"errors": [], "warnings": []},)))
        elif found := re.fullmatch(r"/(?:spaces/)?(\w+/[\w.-]+)\.git/info/lfs/objects/batch", self.path):
            self._answer({"transfer": "basic", "objects": [self._action(o) for o in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/(models|spaces)/(\w+/[\w.-]+)/(preupload|commit|branch)/([^/]+)", self.path):
            act = {"preupload": self._preupload, "commit": self._commit, "branch": self._make_branch}[found[3]]
            act(_kept(*found.groups()[:2]), unquote(found[4]), body)
        else:
            self._answer({"error": "no such endpoint"}, 404)

    def do_PUT(self) -> None:
        """An object's bytes. No token is asked for, as a bucket does: the address is signed."""
        self.server.requests.append(f"PUT {self.path}")
        sha, length = self.path.partition("?")[0].rpartition("/")[2], int(self.headers["Content-Length"])
        if self.server.cut_objects[sha] > 0:
            self.server.cut_objects[sha] -= 1
            self.server.times_cut += 1
            self.rfile.read(length // 2)
            self._hang_up()
            return
        data = self.rfile.read(length)
        if hashlib.sha256(data).hexdigest() != sha:
            self._answer({"error": "wrong checksum"}, 400)
            return
        self.server.objects[sha] = data
        self.server.received.append(sha)
        self._answer({})

    def _create(self, wanted: dict[str, Any]) -> None:
        is_space = wanted.get("type") == "space"
        if is_space != ("sdk" in wanted):  # a Space has to say what it is made with
            self._answer({"error": "a Space, and only a Space, has an sdk"}, 400)
            return
        name = _kept("spaces" if is_space else "models", f"{wanted['organization']}/{wanted['name']}")
        if wanted["organization"] != "me":
            self._answer({"error": f"You may not create a model here, {self.headers['Authorization']}"}, 403)
            return
        status = 409 if name in self.server.repositories else 200
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # huggingface_hub 1 says private
        self.server.repositories.setdefault(name, Repository(private, {"main": Branch({".gitattributes": b""})}))
        self._answer({"url": f"{self.server.url}/{name}"}, status)

    def _branch(self, repo: str, name: str) -> Branch | None:
        """The branch, or None after answering 404."""
        repository = self.server.repositories.get(repo)
        branch = repository.branches.get(unquote(name)) if repository else None
        if branch is None:
            code = "RevisionNotFound" if repository else "RepoNotFound"
            self._answer({"error": code}, 404, {"X-Error-Code": code})
        return branch

    def _make_branch(self, repo: str, name: str, body: bytes) -> None:
        if main := self._branch(repo, "main"):
            branches = self.server.repositories[repo].branches
            status = 409 if name in branches else 200
            branches.setdefault(name, Branch(dict(main.files), list(main.commits)))
            self._answer({}, status)

    def _preupload(self, repo: str, name: str, body: bytes) -> None:
        if branch := self._branch(repo, name):
            if self.server.taken_away:
                self.server.taken_away.unlink(missing_ok=True)
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["size"] >= LFS_FROM else "regular"
                old = branch.files.get(file["path"])
                known = {} if old is None else {"oid": _oid(old)}
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
            self._answer({"files": files})

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """How to send an object; nothing if it is here."""
        if wanted["oid"] in self.server.objects:
            return wanted
        href = f"{self.server.url}/bucket/{wanted['oid']}?X-Amz-Signature=signed"
        return {**wanted, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repo: str, name: str, body: bytes) -> None:
        branch = self._branch(repo, name)
        if branch is None:
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                branch.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branch.files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del branch.files[value["path"]]
        oid = hashlib.sha1(body + str(len(branch.commits)).encode()).hexdigest()
        branch.commits.append(oid)
        if self.server.cut_commits > 0:
            self.server.cut_commits -= 1
            self.server.times_cut += 1
            self._hang_up()
            return
        self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _admitted(self) -> bool:
        self.server.requests.append(f"{self.command} {self.path}")
        given = self.headers.get("Authorization", "")
        if given == f"Bearer {self.server.token}":
            return True
        self._answer({"error": f"Invalid credentials: {given}"}, 401)
        return False

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


def _kept(kind: str, repo: str) -> str:
    """The name in `repositories`: a model and a Space may have the same one."""
    return repo if kind == "models" else f"{kind}/{repo}"


def _oid(data: bytes) -> str:
    """As the Hub names a file's content: sha256 of an LFS object, else git's blob id."""
    if len(data) >= LFS_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
