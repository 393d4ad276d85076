"""The default engine: transformers, with the model in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from calibrune.corpora.engines.engine import Session
from calibrune.lm.generation import GeneratedText, Sampling, generate
from calibrune.lm.loading import LanguageModel, compute
from calibrune.settings import settings


@settings
class Transformers:
    """The model in this process; the same request gives the same tokens."""

    def open(self, model: LanguageModel) -> Session:
        """Write with the very model that is to be pruned."""
        return _Local(model)


@dataclass(frozen=True)
class _Local:
    model: LanguageModel

    @property
    def in_flight(self) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "compute": compute(self.model.model),
        }

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: Sequence[int],
    ) -> list[GeneratedText]:
        return generate(
            self.model.model,
            prompts,
            seeds,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            end_ids=end_ids,
            pad_id=self.model.tokenizer.pad_token_id or 0,
        )
