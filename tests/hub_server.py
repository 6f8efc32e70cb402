"""A small local server of the Hugging Face Hub's file interface: repositories, their commits, their files."""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """The server.

    url: its address. asked: the requests so far, "METHOD PATH". gated: repositories whose files need a login.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        self.gated: set[str] = set()
        self.down = False
        self.revisions: dict[tuple[str, str], dict[str, str]] = {}
        self.trees: dict[tuple[str, str], dict[str, bytes]] = {}

    def put(self, repo: str, files: dict[str, bytes], revision: str = "main", kind: str = "models") -> str:
        """Make a commit with these files, and let the revision be it. Returns the commit's hash."""
        files = {".gitattributes": b"", **files}  # which all repositories have
        commit = hashlib.sha1(repr((repo, sorted(files.items()))).encode()).hexdigest()
        self.trees[repo, commit] = files
        self.revisions.setdefault((kind, repo), {})[revision] = commit
        return commit


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD as the Hub does."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.down:
            return self.answer(503, b"")
        first, *rest = path.strip("/").split("/")
        if first == "api":
            kind, repo, *rest = rest[0], "/".join(rest[1:3]), *rest[3:]
        else:
            kind = "datasets" if first == "datasets" else "models"
            parts = rest if kind == "datasets" else [first, *rest]
            repo, rest = "/".join(parts[:2]), parts[2:]
        if (kind, repo) not in hub.revisions:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        what, revision, *rest = rest or ["revision", "main"]
        known = hub.revisions[kind, repo]
        if what == "revision":  # the name of a branch may have slashes
            revision, rest = "/".join([revision, *rest]), []
        commit = known.get(revision, revision)
        if (repo, commit) not in hub.trees:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = hub.trees[repo, commit]
        if what == "revision":
            return self.json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if what == "tree":
            entries = [{"type": "file", "path": name, "size": len(x), "oid": oid(x)} for name, x in files.items()]
            return self.json(entries)
        if repo in hub.gated:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        name = "/".join(rest)
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.answer(200, files[name], {"ETag": f'"{oid(files[name])}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def served() -> Iterator[Hub]:
    """A running server, which ends with the context."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
