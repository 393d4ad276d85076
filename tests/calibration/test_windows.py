import logging
from collections import Counter
from itertools import chain, count, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from calibrune.calibration import windows as windows_module
from calibrune.calibration.windows import CutWindows, Frame, Windows, cut_windows
from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError, ConfigError

BOS, EOS, BLANK = 0, 1, ord(" ")
A, B, C = map(ord, "abc")


def documents(*texts: str | tuple[int, ...]) -> list[Document]:
    """A string is a text; a tuple, exact tokens."""
    return [
        Document(t, f"toy:{row}") if isinstance(t, str) else Document("", f"toy:{row}", token_ids=t)
        for row, t in enumerate(texts)
    ]


def cut(texts, tokenizer, *, n_samples=1, seq_len=4, seed=0, dropped=None, **how) -> CutWindows:
    return cut_windows(
        texts if not isinstance(texts, tuple) else documents(*texts),
        tokenizer,
        Windows(**how),
        n_samples=n_samples,
        seq_len=seq_len,
        seed=seed,
        dropped=Counter() if dropped is None else dropped,
        corpus="toy",
    )


def test_packed_by_hand(tokenizer):
    got = cut(("aa", "b", "cccc"), tokenizer, n_samples=3)
    # <s> a a </s> | <s> b </s> <s> | c c c c | </s>
    assert got.input_ids.tolist() == [[BOS, A, A, EOS], [BOS, B, EOS, BOS], [C, C, C, C]]
    assert got.document_ids == (("toy:0",), ("toy:1", "toy:2"), ("toy:2",))


def test_the_name_of_a_special_token_in_a_text_is_text(tokenizer):
    made = cut(documents("a</s><s>b"), tokenizer, seq_len=10)
    assert made.input_ids.tolist() == [[BOS, *map(ord, "a</s><s>b")]]


def test_packed_with_bos_at_every_window_by_hand(tokenizer):
    got = cut(("aa", "b", "cccc"), tokenizer, n_samples=3, bos="window")
    # the second begins with a BOS of its own; the third is given one, and so c c c are left for it
    assert got.input_ids.tolist() == [[BOS, A, A, EOS], [BOS, B, EOS, BOS], [BOS, C, C, C]]
    assert got.document_ids == (("toy:0",), ("toy:1", "toy:2"), ("toy:2",))
    long = cut(("abcabcabc",), tokenizer, n_samples=3, bos="window")
    # nothing is lost at the seams: <s> a b c | <s> a b c | <s> a b c
    assert long.input_ids.tolist() == [[BOS, A, B, C]] * 3


@pytest.mark.parametrize("policy", ["packed", "packed_blank"])
def test_tokens_that_are_framed_already_stand_as_they_are(policy, tokenizer):
    chats = [Document("", f"toy:{i}", token_ids=ids, framed=True) for i, ids in enumerate([(BOS, A, EOS, B), (BOS, C)])]
    got = cut(chats, tokenizer, seq_len=6, policy=policy)
    assert got.input_ids.tolist() == [[BOS, A, EOS, B, BOS, C]]
    assert got.document_ids == (("toy:0", "toy:1"),)


def test_packed_without_bos_by_hand(tokenizer):
    assert cut(("aa", "bb", "c"), tokenizer, n_samples=2, bos="none").input_ids.tolist() == [
        [A, A, EOS, B],
        [B, EOS, C, EOS],
    ]


def test_an_eos_that_the_tokenizer_adds_is_not_doubled(make_tokenizer):
    adds_both = make_tokenizer(adds="<s> $A </s>")
    assert cut(("aa", "bb"), adds_both, n_samples=2).input_ids.tolist() == [[BOS, A, A, EOS], [BOS, B, B, EOS]]
    assert cut(("aaa", "bbb"), adds_both, n_samples=2, bos="none").input_ids.tolist() == [
        [A, A, A, EOS],
        [B, B, B, EOS],
    ]


def test_packed_blank_is_the_joined_text_cut_in_pieces(tokenizer):
    texts = ("aa", "b", "", "cccc")
    got = cut(texts, tokenizer, n_samples=2, seq_len=5, policy="packed_blank")
    assert got.input_ids.flatten().tolist() == tokenizer(" ".join(texts), verbose=False)["input_ids"][:10]
    assert got.document_ids == (("toy:0", "toy:1"), ("toy:2", "toy:3"))


def test_packed_blank_equals_the_joined_text_where_the_tokenizer_puts_a_blank_itself():
    # as the older LLaMA tokenizers do: "a b" becomes "▁a▁b"
    vocab = {"<s>": 0, "▁a": 1, "▁b": 2, "▁": 3, "?": 4}
    model = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>")
    joined = tokenizer("a b b a")["input_ids"]
    assert cut(("a", "b", "b", "a"), tokenizer, policy="packed_blank").input_ids.tolist() == [joined]


def test_exact_tokens_are_never_tokenized_again(tokenizer):
    odd = (200, 201, 202)  # no text has these
    assert cut((odd, "a"), tokenizer, n_samples=2).input_ids.tolist() == [[BOS, 200, 201, 202], [EOS, BOS, A, EOS]]
    blank = cut((odd, odd), tokenizer, seq_len=8, policy="packed_blank")
    assert blank.input_ids.tolist() == [[BOS, 200, 201, 202, BLANK, 200, 201, 202]]


@pytest.mark.parametrize("exact", [(A, B), (BOS, A, B), (A, B, EOS), (BOS, A, B, EOS)])
@pytest.mark.parametrize("policy", ["packed", "packed_blank", "long_documents", "one_per_document"])
@pytest.mark.parametrize("bos", ["document", "window", "none"])
def test_bos_and_eos_stand_where_the_policy_says_also_around_exact_tokens(tokenizer, exact, policy, bos):
    written = cut((exact, "cc"), tokenizer, seq_len=2, policy=policy, bos=bos)
    read = cut(("ab", "cc"), tokenizer, seq_len=2, policy=policy, bos=bos)
    assert written.input_ids.tolist() == read.input_ids.tolist()


def test_long_documents_give_one_window_each_and_the_short_are_counted(tokenizer):
    dropped: Counter[str] = Counter()
    texts = ("abcabcabc", "ab", "aaaa", "ccc")
    got = cut(texts, tokenizer, n_samples=3, policy="long_documents", dropped=dropped)
    assert got.document_ids == (("toy:0",), ("toy:2",), ("toy:3",))
    assert dropped == {"shorter than the window": 1}
    assert got.input_ids[2].tolist() == [BOS, C, C, C]
    whole = [BOS, *map(ord, "abcabcabc")]
    assert any(got.input_ids[0].tolist() == whole[i : i + 4] for i in range(7))


def test_every_place_in_a_document_is_drawn_the_first_and_the_last_too(tokenizer):
    text = "abcdefg"
    starts = {
        cut((text,), tokenizer, policy="long_documents", bos="none", seed=s).input_ids[0, 0].item() for s in range(60)
    }
    assert starts == set(map(ord, "abcd"))


def test_a_window_inside_a_document_can_begin_with_bos(tokenizer):
    for seed in range(10):
        ids = cut(("abcdefg",), tokenizer, policy="long_documents", bos="window", seed=seed).input_ids[0].tolist()
        assert ids[0] == BOS
        assert ids[1:] in [[*range(start, start + 3)] for start in range(A, A + 5)]


def test_one_sample_of_each_document_padded_on_the_right_by_hand(tokenizer):
    dropped: Counter[str] = Counter()
    got = cut(("aa", "", "abcabc", "c"), tokenizer, n_samples=4, policy="one_per_document", dropped=dropped)
    assert [row[keep].tolist() for row, keep in zip(got.input_ids, got.attention_mask, strict=True)] == [
        [BOS, A, A], [BOS], [BOS, A, B, C], [BOS, C],
    ]  # fmt: skip
    assert got.attention_mask.tolist()[0] == [True, True, True, False]
    assert got.document_ids == (("toy:0",), ("toy:1",), ("toy:2",), ("toy:3",))
    bare = cut(("aa", "", "c"), tokenizer, n_samples=2, policy="one_per_document", bos="none", dropped=dropped)
    assert bare.document_ids == (("toy:0",), ("toy:2",))
    assert dropped == {"no tokens": 1}


def test_samples_that_need_no_padding_have_no_mask(tokenizer):
    assert cut(("abcd", "abcdef"), tokenizer, n_samples=2, policy="one_per_document").attention_mask is None
    assert cut(("aaaa",), tokenizer).attention_mask is None


def test_a_padded_sample_can_begin_with_bos_and_end_with_eos(make_tokenizer):
    bare = make_tokenizer(adds="$A")
    got = cut(("a", "bcd"), bare, n_samples=2, policy="one_per_document", bos="window", eos="document")
    assert got.input_ids[0][got.attention_mask[0]].tolist() == [BOS, A, EOS]
    assert got.input_ids[1].tolist() == [BOS, B, C, C + 1]


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize(
    ("policy", "eos", "ends"),
    [
        ("packed", "policy", "document"),
        ("packed", "none", "none"),
        ("packed", "tokenizer", "tokenizer"),
        ("long_documents", "policy", "tokenizer"),
        ("long_documents", "document", "document"),
        ("long_documents", "none", "none"),
        ("one_per_document", "policy", "tokenizer"),
        ("one_per_document", "document", "document"),
    ],
)
def test_eos_stands_where_it_is_asked_for(make_tokenizer, adds, policy, eos, ends):
    tokenizer = make_tokenizer(adds=adds)
    has_eos = ends == "document" or (ends == "tokenizer" and "</s>" in adds)
    got = cut(("ab",), tokenizer, seq_len=3 + has_eos, policy=policy, eos=eos)
    assert got.input_ids.tolist() == [[BOS, A, B, EOS] if has_eos else [BOS, A, B]]


def test_a_text_of_joined_documents_has_no_place_for_eos(tokenizer):
    said = complaint(("aaaa",), tokenizer, policy="packed_blank", eos="document")
    assert "no place for EOS; use windows policy packed" in said


texts = st.lists(st.text("abc ", min_size=1, max_size=12), min_size=12, max_size=20)
policies = st.builds(
    dict,
    policy=st.sampled_from(["packed", "packed_blank", "long_documents", "one_per_document"]),
    bos=st.sampled_from(["document", "window", "none"]),
)


@given(texts=texts, how=policies, seq_len=st.integers(2, 6), seed=st.integers(0, 3), n=st.integers(1, 4))
def test_a_smaller_request_is_the_beginning_of_a_larger_one(tokenizer, texts, how, seq_len, seed, n):
    longer = [text * 6 for text in texts]
    large = cut(tuple(longer), tokenizer, n_samples=5, seq_len=seq_len, seed=seed, **how)
    small = cut(tuple(longer), tokenizer, n_samples=n, seq_len=seq_len, seed=seed, **how)
    assert large.input_ids.shape == (5, seq_len)
    assert large.input_ids[:n].equal(small.input_ids)
    assert large.document_ids[:n] == small.document_ids


@given(texts=texts, seq_len=st.integers(2, 9), bos=st.sampled_from(["document", "none"]))
def test_packed_windows_put_together_are_the_documents(tokenizer, texts, seq_len, bos):
    stream = list(chain.from_iterable([*([BOS] if bos == "document" else []), *map(ord, t), EOS] for t in texts))
    n = len(stream) // seq_len
    got = cut(tuple(texts), tokenizer, n_samples=n, seq_len=seq_len, bos=bos)
    assert got.input_ids.flatten().tolist() == stream[: n * seq_len]


def test_no_more_documents_are_read_than_needed(tokenizer):
    endless = (Document("aa", str(i)) for i in count())
    cut(endless, tokenizer, n_samples=3)
    assert next(endless).id == "3"


def test_a_text_beyond_the_models_context_is_no_reason_to_warn(tokenizer, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        cut(("abc" * 10,), tokenizer)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records


def complaint(*arguments, **options) -> str:
    with pytest.raises(CalibrationError) as caught:
        cut(*arguments, **options)
    return str(caught.value)


def test_too_little_text_is_told_in_numbers_with_advice_that_fits(tokenizer):
    assert complaint(("aa", "bb", "cccc"), tokenizer, n_samples=9) == (
        "9 samples of 4 tokens asked for, but the 3 documents of 'toy' give only 3 windows (14 tokens of 36; median "
        "document 4 tokens): use more documents, fewer samples, or a smaller seq_len"
    )
    assert complaint(("aa", "bb", "cccc"), tokenizer, n_samples=9, policy="long_documents", bos="none") == (
        "9 samples of 4 tokens asked for, but only 1 of the 3 documents of 'toy' have 4 tokens (median document 2 "
        "tokens): use longer documents, a smaller seq_len, fewer samples, or windows policy packed; "
        "dropped: 2 shorter than the window"
    )
    assert "none was left to use" in complaint((), tokenizer, dropped=Counter({"fewer than 9 characters": 3}))


def test_an_endless_corpus_of_no_use_is_given_up(tokenizer, monkeypatch):
    monkeypatch.setattr(windows_module, "GIVE_UP_AFTER", 20)
    short = chain(documents("abcabc"), repeat(Document("a", "x")))
    assert "dropped: 20 shorter" in complaint(short, tokenizer, n_samples=9, policy="long_documents")
    model = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=model)
    empty = chain(documents("a a a a a"), repeat(Document("", "x")))
    assert "dropped: 20 no tokens" in complaint(empty, words, n_samples=9, policy="packed_blank")


def test_a_tokenizer_without_the_token_that_a_policy_needs_is_an_error(make_tokenizer):
    assert "use windows policy packed_blank or eos=none" in complaint(("aaaa",), make_tokenizer(eos=False))
    assert "the tokenizer has no BOS token" in complaint(("aaaa",), make_tokenizer(bos=False), bos="window")
    assert cut(("aaaa",), make_tokenizer(adds="$A", bos=False), bos="document").input_ids.tolist() == [[A] * 4]


def test_what_a_tokenizer_puts_around_a_text_is_found(make_tokenizer):
    assert Frame.of(make_tokenizer(adds="<s> $A </s>")) == Frame((BOS,), (EOS,), BOS, EOS, " ")
    assert Frame.of(make_tokenizer(adds="$A", bos=False, eos=False)) == Frame((), (), None, None, " ")


def test_a_vocabulary_without_letters_does_not_hide_what_stands_around_a_text():
    model = Tokenizer(models.BPE(vocab={"<s>": BOS, "</s>": EOS, "A": 2, "C": 3}, merges=[]))
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    dna = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    assert Frame.of(dna) == Frame((BOS,), (EOS,), BOS, EOS, "")


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ConfigError, match="policy cannot be 'packt'"):
        Windows(policy="packt")
