"""A server of texts is asked at its own address alone, and what it may do is bounded in size and in time."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from calibrune.corpora.engines import CompletionsServer, http
from calibrune.corpora.engines.http import Client
from calibrune.errors import ConfigError, RunError

KEY = "sk-0123456789abcdefghij"


@contextmanager
def serving(answer) -> Iterator[tuple[str, list[BaseHTTPRequestHandler]]]:
    """A server, as its address and the requests that it was sent; `answer` writes to the handler that it is given."""
    asked: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def respond(body: bytes, status: int = 200, **headers: str):
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def client(url: str, timeout: float = 30.0) -> Client:
    return Client(url, KEY, retries=0, backoff=0.001, timeout=timeout)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(status):
    with (
        serving(respond(b"[]")) as (other, elsewhere),
        serving(respond(b"", status, Location=f"{other}/v1")) as (url, _),
    ):
        with pytest.raises(ConfigError, match=f"refuses the request for 'models' \\({status}"):
            client(f"{url}/v1").get("models", list)
        assert elsewhere == []


def test_no_proxy_of_the_environment_is_asked(monkeypatch):
    with serving(respond(b'["proxy"]')) as (proxy, asked), serving(respond(b'["server"]')) as (url, _):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert client(url).get("models", list) == ["server"]
        assert asked == []


def test_the_key_is_sent_to_the_server_alone():
    with serving(respond(b"[1]")) as (url, asked):
        client(url).get("models", list)
        assert asked[0].headers["Authorization"] == f"Bearer {KEY}"


def test_an_answer_without_end_is_cut_off_where_it_is_too_large(monkeypatch):
    monkeypatch.setattr(http, "LARGEST", 1 << 20)
    sent = []

    def for_ever(request: BaseHTTPRequestHandler) -> None:
        respond(b"[")(request)
        try:
            while sum(sent) < 64 << 20:
                sent.append(request.wfile.write(b"0," * (1 << 15)))
        except OSError:
            pass

    with serving(for_ever) as (url, _), pytest.raises(RunError, match="it is larger than 1 MB"):
        client(url).get("models", list)
    assert sum(sent) < 32 << 20


@pytest.mark.parametrize("first", ["status", "body"])
def test_an_answer_that_comes_drop_by_drop_is_cut_off_in_time(first):
    stop = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        if first == "body":
            respond(b"[")(request)
        else:
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        try:
            while not stop.wait(0.05):
                request.wfile.write(b" ")
                request.wfile.flush()
        except OSError:
            pass

    with serving(drip) as (url, _):
        try:
            with pytest.raises(RunError, match=r"no whole answer in 0\.5 s"):
                client(url, timeout=0.5).get("models", list)
        finally:
            stop.set()


def test_an_answer_that_is_deep_or_no_http_is_one_sentence():
    with serving(respond(b"[" * 200_000)) as (url, _), pytest.raises(RunError, match="an answer that cannot be used"):
        client(url).get("models", list)
    with socket.create_server(("127.0.0.1", 0)) as line:

        def chatter() -> None:
            connection, _ = line.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x1b[2J no http at all\r\n" * 3)
                time.sleep(0.2)

        threading.Thread(target=chatter, daemon=True).start()
        with pytest.raises(RunError, match="no usable answer") as caught:
            client(f"http://127.0.0.1:{line.getsockname()[1]}").get("models", list)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:word@host/v1", "http://host/v1?token=word", "http://host/v1#word"])
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(url):
    with pytest.raises(ConfigError, match="put a key into CALIBRUNE_API_KEY instead") as caught:
        CompletionsServer(url=url)
    assert "word@" not in str(caught.value)
    assert "token=word" not in str(caught.value)
