"""The journal: what is in it survives, what is damaged is written anew, and nothing is in it twice."""

from pathlib import Path

import pytest

from calibrune.corpora.journal import Journal
from calibrune.corpora.writing import Leg, Request, Writer
from calibrune.lm.generation import GeneratedText, Sampling


def text(n: int) -> GeneratedText:
    return GeneratedText((7, n, n + 1), 1, (-0.1 * n, None), n % 2 == 0)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "deep" / "texts.jsonl"


def test_what_is_appended_is_read_back_by_another(file):
    Journal(file).append({"a": text(1), 'odd "key"\n': text(2)})
    Journal(file).append({"b": text(3)})
    found = Journal(file)
    assert len(found) == 3
    assert [found.read(key, (7,)) for key in ("a", 'odd "key"\n', "b", "c")] == [text(1), text(2), text(3), None]


def test_a_key_is_kept_once_and_the_first_to_come_stays(file):
    one, other = Journal(file), Journal(file)
    one.append({"a": text(1)})
    other.append({"a": text(2), "b": text(3)})
    assert other.read("a", (7,)) == text(1)
    assert len(file.read_bytes().splitlines()) == 2


def test_of_another_prompt_there_is_no_text(file):
    journal = Journal(file)
    journal.append({"a": text(1)})
    assert journal.read("a", (8,)) is None
    journal.append({"a": text(2)})
    assert Journal(file).read("a", (7,)) == text(2)


def test_what_another_process_wrote_first_is_what_this_run_reads_as_well(file):
    class Slow:
        def complete(self, prompts, seeds, **settings):
            Journal(file).append({f"0-of-3:{name}": text(8) for name in "ab"})
            return [text(2) for _ in prompts]

    requests = [Request(name, (7,)) for name in "abc"]
    for _ in range(2):
        (batch,) = Writer(Slow(), (Leg(9, ()),), Sampling(), seed=0).in_batches(requests, 3, Journal(file))
        assert [found.token_ids for _, found in batch.texts] == [(7, 8, 9), (7, 8, 9), (7, 2, 3)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_torn_last_line_is_dropped_with_a_warning(share, file, caplog):
    Journal(file).append({"a": text(1), "b": text(2)})
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    file.write_bytes(whole[: first + int(share * (len(whole) - first))])
    journal = Journal(file)
    assert "a" in journal
    assert "b" not in journal
    journal.append({"b": text(2)})
    assert "cut short by a crash" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: b"\xff" + line[1:],
        lambda line: line.replace(b"null", b"nul"),
        lambda line: line.replace(b'"prompt_length"', b'"prompt_lenght"'),
        lambda line: line.replace(b", null]", b"]"),
        lambda line: b"\n",
        lambda line: b"[]\n",
        lambda line: b"{}\n",
    ],
)
def test_a_damaged_line_is_written_anew_and_the_others_stay(damage, file, caplog):
    Journal(file).append({"a": text(1), "b": text(2)})
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(damage(first) + second)
    journal = Journal(file)
    assert journal.read("a", (7,)) is None
    assert "damaged" in caplog.text
    journal.append({"a": text(1)})
    assert [Journal(file).read(key, (7,)) for key in "ab"] == [text(1), text(2)]
