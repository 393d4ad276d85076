"""The perplexity protocols: by hand where the probabilities are known, and against the naive loop."""

import math
from statistics import mean, stdev

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibrune.errors import ConfigError, CorpusError, ModelError
from calibrune.evaluation.averages import of_neighbours
from calibrune.evaluation.perplexity import TextLosses, TextPerplexity, WindowPerplexity
from calibrune.lm.loading import LanguageModel

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = ["", " = A heading = ", "", "Some words, and more words.", "x", "the end of it"]


def byte_tokenizer(*, adds_bos: bool, has_bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; token 0 is BOS."""
    vocab = {"<s>": 0, **{byte: i for i, byte in enumerate(BYTES, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if has_bos else None)


def tiny_lm(*, adds_bos: bool = False, has_bos: bool = True, uniform: bool = False) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=None, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.0 if uniform else 50.0)
    return LanguageModel(model, byte_tokenizer(adds_bos=adds_bos, has_bos=has_bos), {"name": "tiny"})


@torch.no_grad()
def loss_of(lm: LanguageModel, ids: list[int]) -> float:
    """The naive loop's body: one forward, mean loss, as the papers' scripts have it."""
    logits = lm.model(torch.tensor([ids])).logits[0, :-1]
    return cross_entropy(logits.double(), torch.tensor(ids[1:])).item()


def byte_ids(text: str) -> list[int]:
    return byte_tokenizer(adds_bos=False)(text)["input_ids"]


@pytest.mark.parametrize(
    "protocol",
    [
        WindowPerplexity(seq_len=8),
        WindowPerplexity(seq_len=8, bos="window"),
        TextPerplexity(),
        TextPerplexity(average="exp_of_mean_loss"),
    ],
    ids=str,
)
def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(protocol):
    score = protocol.score(tiny_lm(uniform=True), TEXTS)
    assert score.value == pytest.approx(257, rel=1e-6)
    assert score.stderr == (None if isinstance(protocol, WindowPerplexity) else pytest.approx(0, abs=1e-4))
    assert not score.higher_is_better


def test_windows_are_cut_from_all_texts_joined_with_the_empty_ones():
    lm = tiny_lm()
    ids = byte_ids("\n\n".join(TEXTS))
    assert len(ids) == sum(map(len, TEXTS)) + 2 * 5
    windows = [ids[i : i + 8] for i in range(0, len(ids) - 7, 8)]
    losses = [loss_of(lm, window) for window in windows]
    score = WindowPerplexity(seq_len=8).score(lm, TEXTS)
    assert score.items == pytest.approx(losses, abs=1e-5)
    assert score.value == pytest.approx(math.exp(mean(losses)), rel=1e-5)
    assert score.stderr is None  # too few, and the record says it
    assert score.protocol["standard_error"] == "none for fewer than 25 windows in a row"
    assert score.n == len(windows)
    assert score.protocol["unused_tokens"] == len(ids) % 8
    assert score.protocol["join"] == "\n\n"


def test_only_the_first_window_has_the_tokenizers_bos_and_the_protocol_says_so():
    lm = tiny_lm(adds_bos=True)
    ids = [0, *byte_ids("\n\n".join(TEXTS))]
    score = WindowPerplexity(seq_len=9).score(lm, TEXTS)
    assert score.items == pytest.approx([loss_of(lm, ids[i : i + 9]) for i in range(0, len(ids) - 8, 9)], abs=1e-5)
    assert "the others do not" in score.protocol["note"]
    assert "note" not in WindowPerplexity(seq_len=9).score(tiny_lm(), TEXTS).protocol


@pytest.mark.parametrize("adds_bos", [True, False])
def test_every_window_can_start_with_bos(adds_bos):
    lm = tiny_lm(adds_bos=adds_bos)
    ids = byte_ids("\n\n".join(TEXTS))
    score = WindowPerplexity(seq_len=9, bos="window").score(lm, TEXTS)
    windows = [[0, *ids[i : i + 8]] for i in range(0, len(ids) - 7, 8)]
    assert score.items == pytest.approx([loss_of(lm, window) for window in windows], abs=1e-5)
    assert "note" not in score.protocol


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 3, 7, 8])
@pytest.mark.parametrize("bos", ["tokenizer", "window"])
def test_with_a_stride_every_token_is_scored_once_after_what_its_window_has_before_it(stride, bos):
    lm = tiny_lm()
    start, own = ([0], 8) if bos == "window" else ([], 9)
    ids = byte_ids("\n\n".join(TEXTS))
    totals, counts, seen = [], [], 0 if start else 1
    for end in range(own, len(ids) + 1, stride):
        window = start + ids[end - own : end]
        log_p = lm.model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        # the papers' way where windows do not overlap: what a window begins with is not predicted
        new = range(len(window) - end + max(seen, end - own + (not start)), len(window))
        totals.append(-sum(float(log_p[i - 1, window[i]]) for i in new))
        counts.append(len(new))
        seen = end
    score = WindowPerplexity(seq_len=9, stride=stride, bos=bos).score(lm, TEXTS)
    assert sum(counts) == seen - (not start)
    assert score.n == len(totals)
    assert score.items == pytest.approx([total / mean(counts) for total in totals], abs=1e-5)
    assert score.value == pytest.approx(math.exp(sum(totals) / sum(counts)), rel=1e-5)
    assert score.protocol["unused_tokens"] == len(ids) - seen


def test_a_stride_as_long_as_a_window_is_none_and_a_longer_one_leaves_text_out():
    lm = tiny_lm()
    assert WindowPerplexity(seq_len=8, stride=8).score(lm, TEXTS).items == pytest.approx(
        WindowPerplexity(seq_len=8).score(lm, TEXTS).items
    )
    with pytest.raises(ConfigError, match=r"8 tokens of text cannot be 9 tokens apart.*stride=8 or less"):
        WindowPerplexity(seq_len=9, stride=9, bos="window")


def test_the_standard_error_of_many_windows_is_by_blocks_and_the_delta_method():
    lm = tiny_lm()
    score = WindowPerplexity(seq_len=4).score(lm, TEXTS * 3)
    assert score.n > 25
    error = of_neighbours([score.value * (item - mean(score.items)) for item in score.items], "windows")
    assert score.stderr == pytest.approx(error.value, rel=1e-9)
    assert score.protocol["standard_error"] == "from 7 blocks of 7 neighbouring windows"


def test_a_limit_takes_the_first_windows_and_one_window_has_no_standard_error():
    lm = tiny_lm()
    whole = WindowPerplexity(seq_len=8).score(lm, TEXTS)
    three = WindowPerplexity(seq_len=8).score(lm, iter(TEXTS), limit=3)
    assert three.items == pytest.approx(whole.items[:3], abs=1e-6)
    assert (three.n, three.protocol["limit"]) == (3, 3)
    assert WindowPerplexity(seq_len=8).score(lm, TEXTS, limit=1).stderr is None


def test_text_perplexity_equals_one_forward_a_text_averaged_both_ways():
    lm = tiny_lm()
    ids = [byte_ids(text) for text in TEXTS if len(text) > 1]
    losses = [loss_of(lm, text) for text in ids]
    both = TextPerplexity().both(lm, TEXTS)
    by_text, by_token = both["mean_of_perplexities"], both["exp_of_mean_loss"]
    assert by_text.items == pytest.approx([math.exp(loss) for loss in losses], rel=1e-5)
    assert by_text.value == pytest.approx(mean(math.exp(loss) for loss in losses), rel=1e-5)
    total = sum(loss * (len(text) - 1) for loss, text in zip(losses, ids, strict=True))
    assert by_token.value == pytest.approx(math.exp(total / sum(len(text) - 1 for text in ids)), rel=1e-5)
    assert math.exp(mean(by_token.items)) == pytest.approx(by_token.value)
    assert by_text == TextPerplexity().score(lm, TEXTS)
    assert by_token == TextPerplexity(average="exp_of_mean_loss").score(lm, TEXTS)
    assert by_text.protocol["skipped_texts"] == 3  # two empty, one of a single token


def test_texts_longer_than_the_limit_or_the_context_are_cut_and_counted():
    lm = tiny_lm()
    texts = ["a" * 10, "b" * 20, "c" * 50]
    cut = TextPerplexity(max_tokens=15).score(lm, texts)
    assert cut.protocol["cut_texts"] == 2
    assert cut.items == pytest.approx(TextPerplexity().score(lm, [text[:15] for text in texts]).items)
    by_context = TextPerplexity(max_tokens=None).score(lm, texts)
    assert (by_context.protocol["cut_texts"], by_context.protocol["tokens"]) == (1, 10 + 20 + 32)


def test_a_limit_takes_the_first_texts_also_the_ones_that_are_skipped():
    score = TextPerplexity().score(tiny_lm(), TEXTS, limit=4)
    assert (score.n, score.protocol["texts"], score.protocol["skipped_texts"]) == (2, 4, 2)
    assert TextPerplexity().score(tiny_lm(), TEXTS, limit=2).stderr is None


def test_averages_by_hand():
    # perplexities 2 and 8; 3 tokens at ln 2 and 1 token at ln 8: the mean loss is (3 ln 2 + 3 ln 2) / 4 = 1.5 ln 2
    losses = TextLosses(totals=(3 * math.log(2), math.log(8)), counts=(3, 1))
    by_text = losses.score("mean_of_perplexities", {})
    assert (by_text.value, by_text.stderr) == (pytest.approx(5), pytest.approx(3))
    by_token = losses.score("exp_of_mean_loss", {})
    assert by_token.value == pytest.approx(2**1.5)
    assert by_token.items == pytest.approx((1.5 * math.log(2), 1.5 * math.log(2)))


def test_the_standard_error_of_the_mean_loss_knows_that_texts_differ_in_length():
    # the same loss a token in texts of all lengths: nothing to be uncertain about
    same = TextLosses(totals=(2.0, 20.0, 200.0), counts=(1, 10, 100))
    assert same.score("exp_of_mean_loss", {}).stderr == pytest.approx(0, abs=1e-9)
    # texts of one length: the delta method's usual form
    totals = (10.0, 14.0, 12.0)
    got = TextLosses(totals=totals, counts=(10, 10, 10)).score("exp_of_mean_loss", {})
    assert got.stderr == pytest.approx(got.value * stdev([t / 10 for t in totals]) / math.sqrt(3))


def test_a_loss_too_large_or_not_a_number_is_shown_and_not_an_error():
    infinite = TextLosses(totals=(5000.0, 1.0), counts=(1, 1)).score("mean_of_perplexities", {})
    assert (infinite.value, infinite.stderr) == (math.inf, None)
    nan = TextLosses(totals=(math.nan, 1.0), counts=(1, 1))
    assert math.isnan(nan.score("mean_of_perplexities", {}).value)
    assert math.isnan(nan.score("exp_of_mean_loss", {}).value)


def test_the_record_changes_with_the_text_and_with_every_setting():
    lm = tiny_lm()
    records = [
        WindowPerplexity(seq_len=8).score(lm, TEXTS).protocol,
        WindowPerplexity(seq_len=8).score(lm, [*TEXTS, "?"]).protocol,
        WindowPerplexity(seq_len=8).score(lm, TEXTS, limit=2).protocol,
        WindowPerplexity(seq_len=8, bos="window").score(lm, TEXTS).protocol,
    ]
    assert all(a != b for i, a in enumerate(records) for b in records[:i])


@pytest.mark.parametrize(
    ("protocol", "texts", "limit", "error", "message"),
    [
        (WindowPerplexity(seq_len=33), TEXTS, None, ConfigError, "33 tokens.*context of 32; use seq_len=32 or less"),
        (WindowPerplexity(seq_len=16), ["short"], None, CorpusError, "takes 16 tokens, .* come to 5;.*smaller seq_len"),
        (WindowPerplexity(seq_len=16), [], None, CorpusError, "come to 0"),
        (WindowPerplexity(seq_len=16), TEXTS, 0, ConfigError, "limit must be at least 1, got 0"),
        (
            TextPerplexity(),
            ["", "a"],
            None,
            CorpusError,
            r"needs a text of two tokens or more, and there is none \(texts: 2\)",
        ),
        (TextPerplexity(), TEXTS, -1, ConfigError, "limit must be at least 1, got -1"),
    ],
)
def test_what_cannot_be_measured_says_why(protocol, texts, limit, error, message):
    with pytest.raises(error, match=message):
        protocol.score(tiny_lm(), texts, limit)


def test_bos_in_every_window_needs_a_bos_token():
    with pytest.raises(ConfigError, match="BOS"):
        WindowPerplexity(seq_len=8, bos="window").score(tiny_lm(has_bos=False), TEXTS)


def test_settings_are_checked_when_made():
    with pytest.raises(ConfigError, match="seq_len cannot be 1"):
        WindowPerplexity(seq_len=1)
    with pytest.raises(ConfigError, match="average"):
        TextPerplexity(average="median")


@pytest.mark.parametrize("protocol", [WindowPerplexity(seq_len=8), TextPerplexity()], ids=lambda one: one.name)
def test_a_tokenizer_that_does_not_fit_the_model_is_an_error(protocol):
    lm = tiny_lm()
    lm.model.resize_token_embeddings(40)
    with pytest.raises(ModelError, match=r"tokenizer does not fit the model: it made token \d+, .* knows 40; load"):
        protocol.score(lm, TEXTS)


def test_a_bos_that_the_model_does_not_know_does_not_fit_either():
    lm = tiny_lm()
    lm.tokenizer.add_special_tokens({"bos_token": "<new>"})
    with pytest.raises(ModelError, match="it made token 257, and the model knows 257"):
        WindowPerplexity(seq_len=8, bos="window").score(lm, TEXTS)
