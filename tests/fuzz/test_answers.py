"""What comes back: the rows of a study, and the answers of a server."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from faults.jobs import PLAN
from fuzz.conftest import resealed
from fuzz.fuzzing import Cases, as_json, damaged, rearranged, values
from hypothesis import strategies as st
from tiny_models import tiny_lm

from calibrune.corpora.engines import CompletionsServer
from calibrune.lm.generation import Sampling
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.runner import status
from calibrune.study.scores import read_scores

SCORE = {"dataset": "texts", "metric": "perplexity", "value": 9.5, "stderr": 0.5, "n": 2, "higher_is_better": False,
         "items": [2.0, 2.5]}  # fmt: skip


def test_rows_of_a_study(tmp_path, record_property):
    pytest.importorskip("polars")
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan, results = read_plan(tmp_path / "plan.yaml"), Results(tmp_path / "out")
    (tmp_path / "out" / "runs").mkdir(parents=True)
    rows = [
        {"key": f"{i:012x}", "id": spec.id, "run": spec.to_json(), "status": "done", "calibration": None,
         "proxies": {}, "pruning": {"sparsity": 0.5, "coverage": 0.9}, "weights": "0" * 12, "scores": [SCORE],
         "seconds": {"pruning": 0.1, "all": 0.5}, "compute": {"device": "cpu"}, "versions": {"torch": "2"}}
        for i, spec in enumerate(plan.runs[:3])
    ]  # fmt: skip
    rows[1] |= {"scores": [SCORE | {"items": None}]}
    record = rows[1] | {"scores": [SCORE]}
    kept = results.folder / "runs" / f"{rows[1]['key']}.json"

    def check(content):
        lines, said = content
        results.file.write_bytes(lines)
        kept.write_bytes(said)
        status(plan, results)
        results.latest()
        found = read_scores(plan, results)
        _ = found.main

    whole = b"".join(resealed(row) + b"\n" for row in rows)
    check((whole, resealed(record)))
    written = st.lists(rearranged(rows[0]) | rearranged(rows[1]) | values, max_size=3)
    lines = damaged(whole) | written.map(lambda some: b"".join(resealed(one) + b"\n" for one in some))
    said = st.just(resealed(record)) | damaged(resealed(record)) | rearranged(record).map(resealed)
    cases = Cases(1500)
    cases.run(st.tuples(lines, said), check, record_property)
    assert 0 < cases.taken < cases.done


class _Parrot(BaseHTTPRequestHandler):
    """Says what it was told to say."""

    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._say(self.server.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(self.server.completion)

    def _say(self, said: tuple[int, bytes]) -> None:
        self.send_response(said[0])
        self.end_headers()
        self.wfile.write(said[1])


@contextmanager
def parrot():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Parrot) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_answers_of_a_server(record_property):
    lm = tiny_lm(adds_bos=True)
    models = {"data": [{"id": "tiny-llama", "root": "tiny-llama"}]}
    choice = {"index": 0, "text": "ab", "finish_reason": "length", "token_ids": [5, 6],
              "logprobs": {"tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-0.5, -1.0],
                           "content": [{"id": 5, "logprob": -0.5}, {"id": 6, "logprob": -1.0}]}}  # fmt: skip
    completion = {"object": "text_completion", "system_fingerprint": "b1", "choices": [choice]}
    statuses = st.sampled_from([200] * 12 + [404, 500, 302, 429])
    with parrot() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"

        def check(said):
            server.models, server.completion = said
            session = CompletionsServer(url=url, retries=0, backoff=0.001, timeout=5.0).open(lm)
            session.describe()
            session.complete([[0, 5]], [1], max_new_tokens=2, sampling=Sampling(), end_ids=(1,))

        check(((200, as_json(models)), (200, as_json(completion))))

        def answers(real):
            bad = rearranged(real).map(as_json) | damaged(json.dumps(real).encode()) | values.map(as_json)
            return st.tuples(statuses, bad)

        whole = (st.just((200, as_json(one))) for one in (models, completion))
        good_models, good_completion = whole
        cases = Cases(1500)
        bad = st.tuples(good_models, answers(completion)) | st.tuples(answers(models), good_completion)
        cases.run(bad, check, record_property)
    assert 0 < cases.taken < cases.done
