"""What a study will take, before it begins: time, memory and disk, roughly, and how that was worked out."""

from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from calibrune.activations.statistics import InputHessian
from calibrune.calibration.spec import DEFAULT_LENGTH, DEFAULT_SAMPLES, parse_spec, parts_of
from calibrune.corpora.journal import BYTES_PER_TOKEN
from calibrune.errors import CalibruneError
from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
from calibrune.evaluation.tasks import parse_tasks
from calibrune.evaluation.texts import protocol_of
from calibrune.lm.layout import decoder_blocks, n_parameters
from calibrune.lm.loading import UNREADABLE, device_of, locate
from calibrune.lm.speed import operations_per_second
from calibrune.study.plan import StudyPlan
from calibrune.study.spec import Evaluation, Model, Recipe, RunSpec

EFFICIENCY = 0.7
"""Of the speed of a plain matrix product, what a forward pass reaches, about (SmolLM2 on a processor)."""
HESSIAN = 1.5
"""Passes' worth of work for the second moments of one pass."""
GENERATION = 4.0
"""How much dearer a written token is than a read one."""
TEXT_TOKENS, TEXTS = 120, 1000
"""Of an evaluation text that is measured by itself, and how many there are where nobody limits them."""
ITEM_TOKENS, ITEMS, SUBTASKS = 60, 2000, {"mmlu": 57}
"""Of a question with its choices, whose context is shared; questions where nobody limits them; tasks in a group."""
ROW_BYTES = 60_000
"""Of a run's row and record."""

_NOT_AT_HAND: tuple[type[Exception], ...] = (CalibruneError, *UNREADABLE)

BASIS = (
    f"forward passes x 2 x parameters x tokens at {EFFICIENCY:g} of the speed of a matrix product measured just now; "
    f"evaluation by typical lengths; right within a factor of three. Once runs are done, `study status` goes by them"
)


@dataclass(frozen=True)
class Size:
    """Of a model, from its configuration alone."""

    parameters: int
    prunable: int
    width: int
    dtype: str

    @property
    def bytes_per_weight(self) -> int:
        """As the weights are computed with."""
        return int(getattr(torch, self.dtype).itemsize)

    def operations_per_second(self) -> float:
        """Of its passes, on the device that `auto` takes."""
        return EFFICIENCY * operations_per_second(self.width, getattr(torch, self.dtype), device_of("auto"))


def outlook(plan: StudyPlan, specs: Sequence[RunSpec] | None = None) -> dict[str, Any]:
    """What a plan consists of, or these runs of it, what of it is shared, and what it will take.

    A model need not be at hand. Estimates are None where a model's configuration is not to be had.
    """
    runs = plan.runs if specs is None else specs
    sizes = {model: _size(model) for model in dict.fromkeys(spec.model for spec in runs)}
    speeds = {model: 0.0 if size is None else size.operations_per_second() for model, size in sizes.items()}
    seconds = [_seconds(spec, sizes[spec.model], speeds[spec.model]) for spec in runs]
    generated = {_drawn_from(spec) for spec in runs if _is_written(spec)}
    tokens = [(_written(recipe), model) for model, recipe, _ in generated if recipe]
    writing = [GENERATION * 2 * size.parameters * n / speeds[model] for n, model in tokens if (size := sizes[model])]
    known = all(sizes.values())
    return {
        "study": plan.name,
        "title": plan.title,
        "runs": [{"id": spec.id, "run": str(spec)} for spec in runs],
        "shared": _shared(runs, len(generated)),
        "estimate": {
            "seconds": sum([*filter(None, seconds), *writing]) if known else None,
            "memory_bytes": max(map(_memory, runs, [sizes[s.model] for s in runs])) if known else None,
            "disk_bytes": len(runs) * ROW_BYTES + BYTES_PER_TOKEN * sum(n for n, _ in tokens),
            "basis": BASIS,
        },
        "models": {model.name: size and asdict(size) for model, size in sizes.items()},
    }


def _shared(specs: Sequence[RunSpec], generated: int) -> list[str]:
    """Work that is done once for several runs."""
    sets = Counter((s.model, s.calibration, s.seed) for s in specs if s.calibration)
    dense = Counter(s.model for s in specs)
    said = [f"{len(dense)} dense evaluation{'s' * (len(dense) > 1)} for {len(specs)} runs"]
    said.append(f"{len(sets)} calibration sets for {sets.total()} runs that read one")
    if generated:
        said.append(f"{generated} sets of generated text, each written once")
    stored = [s for s in specs if s.propagation == "dense"]
    if stored:
        n = len({(s.model, s.calibration, s.seed) for s in stored})
        said.append(f"statistics of at most {n} sets for {len(stored)} runs with dense propagation")
    return said


def _drawn_from(spec: RunSpec) -> tuple[Model, Recipe | None, int | None]:
    """What of a run decides the texts: of a pool they are the same for every seed."""
    return spec.model, spec.calibration, None if spec.calibration and spec.calibration.pool else spec.seed


def _is_written(spec: RunSpec) -> bool:
    return spec.calibration is not None and any(
        parse_spec(part)[0] == "selfgen" for part in parts_of(spec.calibration.spec)
    )


def _tokens(recipe: Recipe) -> int:
    return (recipe.samples or DEFAULT_SAMPLES) * (recipe.seq_len or DEFAULT_LENGTH)


def _written(recipe: Recipe) -> int:
    return (recipe.pool or recipe.samples or DEFAULT_SAMPLES) * (recipe.seq_len or DEFAULT_LENGTH)


def _seconds(spec: RunSpec, size: Size | None, speed: float) -> float | None:
    if size is None:
        return None
    work = float(sum(map(_evaluated, spec.evaluations))) * size.parameters
    if spec.calibration and spec.method and spec.sharing:
        passes = 0.0 if not spec.method.requires else 1.0 if spec.propagation == "dense" else 2.0
        passes += HESSIAN if InputHessian in spec.method.requires else 0
        passes += 1.0 if spec.sharing.requires else 0
        work += passes * _tokens(spec.calibration) * size.prunable
    return 2 * work / speed


def _evaluated(evaluation: Evaluation) -> int:
    """Tokens of one evaluation, about."""
    if evaluation.tasks:
        n = sum(SUBTASKS.get(request.name, 1) for request in parse_tasks(evaluation.tasks))
        return n * ITEM_TOKENS * (evaluation.limit or ITEMS)
    passes = 3 if evaluation.against else 1  # both models once more
    return passes * sum(_measured(text, evaluation) for text in evaluation.texts)


def _measured(text: str, evaluation: Evaluation) -> int:
    """Tokens of one text, about."""
    protocol, reading, _ = protocol_of(text)
    n = min(filter(None, (evaluation.limit, reading.limit)), default=TEXTS)
    if isinstance(protocol, WindowPerplexity):
        return n * (evaluation.seq_len or protocol.seq_len)
    return n * (TEXT_TOKENS if isinstance(protocol, TextPerplexity) else DEFAULT_LENGTH)


def _memory(spec: RunSpec, size: Size | None) -> int:
    """The weights, dense copies of those that are pruned or of all, and the hidden states of the calibration set."""
    if size is None:
        return 0
    reference = size.parameters if any(one.against for one in spec.evaluations) else 0
    hidden = _tokens(spec.calibration) * size.width * size.bytes_per_weight if spec.calibration else 0
    return (size.parameters + size.prunable + reference) * size.bytes_per_weight + hidden


@lru_cache(maxsize=32)
def _size(model: Model) -> Size | None:
    """From the configuration; None where it is not to be had."""
    with _quiet():
        try:
            folder, source = locate(model.name, model.revision)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, revision=source.get("revision"))
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            prunable = sum(layer.weight.numel() for block in decoder_blocks(empty) for layer in block.layers)
        except _NOT_AT_HAND:
            return None
    dtype = str(config.dtype or torch.float32).removeprefix("torch.") if model.dtype == "auto" else model.dtype
    return Size(n_parameters(empty), prunable, config.get_text_config().hidden_size, dtype)


@contextmanager
def _quiet() -> Any:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
