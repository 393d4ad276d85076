"""Tokens drawn uniformly at random: the source that carries no language, for a study to compare with."""

from collections.abc import Iterator
from dataclasses import field
from functools import cached_property
from itertools import count
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrune.corpora.document import Document
from calibrune.errors import CorpusError
from calibrune.seeds import seed_for
from calibrune.settings import settings


@settings
class RandomTokens:
    """Documents of uniformly random tokens, without end; special tokens are never drawn."""

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """Whose vocabulary is drawn from, and which says what the tokens read like."""
    length: int = Field(default=2048, ge=1)
    """Tokens in a document."""
    seed: int = 0
    name: str = "random tokens"
    """What the corpus is called in tables and errors."""

    @property
    def in_random_order(self) -> bool:
        return True

    @cached_property
    def ids(self) -> Int64[Tensor, "vocab"]:
        """The ids that can be drawn, rising."""
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ids = sorted(set(self.tokenizer.get_vocab().values()) - special - set(self.tokenizer.all_special_ids))
        if not ids:
            raise CorpusError("the tokenizer has special tokens only, so there is no token to draw at random")
        return torch.tensor(ids)

    def documents(self) -> Iterator[Document]:
        """Yield documents for ever; each has a generator of its own, so the tenth does not depend on the ninth."""
        for i in count():
            generator = torch.Generator().manual_seed(seed_for(self.seed, "random tokens", str(i)))
            token_ids = self.ids[torch.randint(len(self.ids), (self.length,), generator=generator)].tolist()
            text = str(self.tokenizer.decode(token_ids))
            yield Document(text, f"{self.name}:{self.seed}:{i}", token_ids=tuple(token_ids))

    def describe(self) -> dict[str, Any]:
        """Length, seed, and how many ids there are to draw from."""
        return {
            "kind": "random tokens",
            "name": self.name,
            "length": self.length,
            "seed": self.seed,
            "ids": len(self.ids),
            "licence": "none: no text of anybody's",
        }
