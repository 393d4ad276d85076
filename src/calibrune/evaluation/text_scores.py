"""Perplexities of a model on texts, each kept when it is finished: asked again, in this run or the next, it is read."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from calibrune import __version__
from calibrune.evaluation.finished import (
    describe_model,
    finished_folder,
    finished_key,
    read_finished,
    write_finished,
)
from calibrune.evaluation.perplexity import TextPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.texts import EvaluationTexts
from calibrune.lm.loading import LanguageModel

log = logging.getLogger(__name__)


def evaluate_texts(
    lm: LanguageModel,
    texts: Sequence[EvaluationTexts],
    *,
    dense: LanguageModel | None = None,
    limit: int | None = None,
    finished: Path | None = None,
) -> list[Score]:
    """The scores of every text in its order; with `dense`, KL divergence and top-1 agreement follow those of each text.

    Args:
        texts: as `fitted` to the model.
        limit: the first so many windows, texts or documents.
        finished: the folder of finished scores; None: in the cache.

    Raises:
        CalibruneError: as the protocols say; what was finished before is kept.
    """
    folder = finished_folder() if finished is None else finished
    versions = {"calibrune": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    asked = versions | {"model": describe_model(lm), "device": lm.model.device.type}
    # with its source, which the record of how it was measured tells
    beside = None if dense is None else describe_model(dense) | {"source": dense.source}
    scores: list[Score] = []
    for text in texts:
        this = asked | text.asked(limit)
        scores += _kept(folder, f"the perplexity of {text.name}", this, partial(text.scores, lm, limit))
        _say_cut(text, lm, scores[-1])
        if dense is not None:
            what, this = f"the agreement on {text.name}", this | {"against": beside}
            scores += _kept(folder, what, this, partial(text.agreement, lm, dense, limit))
    return scores


def _kept(
    folder: Path, what: str, asked: dict[str, Any], measure: Callable[[], tuple[Score, ...]]
) -> tuple[Score, ...]:
    key = finished_key(asked)
    record = read_finished(folder, key)
    if record is not None:
        log.info("%s was finished before; it is read from %s", what, folder)
        return tuple(Score(**{**one, "items": tuple(one["items"])}) for one in record["scores"])
    scores = measure()
    write_finished(folder, key, what, {"scores": [asdict(score) for score in scores]})
    return scores


def _say_cut(text: EvaluationTexts, lm: LanguageModel, score: Score) -> None:
    if isinstance(text.protocol, TextPerplexity) and (cut := score.protocol["cut_texts"]):
        n, longest = score.protocol["texts"], text.protocol.longest(lm)
        log.warning("%s: longer than %d tokens, and cut on the right: %d of %d texts", text.name, longest, cut, n)
