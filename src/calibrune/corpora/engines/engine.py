"""What writes texts: an engine continues prompts; which texts there are, and what is kept, is not its affair."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from calibrune.lm.generation import GeneratedText, Sampling
from calibrune.lm.loading import LanguageModel


@runtime_checkable
class Session(Protocol):
    """An engine at work for one model."""

    @property
    def in_flight(self) -> int | None:
        """How many texts may be asked for at a time, each by a thread of its own; None: whole batches side by side.

        Texts of one batch share their arithmetic, so a batch that was cut short is repeated as a whole; of texts that
        are asked for one by one, only the missing ones are.
        """

    def describe(self) -> dict[str, Any]:
        """All of the engine that can change a text, as JSON; no addresses and no keys."""

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: Sequence[int],
    ) -> list[GeneratedText]:
        """Continue every prompt by up to `max_new_tokens` tokens, each with a random stream of its own.

        Raises:
            RunError: the engine cannot; the request may be repeated later.
        """


@runtime_checkable
class Engine(Protocol):
    """Settings of something that writes."""

    def open(self, model: LanguageModel) -> Session:
        """Make ready to write as this model; cheap until something is asked for."""
