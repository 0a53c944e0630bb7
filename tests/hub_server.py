"""A Hub on the loopback interface: enough of its protocol for `hf_hub_download`, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2}
_REASONS = {"GatedRepo": 403, "RepoNotFound": 401, "RevisionNotFound": 404, "EntryNotFound": 404}


@dataclass
class Repository:
    """
    One repository and how it answers.

    Attributes:
        files: File name -> contents.
        revisions: Branches that exist.
        error: A value of X-Error-Code, or an HTTP status, that every request gets instead.
        headers: More headers of an error.
        behaviour: What goes wrong with the body: `truncated`, `slow`, `trickle`, `no-etag`, `no-commit`, `redirect`, `huge`.
        listing: What the listing says besides the files.
    """

    files: dict[str, bytes] = field(default_factory=lambda: {"config.json": json.dumps(LLAMA).encode()})
    revisions: tuple[str, ...] = ("main", COMMIT)
    error: str | int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    behaviour: str = ""
    listing: dict[str, Any] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    """The server: its repositories, and the requests that it saw as `METHOD path`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        if path.startswith("/api/models/"):
            self._list(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            name, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._resolve(name.removeprefix("moved/"), revision, file, moved=name.startswith("moved/"))
        else:
            self._fail("RepoNotFound")

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._fail("RepoNotFound")
        elif repository.error is not None:
            self._fail(repository.error, repository.headers)
        elif revision not in repository.revisions:
            self._fail("RevisionNotFound")
        else:
            return repository
        return None

    def _list(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        repository = self._repository(name, revision or "main")
        if repository is not None:
            siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
            listing = {"id": name, "sha": COMMIT, "siblings": siblings, "gated": False, "private": False, "tags": []}
            self._send(200, json.dumps(listing | repository.listing).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str, *, moved: bool) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if file not in repository.files:
            self._fail("EntryNotFound", {"X-Repo-Commit": COMMIT})
            return
        if repository.behaviour == "redirect" and not moved:
            self._send(307, b"", {"Location": f"/moved/{name}/resolve/{revision}/{file}"})
            return
        data = repository.files[file]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(data) & 0xFFFFFFFF:08x}"', "Accept-Ranges": "bytes"}
        if repository.behaviour in ("no-etag", "no-commit"):
            del headers["ETag" if repository.behaviour == "no-etag" else "X-Repo-Commit"]
        if repository.behaviour == "huge" and self.command == "HEAD":
            headers["X-Linked-Size"] = str(10**12)
        self._send(200, data, headers, repository.behaviour if self.command == "GET" else "")

    def _fail(self, error: str | int, headers: dict[str, str] | None = None) -> None:
        status = error if isinstance(error, int) else _REASONS[error]
        code = {} if isinstance(error, int) else {"X-Error-Code": error, "X-Error-Message": error}
        self._send(status, b'{"error": "no"}', {"Content-Type": "application/json", **code, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str], behaviour: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if behaviour == "slow":
            time.sleep(30)
        elif behaviour == "trickle":
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        elif behaviour == "truncated":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)


@contextlib.contextmanager
def serve() -> Iterator[HubServer]:
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
