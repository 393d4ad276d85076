"""The default engine: transformers, with the model in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import transformers
from annotated_types import Ge

from calibrune.corpora.engines.engine import Session
from calibrune.lm.generation import GeneratedText, Sampling, generate
from calibrune.lm.loading import LanguageModel, compute
from calibrune.settings import settings


@settings
class Transformers:
    """The model in this process; the same request gives the same tokens."""

    at_once: Annotated[int, Ge(1)] = 32
    """Texts in one forward: memory against speed. The place of a finished one goes to the next of its batch; changes
    the texts by rounding only."""

    def open(self, model: LanguageModel) -> Session:
        """Write with the very model that is to be pruned."""
        return _Local(model, self.at_once)


@dataclass(frozen=True)
class _Local:
    model: LanguageModel
    at_once: int

    @property
    def in_flight(self) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "compute": compute(self.model.model),
            "at_once": self.at_once,
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
            at_once=self.at_once,
        )
