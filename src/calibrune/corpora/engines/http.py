"""JSON over HTTP with patience: failures that may pass are repeated, others are told at once.

It talks to one address: no redirect is followed, and no proxy of the environment is asked. What the other side may do
is bounded in size and in time.
"""

import json
import logging
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event, Timer
from typing import Any, TypeVar
from urllib.parse import urlsplit

from calibrune.durable import parsed
from calibrune.errors import ConfigError, RunError, plain, without_secrets
from calibrune.seeds import seed_for

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSING = {408, 425, 429, *range(500, 600)}
"""Statuses of a server that is busy or ill, and may be well again."""

LONGEST_PAUSE = 60.0
"""Seconds; pauses double up to here."""

LARGEST = 64 << 20
"""Bytes of an answer; a text of 100,000 tokens with its scores has a tenth of it."""


class UnusableError(ValueError):
    """An answer that is not what was asked for."""


class _RefusedError(Exception):
    """An answer whose status is not one of success."""

    def __init__(self, status: int, said: str, retry_after: str | None) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.retry_after = status, retry_after


class Client:
    """A JSON API at one address."""

    def __init__(self, url: str, key: str | None, *, retries: int, backoff: float, timeout: float) -> None:
        self._url, self._key = url.rstrip("/"), key
        self._retries, self._backoff, self._timeout = retries, backoff, timeout
        self._has_written = False
        parts = urlsplit(self._url)
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port, self._path = str(parts.hostname), parts.port, parts.path
        # pauses spread, so that requests that failed together do not come back together
        self._jitter = random.Random(seed_for(0, "retries"))

    def get(self, path: str, read: Callable[[Any], T]) -> T:
        """Ask for a path; `read` makes of the JSON what is wanted, and raises on JSON that is not what it should be."""
        return self._patiently(path, None, read)

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Send JSON to a path.

        Raises:
            ConfigError: the server refuses the very first request; it would do so again.
            RunError: the server gives no answer that is of use, however often it is asked, or none any more.
        """
        answer = self._patiently(path, json.dumps(body).encode(), read)
        self._has_written = True
        return answer

    def _patiently(self, path: str, body: bytes | None, read: Callable[[Any], T]) -> T:
        for attempt in range(self._retries + 1):
            pause = min(LONGEST_PAUSE, self._backoff * 2**attempt) * self._jitter.uniform(0.5, 1.5)
            try:
                return read(parsed(self._once(path, body)))
            except _RefusedError as error:
                if error.status not in PASSING:
                    refused = f"the server at {self._url} refuses the request for {path!r} ({error})"
                    check = "check its address, key and model, and what it allows"
                    if self._has_written:
                        raise RunError(
                            f"{refused}, though it took others before; finished texts are kept: {check}, and start the "
                            f"same command again"
                        ) from None
                    raise ConfigError(f"{refused}; {check}") from None
                pause = max(pause, _wanted_pause(error.retry_after))
                why = str(error)
            except (OSError, HTTPException) as error:  # refused, cut, timed out
                why = str(error) or type(error).__name__
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                why = f"an answer that cannot be used, {error}"
            if attempt < self._retries:
                log.warning("the server failed (%s); asking again in %.1f s", self._hidden(why), pause)
                time.sleep(pause)
        raise RunError(
            f"the server at {self._url} gave no usable answer for {path!r} in {self._retries + 1} attempts (last: "
            f"{self._hidden(why)}); finished texts are kept: see to the server, and start the same command again"
        )

    def _once(self, path: str, body: bytes | None) -> bytes:
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # the timeout of the connection is for each of its pieces, and a server may send them one by one for ever
        late = Event()
        watchdog = Timer(self._timeout, lambda: _cut(line, late))
        watchdog.daemon = True
        try:
            connection.connect()
            line = connection.sock
            watchdog.start()
            connection.request("GET" if body is None else "POST", f"{self._path}/{path}", body, headers)
            answer = connection.getresponse()
            content = answer.read(LARGEST + 1)
        except (OSError, HTTPException):
            if not late.is_set():
                raise
        finally:
            watchdog.cancel()
            connection.close()
        if late.is_set():  # what was read may look whole
            raise TimeoutError(f"no whole answer in {self._timeout:g} s")
        if len(content) > LARGEST:
            raise UnusableError(f"it is larger than {LARGEST >> 20} MB")
        if not 200 <= answer.status < 300:
            raise _RefusedError(answer.status, self._said(content, answer.reason), answer.headers.get("Retry-After"))
        return content

    def _said(self, content: bytes, reason: str) -> str:
        """The server's own words, in a line."""
        raw = content[:65536].decode(errors="replace")
        try:
            found = parsed(raw)
            found = found.get("error", found)
            raw = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError):
            pass
        return self._hidden(" ".join(plain(raw).split())[:200] or reason)

    def _hidden(self, text: str) -> str:
        return without_secrets(text.replace(self._key, "***") if self._key else text)


def _wanted_pause(header: str | None) -> float:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0


def _cut(line: socket.socket, late: Event) -> None:
    late.set()
    with suppress(OSError):  # it was closed meanwhile
        line.shutdown(socket.SHUT_RDWR)
