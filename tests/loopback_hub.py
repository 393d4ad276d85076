"""What the hubs of the tests have in common: a server on this machine that can go away, and answers as the hub does."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit that every repository is at; `REVISIONS` are its names."""

REVISIONS = ("main", "v1", COMMIT)


class LoopbackHub:
    """A server that notes what it is asked; a subclass answers."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):  # HTTP/1.0: no connection outlives its request, nor so the hub
            def answer(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                hub.answer(self)

            do_GET = do_HEAD = do_POST = answer  # noqa: N815  (the server looks for these names)

            def log_message(self, *_args: object) -> None:
                pass

        self._handler, self._port = Handler, 0
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, with `send` or `send_json`."""
        raise NotImplementedError

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


def about(repository: str, files: Mapping[str, Any] | list[str]) -> dict[str, Any]:
    """What the hub says of a repository."""
    siblings = [{"rfilename": name} for name in files]
    return {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}


def send_json(request: BaseHTTPRequestHandler, value: Any) -> None:
    send(request, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def send_error(request: BaseHTTPRequestHandler, status: int, code: str, **headers: str) -> None:
    """An error as the hub names it: RepoNotFound, GatedRepo, ..."""
    send(request, status, {"X-Error-Code": code, **headers})


def send(request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
