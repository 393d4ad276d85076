"""A hub of datasets on this machine, in the layout of the real one: enough of its pages for `datasets` to stream from.

`GET /api/datasets/ID[/revision/R]`, `GET .../tree/R/FOLDER`, `POST .../paths-info/R`, and files at
`/datasets/ID/resolve/R/FILE`, by `Range` where that is asked for.
"""

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from loopback_hub import COMMIT, REVISIONS, LoopbackHub, about, send, send_error, send_json


class DatasetHub(LoopbackHub):
    """Serves the folders `ORG/NAME` of one folder as datasets at one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gone: set[str] = set()
        """Datasets that have vanished since."""
        self.gated: set[str] = set()
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(request.path.partition("?")[0])
        is_api = path.startswith("/api/")
        parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        dataset, rest = "/".join(parts[:2]), parts[2:]
        root = self.folder / dataset
        if dataset in self.gated:
            return send_error(request, 403, "GatedRepo")
        if not path.removeprefix("/api").startswith("/datasets/") or not root.is_dir() or dataset in self.gone:
            return send_error(request, 404, "RepoNotFound")
        if len(rest) > 1 and rest[1] not in REVISIONS:
            return send_error(request, 404, "RevisionNotFound")
        files = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}
        if not is_api:
            return _send_file(request, files.get("/".join(rest[2:])))
        if rest[:1] == ["paths-info"]:
            asked = json.loads(body)["paths"]
            return send_json(request, [entry for entry in _entries(files, recursive=True) if entry["path"] in asked])
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            entries = _entries(files, recursive="recursive=true" in request.path.lower(), inside=inside)
            return send_json(request, entries) if entries else send_error(request, 404, "EntryNotFound")
        return send_json(request, about(dataset, files))


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
        return send_error(request, 404, "EntryNotFound", **{"X-Repo-Commit": COMMIT})
    content = file.read_bytes()
    headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    asked = request.headers.get("Range")
    if asked is None:
        return send(request, 200, headers, content)
    first, last = asked.removeprefix("bytes=").split("-")
    start, end = int(first), min(int(last or len(content)), len(content) - 1)
    if start >= len(content):
        return send(request, 416, headers)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return send(request, 206, headers, content[start : end + 1])
