"""vLLM in this process (`pip install 'calibrune[vllm]'`), written from its documented offline API.

It wants a GPU for itself: load the model here with `--device cpu`, or leave vLLM the memory that is left.
"""

import importlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from calibrune.corpora.engines.engine import Session
from calibrune.errors import ConfigError
from calibrune.lm.generation import GeneratedText, Sampling
from calibrune.lm.loading import LanguageModel
from calibrune.settings import settings


@settings
class VLLM:
    """vLLM, which loads the model a second time, from where it was loaded here."""

    gpu_memory: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of the GPU's memory that vLLM may take."""
    tensor_parallel: Annotated[int, Ge(1)] = 1
    """GPUs that share the model."""

    def open(self, model: LanguageModel) -> Session:
        """Check that vLLM is there; the model is loaded when the first text is written."""
        try:
            module = importlib.import_module("vllm")
        except ImportError as error:
            raise ConfigError(
                f"the engine vllm was asked for, but vLLM cannot be imported ({error}); "
                f"install it with: pip install 'calibrune[vllm]'"
            ) from None
        return _Session(self, model, module)


class _Session:
    def __init__(self, asked: VLLM, model: LanguageModel, module: Any) -> None:
        self._asked, self._model, self._vllm = asked, model, module

    @property
    def in_flight(self) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        try:
            number = version("vllm")
        except PackageNotFoundError:
            number = str(getattr(self._vllm, "__version__", "unknown"))
        return {"engine": f"vllm {number}", "tensor_parallel": self._asked.tensor_parallel}

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: Sequence[int],
    ) -> list[GeneratedText]:
        settings = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                repetition_penalty=sampling.repetition_penalty,
                seed=seed,
                max_tokens=max_new_tokens,
                stop_token_ids=list(end_ids),
                logprobs=1,
                detokenize=False,
            )
            for seed in seeds
        ]
        asked = [self._vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        outputs = self._llm.generate(asked, settings, use_tqdm=False)
        return [_text(prompt, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    @cached_property
    def _llm(self) -> Any:
        revision = self._model.source.get("revision")
        return self._vllm.LLM(
            model=self._model.model.name_or_path,
            revision=revision,
            tokenizer_revision=revision,
            trust_remote_code=_runs_its_own_code(self._model),
            dtype=self._model.source["dtype"],
            tensor_parallel_size=self._asked.tensor_parallel,
            gpu_memory_utilization=self._asked.gpu_memory,
            logprobs_mode="raw_logprobs",  # the model's own, before temperature and penalties
        )


def _runs_its_own_code(model: LanguageModel) -> bool:
    """Whether code that came with the checkpoint is running here, which somebody has allowed then."""
    kinds = (type(model.model), type(model.model.config), type(model.tokenizer))
    return any(kind.__module__.startswith("transformers_modules.") for kind in kinds)


def _text(prompt: Sequence[int], output: Any) -> GeneratedText:
    ids = tuple(output.token_ids)
    scores = tuple(float(of[i].logprob) for i, of in zip(ids, output.logprobs, strict=True))
    return GeneratedText((*prompt, *ids), len(prompt), scores, output.finish_reason == "stop")
