from collections.abc import Callable

import pytest
from in_memory import in_memory
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["in_memory"]

BOS, EOS = 0, 1


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """One token per byte: "a" is `ord("a")`, " " is `ord(" ")`; <s> is 0 and </s> is 1."""

    def make(*, adds: str = "<s> $A", bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
        by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
        vocab = {by_byte.pre_tokenize_str(chr(i))[0][0]: i for i in range(32, 127)} | {"<s>": BOS, "</s>": EOS}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer, tokenizer.decoder = by_byte, decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=adds, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>" if bos else None,
            eos_token="</s>" if eos else None,
            model_max_length=4,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    """Adds BOS and no EOS, as LLaMA's does."""
    return make_tokenizer()
