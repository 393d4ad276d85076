"""What is said, on the terminal, in files and on pages: nothing that a terminal or a browser obeys, and no secret."""

import json
import logging
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_lm
from typer.testing import CliRunner

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.checkpoint import save_pruned
from calibrune.cli import app
from calibrune.cli.output import complain, print_json, say, unforeseen
from calibrune.corpora.files import FileCorpus
from calibrune.durable import sealed_json, to_json, unsealed
from calibrune.errors import CorpusError, ModelError, plain, without_secrets
from calibrune.patterns import parse_pattern
from calibrune.progress import AboveBars, progress_bar, show_progress
from calibrune.prune import prune_model
from calibrune.pruners import Wanda
from calibrune.report.tables import Table
from calibrune.verbs import request_for

EVIL = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202eerutcip\x00\r\x1b]52;c;cm0gLXJm\x1b\\\u2066e\U000e0041"
"""It sets the title, erases the screen, colours, turns the writing round, and fills the clipboard."""

OBEYED = set(map(chr, (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))))

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
SECRETS = {
    "https://me:hunter22@host/v1": "hunter22",
    "https://host/x?token=hunter22&n=1": "hunter22",
    "https://host/x?X-Amz-Signature=hunter22&X-Amz-Expires=1": "hunter22",
    "https://host/x?a=1&api_key=hunter22": "hunter22",
    "Authorization: Bearer hunter22": "hunter22",
    "{'authorization': 'Basic hunter22'}": "hunter22",
    "the token in HF_TOKEN is word-of-the-environment": "word-of-the-environment",
    f"token {TOKEN} is not valid": TOKEN,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "word-of-the-environment")
    yield
    show_progress(None)


class Terminal(StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_no_sequence_and_nothing_unseen_is_left():
    assert plain(EVIL) == "abcd erutcip   e "
    assert plain("Grüße, 剪枝, שלום, e\u0301,\n\ttab") == "Grüße, 剪枝, שלום, e\u0301,\n\ttab"


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]m;0\x07\x9b\x9d"), max_size=40))
def test_whatever_the_text_a_terminal_obeys_nothing_of_it(text):
    assert not OBEYED & set(plain(text))
    assert plain(plain(text)) == plain(text)


def test_names_texts_and_errors_reach_the_terminal_plain(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    say(f"{EVIL}\n{Table(('name', 'n'), [(EVIL, 1)]).text()}")
    error = CorpusError(f"there is no {EVIL}")
    error.add_note(f"in {EVIL}")
    complain(error, 2)
    unforeseen(ValueError, ValueError(EVIL), None)
    out, err = capsys.readouterr()
    assert "abcd" in out
    assert "there is no abcd" in err
    assert not OBEYED & {*out, *err}


def test_a_file_named_by_others_is_told_plain(tmp_path):
    with pytest.raises(CorpusError) as caught:
        FileCorpus(path=tmp_path / f"{EVIL.replace(chr(0), '')}.jsonl").check()
    assert not OBEYED & set(str(caught.value))


def test_log_lines_and_the_names_of_bars_are_plain(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    show_progress(True)
    log = logging.Logger("test")
    log.addHandler(AboveBars())
    with progress_bar(EVIL, total=2) as bar:
        log.warning("%s", EVIL)
        bar.update(2)
    written = sys.stderr.getvalue()
    assert "abcd" in written
    for own in ("\r", "\x1b[A"):  # the bar's own: back to the beginning, and up
        written = written.replace(own, "")
    assert not OBEYED & set(written)


def test_json_on_a_terminal_is_plain_and_reads_back_as_it_was(capsys):
    print_json({EVIL: [EVIL, "剪枝 \x7f"]})
    out = capsys.readouterr().out
    assert not OBEYED & set(out)
    assert json.loads(out) == {EVIL: [EVIL, "剪枝 \x7f"]}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_few_signs_gets_what_it_can_show(encoding, monkeypatch):
    stream = type("Narrow", (StringIO,), {"encoding": encoding, "errors": "strict"})()
    monkeypatch.setattr(sys, "stdout", stream)
    say(Table(("name", "n"), [("剪枝", None)]).text())
    print_json({"name": "剪枝 \U0001f600"})
    table, document = stream.getvalue().split("{", 1)
    assert table.encode(encoding).decode(encoding).splitlines() == ["name  n", "----  -", "??  -"]
    assert json.loads("{" + document) == {"name": "剪枝 \U0001f600"}


@pytest.mark.parametrize(("said", "secret"), SECRETS.items())
def test_no_secret_is_in_an_error_a_log_line_or_a_record(said, secret, capsys, monkeypatch):
    assert secret in said
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = logging.Logger("test")
    log.addHandler(AboveBars())
    log.warning("fetching: %s", said)
    complain(OSError(said), 1)
    unforeseen(ValueError, ValueError(said), None)
    written = [str(ModelError(said)), sys.stderr.getvalue(), to_json({"source": said, "key": [said]})]
    assert all("***" in one for one in written)
    assert not any(secret in one for one in written)
    assert json.loads(written[-1])["key"] == [without_secrets(said)]


@pytest.mark.parametrize(
    "word", ["done", "token", "null", "sha256", "seal", "layers", "tokenizer", "0123456789", "magnitude"]
)
def test_a_word_that_stands_for_a_key_changes_no_record(word, monkeypatch):
    """Servers that want no key are given any word; what it would hit in a record is what the record says."""
    record = {
        "status": "done", "tokenizer": {"sha256": "0123456789abcdef"}, "special_tokens": {"bos": "document"},
        "n": 123456789012, "report": {"layers": [None, {"method": "magnitude"}]},
    }  # fmt: skip
    plain = sealed_json(record)
    monkeypatch.setenv("CALIBRUNE_API_KEY", word)
    assert sealed_json(record) == plain
    assert unsealed(json.loads(plain)) == record


def test_a_real_key_is_found_in_a_record_alone_and_in_a_sentence(monkeypatch):
    monkeypatch.setenv("CALIBRUNE_API_KEY", "0123456789abcdefghij")
    told = to_json({"alone": "0123456789abcdefghij", "said": ["the key 0123456789abcdefghij was refused"]})
    assert json.loads(told) == {"alone": "***", "said": ["the key *** was refused"]}


def test_half_a_character_can_be_written():
    assert json.loads(to_json({"name \ud800": "\ud800"})) == {"name \\ud800": "\\ud800"}


def test_what_is_no_secret_is_left_as_it_is():
    for said in ("https://huggingface.co/docs?page=2", "hf_hub_download is asked", "the key of a run is 0123", "a@b.c"):
        assert without_secrets(said) == said


def test_no_file_of_a_checkpoint_or_a_set_has_a_secret(tmp_path):
    lm = tiny_lm()
    source = {"name": "c4 from https://me:hunter22@host/?token=hunter22 ``` <script>", "note": f"{TOKEN} {EVIL}"}
    data = CalibrationSet.from_ids(torch.arange(32).reshape(2, 16), **source)
    report = prune_model(lm.model, data, Wanda(), "50%")
    request = request_for(lm, "0" * 12, "wanda", Wanda(), parse_pattern("50%"), data)
    save_pruned(lm, report, request, tmp_path / "out")
    data.save(tmp_path / "set")
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md")}
    assert {"calibrune.json", "README.md", "manifest.json"} <= texts.keys()
    assert not any(secret in text for text in texts.values() for secret in ("hunter22", TOKEN))
    assert not OBEYED & set(texts["README.md"])
    assert "source `c4 from https://***@host/?token=*** ''' <script>`" in texts["README.md"]


def test_the_commands_end_with_errors_that_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["inspect", "https://me:hunter22@host/model"],
        ["calibrate", "selfgen:engine=server:url='http://me:hunter22@host/v1'", "--model", "m", "--out", "x"],
        ["calibrate", "selfgen:engine=server:url='http://host/v1?token=hunter22'", "--model", "m", "--out", "x"],
        ["prune", f"org/{TOKEN}", "--out", "x", "--method", "https://me:hunter22@host"],
    ):
        result = CliRunner().invoke(app, arguments)
        said = SimpleNamespace(status=result.exit_code, text=result.stdout + result.stderr)
        assert said.status == 2, said
        assert "hunter22" not in said.text
        assert TOKEN not in said.text


def test_a_table_in_markdown_brings_no_markup():
    said = Table(("name", "n"), [(f"<img src=x onerror=alert(1)> | {EVIL}", 1)]).markdown()
    assert said.splitlines()[2].startswith(r"| &lt;img src=x onerror=alert(1)> \| abcd")
    assert not OBEYED & set(said)
