"""A real completions server on loopback, with a tiny model behind it, that fails as it is told to."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from calibrune.lm.generation import GeneratedText, Sampling, generate
from calibrune.lm.loading import LanguageModel


class Loopback:
    """What the server does, and what it was asked."""

    def __init__(self, lm: LanguageModel, style: str = "vllm") -> None:
        self.lm, self.style = lm, style
        self.models = ["org/tiny-llama"]
        self.faults: list[str] = []
        """What goes wrong with the next completions, in turn; "" for nothing."""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: Counter[int] = Counter()
        """How often a text was handed out in whole, by its seed."""
        self.refuses: tuple[int, str] | None = None
        self.die_after: int | None = None
        self.written: dict[tuple[int, ...], GeneratedText] = {}
        self.lock = threading.Lock()
        self.url = ""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=max(0, body["top_k"]),
            repetition_penalty=body["repetition_penalty"],
        )
        known = (*body["prompt"], body["seed"], body["max_tokens"])
        with self.lock:
            if known not in self.written:  # a fault's repetition need not wait for the model
                (self.written[known],) = generate(
                    self.lm.model,
                    [body["prompt"]],
                    [body["seed"]],
                    max_new_tokens=body["max_tokens"],
                    sampling=sampling,
                    end_ids=body["stop_token_ids"],
                )
            text = self.written[known]
        ids = list(text.token_ids[text.prompt_length :])
        scores = list(text.log_probs)
        words = self.lm.tokenizer.decode([i for i in ids if i not in body["stop_token_ids"]])
        choice: dict[str, Any] = {"index": 0, "text": words, "finish_reason": "stop" if text.finished else "length"}
        if self.style == "vllm":
            choice |= {"token_ids": ids, "logprobs": {"tokens": ["x"] * len(ids), "token_logprobs": scores}}
        elif self.style == "vllm-old":
            named = [f"token_id:{i}" for i in ids]
            choice |= {"logprobs": {"tokens": named, "token_logprobs": scores}}
        elif self.style == "llama.cpp":
            # its list of probabilities ends before the token that ended the text
            given = [(i, s) for i, s in zip(ids, scores, strict=True) if i not in body["stop_token_ids"]]
            choice |= {"logprobs": {"content": [{"id": i, "token": "x", "logprob": s} for i, s in given]}}
        elif self.style == "ids-only":
            choice |= {"token_ids": ids, "logprobs": None}
        elif self.style == "after-temperature":
            choice |= {"token_ids": ids, "logprobs": {"token_logprobs": [s / 2 for s in scores]}}
        return {"object": "text_completion", "model": body["model"], "system_fingerprint": "b1", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        to: Loopback = self.server.to
        to.headers.append(dict(self.headers))
        self._answer({"data": [{"id": name, "root": name} for name in to.models]})

    def do_POST(self) -> None:
        to: Loopback = self.server.to
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with to.lock:
            to.bodies.append(body)
            fault = to.faults.pop(0) if to.faults else ""
            if to.die_after is not None and sum(to.answered.values()) >= to.die_after:
                fault = "500"
        if to.refuses:
            return self._answer({"error": {"message": to.refuses[1]}}, to.refuses[0])
        if fault.isdigit():
            return self._answer({"error": {"message": "out of memory"}}, int(fault))
        if fault == "time-out":
            time.sleep(1.2)
            self.close_connection = True
            return None
        if fault == "cut before":
            self.close_connection = True
            return self.connection.close()
        answer = to.completion(body)
        if fault == "no JSON":
            return self._raw(b"<html>busy</html>")
        if fault == "other JSON":
            return self._answer({"choices": []})
        if fault == "list":
            return self._raw(b"[]")
        if fault == "null text":
            answer["choices"][0]["text"] = None
        if fault == "aborted":
            answer["choices"][0]["finish_reason"] = "abort"
        if fault == "beyond the vocabulary":
            answer["choices"][0]["token_ids"][0] = 10**6
        if fault == "a score short":
            answer["choices"][0]["logprobs"]["token_logprobs"].pop()
        if fault == "no ids":
            del answer["choices"][0]["token_ids"]
        if fault == "cut in the middle":
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        if not fault:
            with to.lock:
                to.answered[body["seed"]] += 1
        return self._answer(answer)

    def _answer(self, value: Any, status: int = 200) -> None:
        self._raw(json.dumps(value).encode(), status)

    def _raw(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


FAULTS = [
    *("500", "503", "429", "time-out", "cut before", "cut in the middle", "no JSON", "other JSON", "list"),
    *("null text", "aborted", "beyond the vocabulary", "a score short", "no ids"),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


@contextmanager
def serving(to: Loopback) -> Iterator[str]:
    """The url of a server that does what `to` says."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.to = to  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    to.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield to.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
