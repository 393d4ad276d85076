"""A hub of datasets on this machine, in the layout of the real one: enough of its pages for `datasets` to stream from.

`GET /api/datasets/ID[/revision/R]`, `GET .../tree/R/FOLDER`, `POST .../paths-info/R`, and files at
`/datasets/ID/resolve/R/FILE`, by `Range` where that is asked for.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class DatasetHub:
    """Serves the folders `ORG/NAME` of one folder as datasets at one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.gone: set[str] = set()
        """Datasets that have vanished since."""
        self.gated: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):  # HTTP/1.0: no connection outlives its request, nor so the hub
            def answer(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD = do_POST = answer  # noqa: N815  (the server looks for these names)

            def log_message(self, *_args: object) -> None:
                pass

        self._handler, self._port = Handler, 0
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody answers for a while."""
        self.close()
        try:
            yield
        finally:
            self.open()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{request.command} {request.path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(request.path.partition("?")[0])
        is_api = path.startswith("/api/")
        parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        dataset, rest = "/".join(parts[:2]), parts[2:]
        root = self.folder / dataset
        if dataset in self.gated:
            return _send(request, 403, {"X-Error-Code": "GatedRepo"})
        if not path.removeprefix("/api").startswith("/datasets/") or not root.is_dir() or dataset in self.gone:
            return _send(request, 404, {"X-Error-Code": "RepoNotFound"})
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        files = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}
        if not is_api:
            return _send_file(request, files.get("/".join(rest[2:])))
        if rest[:1] == ["paths-info"]:
            asked = json.loads(body)["paths"]
            return _send_json(request, [entry for entry in _entries(files, recursive=True) if entry["path"] in asked])
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            entries = _entries(files, recursive="recursive=true" in request.path.lower(), inside=inside)
            return _send_json(request, entries) if entries else _send(request, 404, {"X-Error-Code": "EntryNotFound"})
        siblings = [{"rfilename": name} for name in files]
        return _send_json(
            request, {"id": dataset, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        )


def _entries(files: dict[str, Path], *, recursive: bool, inside: str = "") -> list[dict[str, Any]]:
    """The files, and the folders that they are in, under `inside`."""
    prefix = f"{inside}/" if inside else ""
    found: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        if not name.startswith(prefix):
            continue
        for parent in Path(name).parents:
            if str(parent) != "." and str(parent).startswith(prefix) and str(parent) != inside:
                found[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
        found[name] = {"type": "file", "path": name, "oid": _etag(file)[:40], "size": file.stat().st_size}
    return [entry for name, entry in found.items() if recursive or "/" not in name.removeprefix(prefix)]


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _send_file(request: BaseHTTPRequestHandler, file: Path | None) -> None:
    if file is None:
        return _send(request, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
    content = file.read_bytes()
    headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    asked = request.headers.get("Range")
    if asked is None:
        return _send(request, 200, headers, content)
    first, last = asked.removeprefix("bytes=").split("-")
    start, end = int(first), min(int(last or len(content)), len(content) - 1)
    if start >= len(content):
        return _send(request, 416, headers)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return _send(request, 206, headers, content[start : end + 1])


def _send_json(request: BaseHTTPRequestHandler, value: Any) -> None:
    _send(request, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
