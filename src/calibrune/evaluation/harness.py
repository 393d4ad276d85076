"""Tasks of lm-evaluation-harness: its prompts, its metrics and its versions, scored by our language model.

Every task of a group is evaluated by itself, and written down when it is finished: what is asked again, in this run or
the next, is read. The harness is slow to import and talks much, so it is imported where it is used, and quietly.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrune import __version__
from calibrune.errors import ConfigError
from calibrune.evaluation.finished import describe_model, finished_folder, finished_key, read_finished, write_finished
from calibrune.evaluation.local_rows import LocalRows, local_set
from calibrune.evaluation.score import Score
from calibrune.evaluation.task_scores import TaskItems, group_scores, study_averages, task_scores
from calibrune.evaluation.tasks import LoadedTasks, TaskRequest, harness_version, load_tasks, quiet_harness
from calibrune.lm.continuations import BATCH_TOKENS
from calibrune.lm.loading import LanguageModel
from calibrune.progress import progress_bar, track
from calibrune.seeds import rank_of, seed_for

log = logging.getLogger(__name__)


def evaluate_tasks(
    lm: LanguageModel,
    requests: Sequence[TaskRequest],
    *,
    data: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    finished: Path | None = None,
) -> list[Score]:
    """Evaluate a model on tasks of the harness; a score for every metric of every task or group that was asked for.

    Where all seven tasks of the study are among them, its averages follow.

    Args:
        data: a folder with the rows, as `LocalRows` reads them; None: from the hub, as the harness does.
        limit: so many documents of each task (of MMLU: of each subject), drawn by `seed`; the same for every model,
            and a smaller limit's are among a larger one's.
        batch_tokens: tokens in one forward; what it takes in memory grows with it.
        finished: the folder of finished tasks; None: in the cache.

    Raises:
        ConfigError: there is no such task, `limit` is less than 1, or the harness is not installed.
        CorpusError: rows cannot be had, or lack what the task reads.
        ModelError: the tokenizer does not fit the model.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    rows = None if data is None else LocalRows(data)
    loaded = load_tasks(requests, rows)
    folder = finished_folder() if finished is None else finished
    asked = [(one, name, task) for one in loaded for name, task in one.tasks.items()]
    model = describe_model(lm)
    runs = [prepare_task(name, task, model, limit, seed, rows) for _, name, task in track(asked, "preparing tasks")]
    found = _run(runs, lm, batch_tokens, folder)
    scores: list[Score] = []
    for one in loaded:
        mine = [items for (owner, _, _), items in zip(asked, found, strict=True) if owner is one]
        scores += _scores(one, mine)
    return [*scores, *study_averages(scores)]


def _scores(loaded: LoadedTasks, found: Sequence[TaskItems]) -> list[Score]:
    if loaded.group is not None:
        return group_scores(loaded, found)
    return [score for one in found for score in task_scores(one)]


@dataclass
class PreparedTask:
    """A single task with its requests, ready to run."""

    name: str
    task: Any
    key: str
    """Hash of all that can change its result."""
    protocol: dict[str, Any]
    instances: list[Any]


def prepare_task(
    name: str, task: Any, model: dict[str, Any], limit: int | None, seed: int, rows: LocalRows | None
) -> PreparedTask:
    """Let the harness build the requests of the documents that were chosen."""
    with quiet_harness():
        n = len(task.eval_docs)
        chosen = None if limit is None else subset(name, n, limit, seed)
        task.build_all_requests(samples=chosen)
    instances = [instance for instance in task.instances for _ in range(instance.repeats or 1)]
    digest = hashlib.sha256()
    for one in task.instances:
        request = [one.request_type, one.args, one.doc_id, one.idx, one.repeats, one.doc]
        digest.update(json.dumps(request, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    protocol = {
        "protocol": "lm-evaluation-harness",
        "harness": harness_version(),
        "dataset": name,
        "version": task.VERSION,
        "shots": task.get_config("num_fewshot"),
        "limit": limit,
        "seed": None if limit is None else seed,
        "of": n,
        "documents": chosen,
        "requests_sha256": digest.hexdigest(),
        "dtype": model["dtype"],
        "source": _source(task, rows),
    }
    # where the rows lie does not matter: what they say is in the requests
    asked = protocol | {"source": None, "model": model, "calibrune": __version__}
    return PreparedTask(name, task, finished_key(asked), protocol, instances)


def subset(task: str, n: int, limit: int, seed: int) -> list[int]:
    """`limit` of a task's `n` documents, in their order; a smaller limit's are among a larger one's.

    >>> set(subset("piqa", 1000, 3, seed=0)) < set(subset("piqa", 1000, 5, seed=0))
    True
    """
    key = seed_for(seed, "evaluation", task)
    return sorted(sorted(range(n), key=lambda i: rank_of(key, str(i)))[:limit])


def _source(task: Any, rows: LocalRows | None) -> dict[str, Any]:
    where = {"dataset": task.DATASET_PATH, "subset": task.DATASET_NAME}
    if rows is None:
        return {"hub": where}
    folder = local_set(task.DATASET_PATH, task.DATASET_NAME).folder
    return {"files": {name: sha256 for name, sha256 in rows.files.items() if Path(name).parent.name == folder}}


def _run(runs: Sequence[PreparedTask], lm: LanguageModel, batch_tokens: int, folder: Path) -> list[TaskItems]:
    """The items of every task: read where it was finished before, else measured and written down."""
    from lm_eval.models.utils import resolve_max_length

    from calibrune.evaluation.language_model import SharedContextLM

    records: dict[str, dict[str, Any] | None] = {run.key: read_finished(folder, run.key) for run in runs}
    waiting = {run.key: run for run in runs if records[run.key] is None}
    if read := sum(records[run.key] is not None for run in runs):
        log.info("tasks that were finished before: %d of %d; read from %s", read, len(runs), folder)
    if waiting:
        model = SharedContextLM(lm, batch_tokens=batch_tokens)
        with progress_bar(
            "evaluating", total=sum(len(run.instances) for run in waiting.values()), unit="request"
        ) as bar:
            model.scored = bar.update
            for key, run in waiting.items():
                bar.set_description(run.name)
                before = model.cut
                items = _measure(run, model)
                record = {"task": run.name, "cut": model.cut - before, "items": items}
                write_finished(folder, key, run.name, record)
                records[key] = record
    found = [
        TaskItems(run.name, run.task, _tupled(one["items"]), run.protocol | {"cut": one["cut"]})
        for run in runs
        if (one := records[run.key]) is not None
    ]
    if cut := sum(items.protocol["cut"] for items in found):
        n = sum(len(run.instances) for run in runs)
        context = resolve_max_length(lm.model.config, lm.tokenizer)
        log.warning(
            "longer than the model's context of %d tokens, and cut on the left: %d of %d requests", context, cut, n
        )
    return found


def _measure(run: PreparedTask, model: Any) -> dict[str, list[Any]]:
    """The metrics of each document, by the harness's own filters and code; by metric key."""
    kinds = defaultdict(list)
    for instance in run.instances:
        kinds[instance.request_type].append(instance)
    for kind, instances in kinds.items():
        for instance, answer in zip(instances, getattr(model, kind)(instances), strict=True):
            instance.resps.append(answer)
    by_document = defaultdict(list)
    for instance in run.task.instances:
        by_document[instance.doc_id].append(instance)
    items = defaultdict(list)
    with quiet_harness():
        run.task.apply_filters()
        for filtered in run.task.instances[0].filtered_resps:
            for document in by_document.values():
                document.sort(key=lambda instance: instance.idx)
                answers = [instance.filtered_resps[filtered] for instance in document]
                for metric, value in run.task.process_results(document[0].doc, answers).items():
                    items[f"{metric},{filtered}"].append(value)
    return json.loads(json.dumps(items, default=_plain))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _tupled(items: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """JSON has no tuples, and the harness's metrics are made of them."""
    return {key: [tuple(one) if isinstance(one, list) else one for one in values] for key, values in items.items()}
