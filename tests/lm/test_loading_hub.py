"""Models from the hub, for real: a small hub on this machine, and a Python of its own that is told to use it.

That Python is started once for all tests, for it takes seconds; so each test has repositories of its own name, and what
one leaves in the cache of the hub's client is none of the others' business.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback_hub import COMMIT, REVISIONS, LoopbackHub, about, send, send_error, send_json
from tiny_models import tiny_lm, tiny_model

from calibrune.lm.loading import weights_fingerprint
from calibrune.lm.trust import INDEX

pytestmark = pytest.mark.slow


class Hub(LoopbackHub):
    """Serves one folder as every repository `org/tiny-...`, and as others that misbehave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].removeprefix("/api/models").lstrip("/")
        is_api = request.path.startswith("/api/models/")
        repo, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        if repo == "org/busy":
            return send(request, 503, {})
        if repo == "org/gated" or (repo == "org/gated-files" and not is_api):
            return send_error(request, 403, "GatedRepo")
        if not repo.startswith("org/tiny") and repo not in ("org/gated-files", "org/without-config"):
            return send_error(request, 404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in REVISIONS:
            return send_error(request, 404, "RevisionNotFound")
        files = sorted(entry.name for entry in self.folder.iterdir())
        if repo == "org/tiny-pickles":
            files[files.index("model.safetensors")] = "pytorch_model.bin"
        if repo == "org/tiny-index":
            files[files.index("model.safetensors")] = INDEX
        if repo == "org/without-config":
            files.remove("config.json")
        if is_api:
            if rest[:1] == ["tree"]:
                entries = [
                    {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": name}
                    for name in files
                ]
                return send_json(request, entries)
            return send_json(request, about(repo, files))
        name = "/".join(rest[2:])
        if name not in files:
            return send_error(request, 404, "EntryNotFound", **{"X-Repo-Commit": COMMIT})
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../elsewhere.safetensors"}}
        content = json.dumps(index).encode() if name == INDEX else (self.folder / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return send(request, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("repository")
    lm = tiny_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    hub = Hub(folder)
    yield hub
    hub.close()


SCRIPT = """
import json, sys, time
from calibrune.errors import CalibruneError
from calibrune.lm.loading import load_model, weights_fingerprint
for line in sys.stdin:
    name, revision = json.loads(line)
    start = time.monotonic()
    try:
        lm = load_model(name, revision=revision)
        said = {"source": lm.source, "weights": weights_fingerprint(lm.model), "ids": lm.tokenizer("ab").input_ids}
    except CalibruneError as error:
        said = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(said | {"seconds": time.monotonic() - start}), flush=True)
"""


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hf")


def python(hub: Hub, hub_home: Path, **more: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub_home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=inherited | ours | more,
    )


@pytest.fixture(scope="module")
def load(hub, hub_home) -> Iterator[Callable[..., dict]]:
    """Load a model in a Python that has this hub."""
    with python(hub, hub_home) as process:

        def ask(name: str, revision: str | None = None) -> dict:
            process.stdin.write(json.dumps([name, revision]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def assert_one_sentence(said: dict, *parts: str, within: float = 15) -> None:
    assert said["kind"] == "ModelError"
    assert "\n" not in said["error"]
    for part in parts:
        assert part in said["error"]
    assert said["seconds"] < within


def test_a_hub_model_is_loaded_and_pinned_to_its_commit(load):
    said = load("org/tiny")
    assert said["source"] == {"name": "org/tiny", "revision": COMMIT, "dtype": "float32"}
    assert said["weights"] == weights_fingerprint(tiny_model())
    assert said["ids"] == [67, 68]


def test_all_files_come_from_the_one_commit_that_is_recorded(load, hub):
    # a branch that moves between two files would give the tokenizer of one commit and the weights of the next
    load("org/tiny-pinned", "v1")
    files = [request for request in hub.requests if "org/tiny-pinned/resolve/" in request]
    by_branch = [request for request in files if f"/resolve/{COMMIT}/" not in request]
    assert {request.split("/")[-1] for request in by_branch} <= {"config.json"}
    assert any(request.startswith("GET") and request.endswith("model.safetensors") for request in files)


def test_a_repository_without_a_config_is_one_sentence(load):
    assert_one_sentence(load("org/without-config"), "'org/without-config'", "no config.json")


def test_a_revision_that_is_not_there_is_one_sentence(load):
    assert_one_sentence(load("org/tiny-old", "v9"), "'org/tiny-old'", "no revision 'v9'")


def test_a_model_that_is_not_there_is_one_sentence_at_once(load, hub):
    said = load("org/nope")
    assert_one_sentence(said, "'org/nope'", "neither a local path nor on the hub", within=5)
    assert len([request for request in hub.requests if "nope" in request]) < 4


@pytest.mark.parametrize("name", ["org/gated", "org/gated-files"])
def test_a_gated_model_is_one_sentence_that_says_what_to_do(name, load):
    # the hub tells everybody about a gated model; it is the files that it keeps back
    assert_one_sentence(load(name), f"'{name}' is gated", "accept its terms", "HF_TOKEN")


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_model_in_the_cache_needs_no_hub(revision, load, hub):
    name = f"org/tiny-{revision}"
    first = load(name, revision)
    with hub.away():
        again = load(name, revision)
    assert again["source"] == first["source"]
    assert again["weights"] == first["weights"]
    assert again["seconds"] < 15


def test_a_model_in_the_cache_is_loaded_where_the_user_says_that_there_is_no_hub(load, hub, hub_home):
    first = load("org/tiny-offline")
    before = len(hub.requests)
    with python(hub, hub_home, HF_HUB_OFFLINE="1") as process:
        said, _ = process.communicate('["org/tiny-offline", null]\n["org/tiny-never-seen", null]\n')
    again, never = map(json.loads, said.splitlines())
    assert again["source"] == first["source"]
    assert_one_sentence(never, "'org/tiny-never-seen'", "its local cache does not have it")
    assert len(hub.requests) == before


def test_a_repository_of_pickles_or_whose_index_leaves_it_is_refused_before_its_weights_are_fetched(load, hub):
    pickles, index = load("org/tiny-pickles"), load("org/tiny-index")
    assert "weights in pickles alone (pytorch_model.bin)" in pickles["error"]
    assert "names the weights '../../elsewhere.safetensors'" in index["error"]
    asked = [line for line in hub.requests if "org/tiny-pickles" in line or "org/tiny-index" in line]
    assert any(line.endswith(INDEX) for line in asked)
    assert not any(line.endswith((".bin", "elsewhere.safetensors")) for line in asked)


def test_without_a_hub_and_not_in_the_cache_is_one_sentence_soon(load, hub):
    with hub.away():
        said = load("org/tiny-new")
    assert_one_sentence(said, "'org/tiny-new'", "the hub cannot be reached", "its local cache does not have it")


def test_half_a_model_in_the_cache_and_no_hub_is_one_sentence(load, hub, hub_home):
    load("org/tiny-half")
    (weights,) = hub_home.rglob("models--org--tiny-half/snapshots/*/model.safetensors")
    weights.unlink()
    with hub.away():
        assert_one_sentence(load("org/tiny-half"), "'org/tiny-half'")


def test_a_hub_that_is_out_of_order_is_one_sentence_soon(load):
    assert_one_sentence(load("org/busy"), "'org/busy'", "the hub cannot be reached")
