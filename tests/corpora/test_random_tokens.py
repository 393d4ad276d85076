from itertools import islice

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from calibrune.corpora.document import Corpus
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import ConfigError, CorpusError


def word_tokenizer(n_words: int) -> PreTrainedTokenizerFast:
    vocab = {"<s>": 0, "</s>": 1, **{f"w{i}": i + 2 for i in range(n_words)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.add_special_tokens(["<|reserved|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def first(n: int, **settings):
    return list(islice(RandomTokens(**settings).documents(), n))


def test_every_ordinary_token_is_drawn_and_no_special_one():
    (document,) = first(1, tokenizer=word_tokenizer(5), length=500)
    assert set(document.token_ids) == {2, 3, 4, 5, 6}
    assert len(document.token_ids) == 500
    assert document.text.split()[0] == f"w{document.token_ids[0] - 2}"


def test_the_seed_and_only_the_seed_chooses_the_tokens():
    tokenizer = word_tokenizer(50)
    assert first(3, tokenizer=tokenizer, length=9) == first(3, tokenizer=tokenizer, length=9)
    one, other = first(2, tokenizer=tokenizer, length=9), first(2, tokenizer=tokenizer, length=9, seed=1)
    drawn = [document.token_ids for document in one + other]
    assert len(set(drawn)) == len({document.id for document in one + other}) == 4


def test_it_is_a_corpus_in_random_order_that_describes_itself():
    corpus = RandomTokens(tokenizer=word_tokenizer(5), length=7, seed=3)
    assert isinstance(corpus, Corpus)
    assert corpus.in_random_order
    assert corpus.describe() == {
        "kind": "random tokens",
        "name": "random tokens",
        "length": 7,
        "seed": 3,
        "ids": 5,
        "licence": "none: no text of anybody's",
    }
    assert len(repr(corpus)) < 200


def test_a_length_below_one_and_a_vocabulary_without_words_are_errors():
    with pytest.raises(ConfigError, match="length cannot be 0"):
        RandomTokens(tokenizer=word_tokenizer(5), length=0)
    with pytest.raises(CorpusError, match="special tokens only"):
        first(1, tokenizer=word_tokenizer(0))
