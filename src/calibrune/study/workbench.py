"""Where runs are done: a model that stays in memory, is pruned, measured, and made dense again, exactly."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from calibrune.allocators import FromStatistics, SparsityAllocation
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import build_calibration
from calibrune.checkpoint import versions
from calibrune.errors import CalibruneError, StorageError, is_out_of_memory, without_secrets
from calibrune.evaluation.harness import evaluate_tasks
from calibrune.evaluation.local_rows import LocalRows
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import load_tasks, parse_tasks
from calibrune.evaluation.texts import EvaluationTexts
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, compute, load_model, weights_fingerprint
from calibrune.patterns import parse_pattern
from calibrune.proxies import Context
from calibrune.proxies.compare import OWN_SAMPLES, proxy_of
from calibrune.prune import PruneReport, check_allocatable, needs_data, prune_model
from calibrune.seeds import seed_for
from calibrune.study.samples import KINDS, SampleStatistics
from calibrune.study.sets import SetStore
from calibrune.study.spec import Evaluation, Model, RunSpec, hash_of, texts_of


class Outcome(NamedTuple):
    """What came of a run."""

    row: dict[str, Any]
    """For `results.jsonl`."""
    record: dict[str, Any] | None
    """All that there is to know; None for a run that failed."""


def failed(spec: RunSpec, error: str) -> Outcome:
    """The outcome of a run that came to nothing."""
    return Outcome({**_head(spec), "status": "failed", "error": error}, None)


class Workbench:
    """One model, dense between runs, and what its runs share: each made once.

    Args:
        model: what to load.
        data: the folder with the files of corpora and of evaluations; None: names are of the hub, paths as they are.
        device, trust_remote_code: as for `load_model`.

    Raises:
        ModelError: the model cannot be read.
    """

    def __init__(
        self, model: Model, data: Path | None = None, device: str = "auto", trust_remote_code: bool = False
    ) -> None:
        self._load = partial(load_model, **asdict(model), device=device, trust_remote_code=trust_remote_code)
        self.lm = self._load()
        self.weights = weights_fingerprint(self.lm.model)
        self._data = data
        pruned = {layer.key for block in decoder_blocks(self.lm.model) for layer in block.layers}
        self._stored = {name: tensor for name, tensor in self.lm.model.state_dict().items() if name in pruned}
        self._dense = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._stored.items()}
        self._sets = SetStore(self.lm, data)
        self._samples = SampleStatistics(self.lm, self.weights)
        self._texts: dict[str, EvaluationTexts] = {}
        self._measured: dict[tuple[str, str], float] = {}
        self._contexts: dict[tuple[int, int], Context] = {}
        self._allocations: dict[tuple[str | None, ...], SparsityAllocation] = {}

    def restore(self) -> None:
        """Make the model dense again, to the bit."""
        with torch.no_grad():
            for name, tensor in self._stored.items():
                tensor.copy_(self._dense[name])

    def pin(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The model's runs with its weights' fingerprint and their sources' hashes, so that they have their keys.

        What is evaluated is looked at too: texts and tasks that are not to be had are told before any run.

        Raises:
            CalibruneError: a source, a text or a task cannot be read, or a pattern does not fit the layers.
        """
        read = [self._read(one) for one in dict.fromkeys(one for spec in specs for one in spec.evaluations)]
        for pattern in dict.fromkeys(spec.pattern for spec in specs if spec.pattern):
            check_allocatable(self.lm.model, parse_pattern(pattern))
        weights = f"{self.weights}-{self.lm.source['dtype']}"
        return [
            spec.pinned(weights, hash_of([read, spec.calibration and self._sets.source(spec.calibration)]))
            for spec in specs
        ]

    def run(self, spec: RunSpec) -> Outcome:
        """Prune, measure, make dense again. What goes wrong is the outcome; interruptions are not."""
        start = time.perf_counter()
        try:
            said, record = self._done(spec)
            outcome = Outcome({**_head(spec), "status": "done", **said}, {**_head(spec), **record})
        except StorageError:
            raise  # every other run would meet the same disk
        except Exception as error:  # noqa: BLE001  (whatever breaks one run must not end the others)
            outcome = failed(spec, _told(error))
        finally:
            self.restore()
        tail = {"compute": compute(self.lm.model), "versions": versions()}
        seconds = {**outcome.row.get("seconds", {}), "all": time.perf_counter() - start}
        row = {**outcome.row, "seconds": seconds, **tail}
        return Outcome(row, outcome.record and {**outcome.record, **tail})

    def _done(self, spec: RunSpec) -> tuple[dict[str, Any], dict[str, Any]]:
        clock = _Clock()
        seconds = clock.seconds
        data = self._sets.get(spec.calibration, spec.seed) if spec.calibration else None
        clock.lap("calibration")
        proxies = self._proxies(spec, data)
        clock.lap("proxies")
        report = self._pruned(spec, data)
        clock.lap("pruning")
        scores = [score for evaluation in spec.evaluations for score in self._scores(evaluation)]
        clock.lap("evaluation")
        row = {
            "calibration": data and _summary(data),
            "proxies": proxies,
            "pruning": report and {"sparsity": report.sparsity, "coverage": report.coverage},
            "weights": weights_fingerprint(self.lm.model),
            "scores": [_in_a_row(score) for score in scores],
            "seconds": seconds,
        }
        record = {
            "calibration": data and data.manifest,
            "proxies": proxies,
            "report": report and report.to_json(),
            "scores": [asdict(score) for score in scores],
        }
        return row, record

    def _pruned(self, spec: RunSpec, data: CalibrationSet | None) -> PruneReport | None:
        pruner, allocator = spec.method, spec.sharing
        if pruner is None or allocator is None:
            return None
        model, target = self.lm.model, parse_pattern(str(spec.pattern))
        stored = None
        if data and spec.propagation == "dense" and set(pruner.requires) <= set(KINDS):
            stored = self._samples.of(data, spec.batch_tokens)
        # always of the dense model, so every method and propagation shares it
        key = (spec.allocator, spec.pattern, data.fingerprint if data and allocator.requires else None)
        if key not in self._allocations:
            if stored is not None and isinstance(allocator, FromStatistics) and set(allocator.requires) <= set(KINDS):
                self._allocations[key] = allocator.allocate_from(model, stored, target)
            else:
                self._allocations[key] = allocator.allocate(model, data, target, batch_tokens=spec.batch_tokens)
        return prune_model(
            model,
            data if needs_data(pruner, allocator) else None,
            pruner,
            target,
            allocation=self._allocations[key],
            propagate=spec.propagation or "pruned",
            batch_tokens=spec.batch_tokens,
            min_expert_tokens=spec.min_expert_tokens,
            statistics=stored,
        )

    def _proxies(self, spec: RunSpec, data: CalibrationSet | None) -> dict[str, float]:
        """What the proxies say of the set; measured once, with the dense model."""
        if data is None or not spec.proxies:
            return {}
        size = (data.n_samples, data.seq_len)
        if size not in self._contexts:
            self._contexts[size] = Context(self.lm, lambda: self._own_samples(*size))
        for name in spec.proxies:
            if (name, data.fingerprint) not in self._measured:
                self._measured[name, data.fingerprint] = proxy_of(name).measure(data, self._contexts[size])
        return {name: self._measured[name, data.fingerprint] for name in spec.proxies}

    def _own_samples(self, n: int, length: int) -> CalibrationSet:
        # other texts than those of a set `selfgen` of the study, which would be compared with itself
        own = f"{OWN_SAMPLES}:batch_size={min(64, n)}"
        return build_calibration(own, self.lm, n_samples=n, seq_len=length, seed=seed_for(0, "own samples"))

    def _read(self, evaluation: Evaluation) -> list[Any]:
        """What is measured on, by content; tasks from the hub by their version alone, which is in the rows' records."""
        if evaluation.tasks:
            rows = None if self._data is None else LocalRows(self._data)
            load_tasks(parse_tasks(evaluation.tasks), rows)
            return sorted(rows.files.items()) if rows else []
        return [self._text(spec).source for spec in evaluation.texts]

    def _text(self, spec: str) -> EvaluationTexts:
        if spec not in self._texts:
            self._texts[spec] = texts_of(spec, self._data)
        return self._texts[spec]

    def _scores(self, evaluation: Evaluation) -> list[Score]:
        lm, limit = self.lm, evaluation.limit
        if evaluation.tasks:
            return evaluate_tasks(lm, parse_tasks(evaluation.tasks), data=self._data, limit=limit)
        scores: list[Score] = []
        for text in (self._text(spec).fitted(lm, evaluation.seq_len, evaluation.bos) for spec in evaluation.texts):
            scores += text.scores(lm, limit)
            if evaluation.against:
                scores += text.agreement(lm, self._reference, limit)
        return scores

    @cached_property
    def _reference(self) -> LanguageModel:
        """The dense model beside the one that is pruned, for measurements that need both."""
        return self._load()


def _head(spec: RunSpec) -> dict[str, Any]:
    return {"key": spec.key, "id": spec.id, "run": spec.to_json()}


@dataclass
class _Clock:
    """Seconds of each part of a run."""

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._begun = now - self._begun, now


def _summary(data: CalibrationSet) -> dict[str, Any]:
    return {"fingerprint": data.fingerprint, "n_samples": data.n_samples, "seq_len": data.seq_len}


def _in_a_row(score: Score) -> dict[str, Any]:
    """A score without its protocol, which is in the record, but for what tells it from the others."""
    return {
        "dataset": score.protocol.get("dataset"),
        "metric": score.metric,
        "value": score.value,
        "stderr": score.stderr,
        "n": score.n,
        "higher_is_better": score.higher_is_better,
        "items": list(score.items),
    }


def _told(error: Exception) -> str:
    """The error with its notes; of one that nobody foresaw, also where it broke."""
    said = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    if not isinstance(error, CalibruneError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = [f"{type(error).__name__}: {said[0]}", *said[1:], f"at {Path(place.filename).name}:{place.lineno}"]
    short = ["there is not enough memory for this run"] if is_out_of_memory(error) else []
    return without_secrets("; ".join([*short, *said]))
