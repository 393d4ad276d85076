"""Datasets of the hub, for real: a small hub on this machine, and a Python of its own that is told to use it.

That Python is started once for all tests, for it takes seconds; so each test has datasets of its own name where what
one leaves in the cache could matter to another.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dataset_hub import DatasetHub
from loopback_hub import COMMIT

from calibrune.corpora.hub import HubCorpus, _streaming
from calibrune.corpora.named import NAMED
from calibrune.errors import ConfigError, CorpusError

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("datasets")

pytestmark = pytest.mark.slow

CARD = """---
configs:
- config_name: en
  data_files: en/*.jsonl.gz
- config_name: fr
  data_files: fr/*.jsonl.gz
---
"""

LINES = [
    "", " = One = \n", "", " first line \n", " = = Part = = \n", " second line \n", " = Two = \n", " last \n",
]  # fmt: skip

SCRIPT = """
import json, sys, time
from itertools import islice
from calibrune.corpora.hub import HubCorpus
from calibrune.corpora.named import hub_settings
from calibrune.corpora.sampling import documents_in_random_order
from calibrune.errors import CalibruneError
for line in sys.stdin:
    asked, start = json.loads(line), time.monotonic()
    try:
        if "named" in asked:
            asked = hub_settings(asked.pop("named")) | asked
        corpus = HubCorpus(**asked)
        documents = [(document.id, document.text) for document in corpus.documents()]
        drawn = [document.id for document in islice(documents_in_random_order(corpus, 7), 12)]
        said = {"about": corpus.describe(), "documents": documents, "drawn": drawn}
    except CalibruneError as error:
        said = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(said | {"seconds": time.monotonic() - start}), flush=True)
"""


def write_jsonl_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_parquet(path: Path, **columns: list[Any]) -> None:
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[DatasetHub]:
    folder = tmp_path_factory.mktemp("hub")
    for language in ("en", "fr"):
        rows = [{"text": f"{language} text {i}", "url": "x"} for i in range(40)]
        write_jsonl_gz(folder / "org/web" / language / "train-0.jsonl.gz", rows[:20])
        write_jsonl_gz(folder / "org/web" / language / "train-1.jsonl.gz", rows[20:])
    (folder / "org/web/README.md").write_text(CARD)
    for name in ("gone", "moving", "offline", "partly", "gated"):
        shutil.copytree(folder / "org/web", folder / "org" / name)
    write_parquet(folder / "org/table/train-0.parquet", text=[f"row {i}" for i in range(40)], n=list(range(40)))
    write_parquet(folder / "org/lines/train-0.parquet", text=LINES)
    questions = {"instruction": ["Add.", "Greet."], "input": ["1 + 1", ""], "output": ["2", "Hello."]}
    write_parquet(folder / "org/questions/train-0.parquet", **questions)
    write_parquet(folder / "org/blank/train-0.parquet", text=["", " ", None])
    (folder / "org/cut").mkdir()
    (folder / "org/cut/train-0.jsonl.gz").write_bytes((folder / "org/web/en/train-0.jsonl.gz").read_bytes()[:60])
    (folder / "org/broken").mkdir()
    (folder / "org/broken/train-0.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    (folder / "org/empty").mkdir()
    (folder / "org/empty/README.md").write_text("nothing yet")
    hub = DatasetHub(folder)
    hub.gated.add("org/gated")
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("homes")


def python(hub: DatasetHub, homes: Path, **more: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(homes / "hf"), "CALIBRUNE_CACHE": str(homes / "ours")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=inherited | ours | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | more,
    )


@pytest.fixture(scope="module")
def read(hub, homes) -> Iterator[Callable[..., dict[str, Any]]]:
    """Read a corpus in a Python that has this hub."""
    with python(hub, homes) as process:

        def ask(**settings: Any) -> dict[str, Any]:
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


def assert_one_sentence(said: dict[str, Any], *parts: str, within: float = 20) -> None:
    assert said.get("kind") == "CorpusError", said
    assert "\n" not in said["error"]
    for part in parts:
        assert part in said["error"]
    assert said["seconds"] < within


def test_the_rows_of_a_dataset_are_documents_with_stable_names(read):
    said = read(dataset="org/web", config="en")
    assert said["documents"][0] == ["org/web/en/train:0", "en text 0"]
    assert said["documents"][39] == ["org/web/en/train:39", "en text 39"]
    assert read(dataset="org/table")["documents"][7] == ["org/table/train:7", "row 7"]


def test_commit_scan_and_licence_are_recorded(read):
    about = read(dataset="org/web", config="fr", scan=15, licence="MIT")["about"]
    assert about["commit"] == COMMIT
    assert (about["scan"], about["rows_looked_at"], about["licence"]) == (15, 15, "MIT")
    assert (about["dataset"], about["config"], about["split"]) == ("org/web", "fr", "train")
    assert read(dataset="org/web", config="fr", scan=99)["about"]["rows_looked_at"] == 40


def test_the_files_are_read_at_the_commit_that_is_recorded(read, hub):
    assert "documents" in read(dataset="org/moving", config="en", revision="v1")
    files = [request for request in hub.requests if "org/moving/resolve/" in request]
    assert files
    assert all(f"/resolve/{COMMIT}/" in request for request in files)


def test_no_more_of_the_stream_is_looked_at_than_was_asked_for(read, hub):
    assert len(read(dataset="org/partly", config="en", scan=5)["documents"]) == 5
    fetched = [request for request in hub.requests if "org/partly" in request and ".jsonl.gz" in request]
    assert fetched
    assert not any("train-1" in request for request in fetched)


def test_the_draw_depends_on_seed_and_names_alone(read):
    one, again = read(dataset="org/web", config="en"), read(dataset="org/web", config="en", revision="v1")
    assert one["drawn"] == again["drawn"]

    # the definition, written out: a change of it would change what a seed draws
    def rank(document_id: str) -> int:
        key = (7).to_bytes(16, "big", signed=True)
        return int.from_bytes(hashlib.blake2b(document_id.encode(), key=key, digest_size=8).digest(), "big")

    assert one["drawn"] == sorted((f"org/web/en/train:{row}" for row in range(40)), key=rank)[:12]


def test_a_longer_scan_adds_to_what_a_shorter_one_draws_from(read):
    short, long = (read(dataset="org/web", config="en", scan=scan) for scan in (20, 40))
    assert long["documents"][:20] == short["documents"]
    among_the_first = [name for name in long["drawn"] if int(name.rpartition(":")[2]) < 20]
    assert among_the_first == short["drawn"][: len(among_the_first)]


def test_rows_that_are_lines_are_put_together_to_articles(read):
    said = read(dataset="org/lines", article_begins=r"^ = [^=].* = \n$")
    assert said["documents"] == [
        ["org/lines/train:1", " = One = \n first line \n = = Part = = \n second line \n"],
        ["org/lines/train:6", " = Two = \n last \n"],
    ]


def test_rows_with_the_prompt_of_alpaca(read):
    said = read(dataset="org/questions", template="alpaca")
    first, second = (text for _, text in said["documents"])
    assert first == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 + 1\n\n"
        "### Response:\n2"
    )
    assert second.endswith("### Instruction:\nGreet.\n\n### Response:\nHello.")


def test_rows_with_a_template_of_ones_own(read):
    said = read(dataset="org/questions", template="{instruction} -> {output}")
    assert [text for _, text in said["documents"]] == ["Add. -> 2", "Greet. -> Hello."]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"dataset": "org/nope"}, ("no dataset 'org/nope' on the hub", "calibrune list sources", "local file")),
        ({"dataset": "no/such/name"}, ("no dataset 'no/such/name'",)),
        ({"named": "slimpajama"}, ("no dataset 'cerebras/SlimPajama-627B'", "c4, dclm", "local file")),
        ({"dataset": "org/gated"}, ("is gated", "HF_TOKEN", "or use")),
        ({"dataset": "org/web", "revision": "v9", "config": "en"}, ("no revision 'v9'",)),
        ({"dataset": "org/web"}, ("needs a config: choose one of en, fr",)),
        ({"dataset": "org/web", "config": "eng"}, ("has no config 'eng': did you mean 'en'?",)),
        ({"dataset": "org/table", "split": "trian"}, ("no split 'trian': did you mean 'train'?",)),
        ({"dataset": "org/table", "text_field": "body"}, ("no column 'body', only 'text', 'n'", "text_field")),
        ({"dataset": "org/table", "text_field": "n"}, ("holds int, not text",)),
        ({"dataset": "org/table", "template": "{q}"}, ("no column 'q'",)),
        ({"dataset": "org/table", "files": "none-*"}, ("has no files 'none-*'",)),
        ({"dataset": "org/blank"}, ("have no text in them",)),
        ({"dataset": "org/empty"}, ("'org/empty'",)),
        ({"dataset": "org/cut"}, ("'org/cut' cannot be read", "damaged")),
        ({"dataset": "org/broken"}, ("'org/broken' cannot be read", "damaged")),
    ],
    ids=str,
)
def test_what_is_not_to_be_had_is_one_sentence_that_says_what_else_there_is(settings, parts, read):
    assert_one_sentence(read(**settings), *parts)


def test_rows_in_the_cache_need_no_hub(read, hub):
    first = read(dataset="org/web", config="en", scan=30)
    before = len(hub.requests)
    assert read(dataset="org/web", config="en", scan=30, revision=COMMIT)["seconds"] < 30
    with hub.away():
        again, fewer = (read(dataset="org/web", config="en", scan=n) for n in (30, 10))
    assert again["about"] == first["about"]
    assert fewer["documents"] == first["documents"][:10]
    assert not [request for request in hub.requests[before:] if ".jsonl.gz" in request and "/en/" in request]


def test_a_dataset_that_has_gone_is_still_in_the_cache(read, hub):
    first = read(dataset="org/gone", config="en")
    hub.gone.add("org/gone")
    assert read(dataset="org/gone", config="en")["documents"] == first["documents"]
    assert_one_sentence(read(dataset="org/gone", config="fr"), "no dataset 'org/gone' on the hub")


def test_the_cache_is_read_where_the_user_says_that_there_is_no_hub(read, hub, homes):
    first = read(dataset="org/offline", config="en")
    before = len(hub.requests)
    with python(hub, homes, HF_HUB_OFFLINE="1") as process:
        asked = [{"dataset": "org/offline", "config": "en"}, {"dataset": "org/table", "scan": 3, "split": "never"}]
        said, _ = process.communicate("\n".join(map(json.dumps, asked)) + "\n")
    again, never = map(json.loads, said.splitlines())
    assert again["about"] == first["about"]
    assert_one_sentence(never, "the hub cannot be reached", "not in the local cache", "local file")
    assert len(hub.requests) == before


def test_without_a_hub_and_not_in_the_cache_is_one_sentence_soon(read, hub):
    with hub.away():
        said = read(dataset="org/never-seen")
    assert_one_sentence(said, "'org/never-seen'", "the hub cannot be reached", within=15)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with (
        pytest.raises(CorpusError, match=r"needs the package datasets.*pip install 'calibrune\[hub\]', or use a local"),
        _streaming(HubCorpus(dataset="org/web")),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"template": "no column"}, "names no column in braces"),
        ({"template": "{open"}, "cannot be read"),
        ({"article_begins": "("}, "no regular expression"),
        ({"scan": 0}, "scan cannot be 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_when_made(settings, says):
    with pytest.raises(ConfigError, match=says):
        HubCorpus(dataset="org/web", **settings)


def test_every_named_source_says_its_licence_and_names_alternatives():
    assert NAMED.keys() == {"c4", "wikipedia", "slimpajama", "dclm", "alpaca", "wikitext2", "fineweb-edu"}
    for source in NAMED.values():
        assert source.note
        assert "card" not in source.corpus.licence
        assert "local file" in source.corpus.instead
