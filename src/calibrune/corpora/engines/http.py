"""JSON over HTTP with patience: failures that may pass are repeated, others are told at once."""

import json
import logging
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, TypeVar

from calibrune.errors import ConfigError, RunError
from calibrune.seeds import seed_for

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSING = {408, 425, 429, *range(500, 600)}
"""Statuses of a server that is busy or ill, and may be well again."""

LONGEST_PAUSE = 60.0
"""Seconds; pauses double up to here."""


class UnusableError(ValueError):
    """An answer that is not what was asked for."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to whoever is named."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


class Client:
    """A JSON API at one address."""

    def __init__(self, url: str, key: str | None, *, retries: int, backoff: float, timeout: float) -> None:
        self._url, self._key = url.rstrip("/"), key
        self._retries, self._backoff, self._timeout = retries, backoff, timeout
        self._has_written = False
        self._opener = urllib.request.build_opener(_NoRedirects)
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
                return read(json.loads(self._once(path, body)))
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if error.code not in PASSING:
                    refused = f"the server at {self._url} refuses the request for {path!r} ({error.code}: {said})"
                    check = "check its address, key and model, and what it allows"
                    if self._has_written:
                        raise RunError(
                            f"{refused}, though it took others before; finished texts are kept: {check}, and start the "
                            f"same command again"
                        ) from None
                    raise ConfigError(f"{refused}; {check}") from None
                pause = max(pause, _wanted_pause(error.headers.get("Retry-After")))
                why = f"{error.code}: {said}"
            except (OSError, HTTPException) as error:  # refused, cut, timed out
                why = str(getattr(error, "reason", None) or error) or type(error).__name__
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                why = f"an answer that cannot be used, {error}"
            if attempt < self._retries:
                log.warning("the server failed (%s); asking again in %.1f s", self._hidden(why), pause)
                time.sleep(pause)
        raise RunError(
            f"the server at {self._url} gave no usable answer for {path!r} in {self._retries + 1} attempts (last: "
            f"{self._hidden(why)}); finished texts are kept: see to the server, and start the same command again"
        )

    def _once(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(f"{self._url}/{path}", data=body)
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with self._opener.open(request, timeout=self._timeout) as answer:
            return bytes(answer.read())

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The server's own words, in a line."""
        try:
            raw = error.read(65536).decode(errors="replace")
        except (OSError, HTTPException):
            return str(error.reason)
        try:
            found = json.loads(raw)
            found = found.get("error", found)
            raw = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError):
            pass
        return self._hidden(" ".join(raw.split())[:200] or str(error.reason))

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _wanted_pause(header: str | None) -> float:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0
