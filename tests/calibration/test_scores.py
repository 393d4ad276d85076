"""Documents scored by a model: what counts, what is kept on disk, and how the filter uses it."""

import math
from collections import Counter

import pytest
import torch
from tiny_models import tiny_lm

from calibrune.calibration import scores
from calibrune.calibration.filters import PerplexityFilter, options
from calibrune.calibration.scores import DocumentScorer
from calibrune.calibration.spec import build_calibration, prepare_calibration
from calibrune.corpora.document import Document
from calibrune.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(adds_bos=True)


def by_hand(lm, ids, first):
    """exp of the mean of -log p of the tokens from place `first` on."""
    with torch.no_grad():
        log_p = lm.model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    return math.exp(-sum(float(log_p[t - 1, ids[t]]) for t in range(first, len(ids))) / (len(ids) - first))


def test_the_perplexity_is_that_of_the_equation_with_and_without_a_prefix(lm):
    ids = lm.tokenizer("hello world").input_ids
    assert ids[0] == 0
    (score,) = DocumentScorer(model=lm).score([Document("hello world", "a")])
    assert score == pytest.approx(by_hand(lm, ids, 1), rel=1e-5)
    (score,) = DocumentScorer(model=lm, skip_tokens=3).score([Document("hello world", "a")])
    assert score == pytest.approx(by_hand(lm, ids, 4), rel=1e-5)
    (score,) = DocumentScorer(model=lm, max_tokens=6).score([Document("hello world", "a")])
    assert score == pytest.approx(by_hand(lm, ids[:6], 1), rel=1e-5)


def test_the_exact_tokens_of_a_document_are_scored_unless_they_are_anothers(lm):
    exact = (0, 50, 60, 70)
    document = Document("hello", "a", token_ids=exact)
    assert DocumentScorer(model=lm).score([document])[0] == pytest.approx(by_hand(lm, list(exact), 1), rel=1e-5)
    (of_text,) = DocumentScorer(model=lm, own_tokens=False).score([document])
    assert of_text == pytest.approx(by_hand(lm, lm.tokenizer("hello").input_ids, 1), rel=1e-5)


def test_a_document_is_scored_once_and_another_percentile_costs_nothing(lm, monkeypatch, cache):
    documents = [Document("some text " * n, str(n)) for n in range(1, 9)]
    kept = [
        d.id for d in PerplexityFilter(drop_highest=0.25, scorer=DocumentScorer(model=lm)).keep(documents, Counter())
    ]
    assert len(kept) == 6

    def never(*args, **kwargs):
        raise AssertionError("scored again")

    monkeypatch.setattr(scores, "text_log_likelihoods", never)
    again = PerplexityFilter(drop_highest=0.5, scorer=DocumentScorer(model=lm))
    assert len(list(again.keep(documents, Counter()))) == 4
    (file,) = (cache / "scores").glob("*.jsonl")
    with file.open("a") as damaged:
        damaged.write('["half')
    assert DocumentScorer(model=lm).score(documents[:1]) == DocumentScorer(model=lm).score(documents[:1])


def test_another_model_has_scores_of_its_own(lm):
    other = tiny_lm("gpt2", adds_bos=True)
    document = Document("some text", "a")
    assert DocumentScorer(model=lm).score([document]) != DocumentScorer(model=other).score([document])


def test_a_document_without_a_token_to_score_is_not_a_number_and_goes_for_that_reason(lm):
    of = PerplexityFilter(drop_highest=0.5, scorer=DocumentScorer(model=lm, skip_tokens=2))
    dropped = Counter()
    kept = [d.id for d in of.keep([Document("ab", "short"), Document("abc", "a"), Document("xyz", "b")], dropped)]
    assert dropped == {"perplexity is not a number": 1, "perplexity among the highest 0.5": 1}
    assert len(kept) == 1


def test_fixed_bounds_come_before_the_ranks():
    documents = [Document("", str(p), perplexity=float(p)) for p in (1, 10, 20, 30, 1000)]
    of = PerplexityFilter(drop_highest=0.34, min_perplexity=5, max_perplexity=100)
    dropped = Counter()
    assert [d.id for d in of.keep(documents, dropped)] == ["10", "20"]
    assert dropped == {"perplexity below 5": 1, "perplexity above 100": 1, "perplexity among the highest 0.34": 1}
    with pytest.raises(ConfigError, match="leave nothing"):
        PerplexityFilter(min_perplexity=10, max_perplexity=5)
    with pytest.raises(ConfigError, match="needs a scorer"):
        PerplexityFilter(rescore=True)


def test_a_recorded_perplexity_is_used_unless_all_are_to_be_scored(lm):
    document = Document("some text", "a", perplexity=3.0)
    scorer = DocumentScorer(model=lm)
    bound = {"drop_highest": 0.0, "max_perplexity": 4.0, "scorer": scorer}
    assert list(PerplexityFilter(**bound).keep([document], Counter())) == [document]
    assert list(PerplexityFilter(**bound, rescore=True).keep([document], Counter())) == []


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"text": "text number {i} of some"}}' for i in range(40)))
    return "a.jsonl"


def test_every_source_takes_every_filter_in_a_spec(texts, lm):
    made = build_calibration(f"{texts}:drop_highest=0.25:min_chars=5:dedup=0.99", lm, n_samples=2, seq_len=16)
    assert [one["kind"] for one in made.manifest["filters"]] == ["LengthFilter", "DuplicateFilter", "PerplexityFilter"]
    assert made.manifest["filters"][-1]["scorer"]["model"] == "tiny-llama"
    assert made.dropped == {"perplexity among the highest 0.25": 10}
    # of a file nothing goes that nobody asked for
    bounded = build_calibration(f"{texts}:max_perplexity=1e9", lm, n_samples=2, seq_len=16)
    assert (bounded.manifest["filters"][0]["drop_highest"], bounded.dropped) == (0.0, {})
    own = build_calibration("selfgen:n_texts=16:min_chars=2:prefix=included", lm, n_samples=2, seq_len=16)
    assert [one["kind"] for one in own.manifest["filters"]] == ["LengthFilter", "PerplexityFilter"]
    assert own.manifest["filters"][1]["scorer"]["skip_tokens"] == 0


def test_another_model_can_score_and_the_prompt_does_not_count(texts, lm, tmp_path, monkeypatch):
    other = tiny_lm("gpt2")
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    spec = f"selfgen:n_texts=16:prompts={texts}:prefix_tokens=3:by={tmp_path / 'other'}"
    loaded = []
    load = options.load_model
    monkeypatch.setattr(options, "load_model", lambda *given, **how: loaded.append(given) or load(*given, **how))
    made = build_calibration(spec, lm, n_samples=2, seq_len=16)
    scorer = made.manifest["filters"][0]["scorer"]
    assert (scorer["model"], scorer["skip_tokens"], scorer["own_tokens"]) == ("other", 3, False)
    del loaded[:]
    build_calibration(f"{spec},{texts}:drop_highest=0.2:by={tmp_path / 'other'}", lm, n_samples=2, seq_len=16)
    assert len(loaded) <= 1  # for both parts; none where the one before is still in memory


def test_chats_are_scored_anew_only_with_all_their_tokens():
    with pytest.raises(ConfigError, match=r"by has chats scored anew, .*: add prefix=included to count them"):
        prepare_calibration("selfgen:prompts=chat:by=gpt2")
    prepare_calibration("selfgen:prompts=chat:by=gpt2:prefix=included")
    prepare_calibration("selfgen:prompts=chat")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("drop_lowest=0.1:prefix=in", "prefix cannot be 'in'"),
        ("drop_lowest=0.1:prefix=included", "prefix=included does nothing for 'a.jsonl', whose texts have no prompt"),
        ("dedup=2", "dedup cannot be 2"),
        ("dedupe=0.8", "did you mean 'dedup'"),
        ("language=english", "ISO 639-1"),
        ("evals=nowhere", "no file nowhere"),
        ("max_perplexity=0.001", "dropped all 40 documents of 'a'"),
        ("scorer=x", "no option 'scorer'"),
        ("shingle_words=3", "shingle_words does nothing without one of dedup"),
        ("by=gpt2", "by does nothing without one of drop_highest, drop_lowest"),
    ],
)
def test_a_bad_filter_in_a_spec_is_one_sentence(spec, says, texts, lm):
    with pytest.raises(Exception, match=says) as caught:
        build_calibration(f"{texts}:{spec}", lm, n_samples=2, seq_len=16)
    assert "\n" not in str(caught.value)
