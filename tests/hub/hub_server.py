"""A small hub server on localhost with the endpoints that huggingface_hub needs for downloads and uploads.

Repositories are folders; the commit of a repository is a hash of its files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse


class Hub:
    """Repository folders, requested paths and the server address."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.private: dict[str, bool] = {}
        self.url = ""

    def folder(self, repo: str) -> Path:
        return self.root / repo

    def files(self, repo: str) -> dict[str, bytes]:
        folder = self.folder(repo)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode())
        for name, content in self.files(repo).items():
            digest.update(name.encode() + content)
        return digest.hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    hub = Hub(root)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("api/models/"):
            user, name, *rest = path.removeprefix("api/models/").split("/")
            return self._describe(f"{user}/{name}", rest)
        pieces = path.split("/")
        if len(pieces) > 4 and pieces[2] == "resolve":
            return self._file("/".join(pieces[:2]), pieces[3], "/".join(pieces[4:]))
        return self._refuse(404, "")

    def _describe(self, repo: str, rest: list[str]) -> None:
        if not self._known(repo, rest[1] if len(rest) > 1 else "main"):
            return
        files = self.hub.files(repo)
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self._json(entries)
        siblings = [{"rfilename": name} for name in files]
        return self._json(
            {"id": repo, "sha": self.hub.commit(repo), "siblings": siblings, "private": False, "tags": []}
        )

    def _known(self, repo: str, revision: str) -> bool:
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif not self.hub.folder(repo).is_dir():
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", self.hub.commit(repo)):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not self._known(repo, revision):
            return
        content = self.hub.files(repo).get(name)
        headers = {"X-Repo-Commit": self.hub.commit(repo)}
        if content is None:
            return self._refuse(404, "EntryNotFound", headers)
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, headers | {"Content-Type": "application/octet-stream"})

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.requests.append(f"POST {path}")
        body = self._body()
        if path == "api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            self.hub.folder(repo).mkdir(parents=True, exist_ok=True)
            self.hub.private[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            return self._json({"url": f"{self.hub.url}/{repo}", "name": repo})
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        pieces = path.split("/")
        repo = "/".join(pieces[2:4])
        if pieces[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._json({"files": modes})
        if pieces[4:5] == ["commit"]:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    target = self.hub.folder(repo) / entry["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(entry["value"]["content"]))
            commit = self.hub.commit(repo)
            return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})
        return self._refuse(404, "")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
