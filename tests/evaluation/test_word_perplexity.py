"""Word perplexity is the harness's: its `HFLM`, its task's functions and its aggregation, on the same pages."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from tiny_models import tiny_lm

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import weighted_perplexity
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

from calibrune.errors import CorpusError
from calibrune.evaluation import tasks
from calibrune.evaluation.tasks import quiet_harness
from calibrune.evaluation.texts import evaluation_texts
from calibrune.evaluation.word_perplexity import WordPerplexity, wikitext_pages

SHARED = Path(os.environ.get("CALIBRUNE_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")

PAGES = (
    ' \n = A page = \n \n It cost 1 @,@ 000 pounds , or so it \'s said . \n = = A part = = \n \n ( x ) " y " \n',
    " = Another = \n \n Short . \n",
    " = Long = \n \n " + "Many words , again and again . " * 12 + "\n",
)


def by_the_harness(lm, pages) -> float:
    """The task `wikitext` by hand: what its YAML says is called in the order in which it is called."""
    with quiet_harness():
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1)
        docs = [{"page": page} for page in pages]
        requests = [Instance("loglikelihood_rolling", doc, (wikitext_detokenizer(doc),), 0) for doc in docs]
        found = model.loglikelihood_rolling(requests, disable_tqdm=True)
    return weighted_perplexity(
        [process_results(doc, (one,))["word_perplexity"] for doc, one in zip(docs, found, strict=True)]
    )


@pytest.mark.parametrize("adds_bos", [True, False])
def test_word_perplexity_is_the_harnesss_own(adds_bos):
    lm = tiny_lm(adds_bos=adds_bos)
    score = WordPerplexity().score(lm, PAGES)
    assert score.value == pytest.approx(by_the_harness(lm, PAGES), rel=1e-5)
    assert (score.metric, score.n, score.higher_is_better) == ("word perplexity", 3, False)
    assert score.protocol["words"] == sum(len(re.split(r"\s+", page)) for page in PAGES)
    assert score.protocol["max_length"] == 128  # and the last page is longer
    assert score.stderr > 0


@needs_shared_data
def test_word_perplexity_of_real_pages_is_the_harnesss_own():
    lm = tiny_lm()
    texts = evaluation_texts("wikitext2:protocol=harness-word", SHARED)
    assert len(texts.texts) == 62
    (score,) = texts.scores(lm, limit=2)
    assert score.value == pytest.approx(by_the_harness(lm, texts.texts[:2]), rel=1e-5)
    assert (score.n, score.protocol["dataset"]) == (2, "wikitext2:harness-word")


@needs_shared_data
def test_rows_become_the_sixty_two_pages_of_the_harness_and_nothing_is_lost():
    with gzip.open(SHARED / "corpora" / "wikitext2_test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line)["text"] for line in file]
    pages = wikitext_pages(rows)
    assert len(pages) == 62
    assert "\n".join(pages) == "".join(row or " \n" for row in rows).removeprefix(" \n")
    assert pages[1].startswith(" = Du Fu = \n")


def test_a_heading_of_a_part_begins_no_page():
    rows = ["", " = One = \n", "", " text \n", " = = Part = = \n", " = = = Deeper = = = \n", " = Two = \n", " a = b \n"]
    first, second = wikitext_pages(rows)
    assert first == " = One = \n \n text \n = = Part = = \n = = = Deeper = = = "
    assert second == " = Two = \n a = b \n"


def test_blank_pages_are_left_out_and_counted():
    lm = tiny_lm()
    score = WordPerplexity().score(lm, [PAGES[1], " \n"])
    assert (score.n, score.protocol["skipped_documents"], score.stderr) == (1, 1, None)
    with pytest.raises(CorpusError, match="none of the 2 documents has a word in it"):
        WordPerplexity().score(lm, ["", " \n"])


def test_without_the_harness_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tasks.ConfigError, match=r"word perplexity, need.*pip install 'calibrune\[evaluate\]'"):
        evaluation_texts("python-docs:protocol=harness-word")
