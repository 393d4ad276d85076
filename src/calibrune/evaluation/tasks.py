"""Which tasks are meant, and the harness's own objects for them: with the hub's rows, or with those of a folder."""

import difflib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibrune.calibration.spec import parse_spec
from calibrune.errors import CalibruneError, ConfigError, CorpusError
from calibrune.evaluation.local_rows import ENDINGS, LocalRows, local_set
from calibrune.lm.hub import first_line
from calibrune.lm.loading import UNREADABLE
from calibrune.settings import nearest

SHOTS_SEED = 1234
"""The harness's own, for tasks that draw their examples."""


@dataclass(frozen=True)
class TaskRequest:
    """A task or group of the harness, by its name there."""

    name: str
    num_fewshot: int | None = None
    """Examples before each question; None: as the task says, or none."""


STUDY = {"boolq": 0, "piqa": 0, "hellaswag": 0, "winogrande": 0, "arc_easy": 0, "arc_challenge": 0, "mmlu": 5}
"""The seven tasks of the self-generation study (Ji et al., 2025, arXiv 2410.17711), and the examples of each."""

_FOLDERS = {
    "boolq": "super_glue/boolq",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    **{name: name for name in ("piqa", "hellaswag", "winogrande")},
}
"""Where the harness defines them: to read all of its 15,000 files takes longer than some of the tasks."""


def parse_tasks(text: str) -> tuple[TaskRequest, ...]:
    """Read "study" or "piqa,mmlu:num_fewshot=5"; what is named twice is meant once.

    >>> parse_tasks("piqa,mmlu:num_fewshot=5")
    (TaskRequest(name='piqa', num_fewshot=None), TaskRequest(name='mmlu', num_fewshot=5))

    Raises:
        ConfigError: an empty name, an option other than `num_fewshot`, or examples that are no count.
    """
    found: dict[TaskRequest, None] = {}
    for part in text.split(","):
        if not part.strip():
            raise ConfigError(f"--tasks {text!r} has an empty name in it; give names with commas between, or 'study'")
        name, options = parse_spec(part.strip())
        shots = options.pop("num_fewshot", None)
        if options:
            raise ConfigError(
                f"a task has no option {next(iter(options))!r}{nearest(next(iter(options)), ['num_fewshot'])}"
            )
        if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 0):
            raise ConfigError(f"{name}: num_fewshot cannot be {shots!r}; give a count of examples, 0 or more")
        if name == "study":
            found |= {TaskRequest(task, n if shots is None else shots): None for task, n in STUDY.items()}
        else:
            found[TaskRequest(name, shots)] = None
    return tuple(found)


@dataclass(frozen=True)
class LoadedTasks:
    """The harness's objects for one request."""

    request: TaskRequest
    tasks: dict[str, Any]
    """Single tasks by name, in the harness's order."""
    group: Any = None
    """The group that was asked for, if it says how its tasks are averaged; None for a single task, or a tag."""


def harness_version() -> str:
    """The version of the harness that is installed.

    Raises:
        ConfigError: there is none.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "tasks, and word perplexity, need lm-evaluation-harness, which is not installed: "
            "pip install 'calibrune[evaluate]'"
        )
    return version("lm_eval")


def load_tasks(requests: Sequence[TaskRequest], rows: LocalRows | None = None) -> list[LoadedTasks]:
    """The harness's tasks, ready to build requests; their rows from the hub, or from a folder.

    Raises:
        ConfigError: there is no such task, it needs what we do not have, or the harness is not installed.
        CorpusError: the rows of a task cannot be had.
    """
    installed = harness_version()
    with quiet_harness():
        manager = _manager([request.name for request in requests])
        for request in requests:
            if request.name not in manager.all_tasks:
                close = difflib.get_close_matches(request.name, [*manager.all_tasks, "study"], n=1)
                hint = (
                    f"did you mean {close[0]!r}?"
                    if close
                    else "`lm-eval ls tasks` prints all; 'study' is seven of them"
                )
                raise ConfigError(f"there is no task {request.name!r} in lm-evaluation-harness {installed}; {hint}")
        with _rows_from(rows):
            return [_load(manager, request, rows) for request in requests]


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Nothing of the harness on stderr, neither its log nor its many progress bars; and it compiles a template once."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            from lm_eval.utils import env

            # it compiles its templates anew for every example of every document, nineteen twentieths of its time
            before = vars(env).get("from_string")
            env.from_string = before or lru_cache(maxsize=1024)(env.from_string)
            try:
                yield
            finally:
                if before is None:
                    del env.from_string
    finally:
        logger.setLevel(level)


def _manager(names: Sequence[str]) -> Any:
    from lm_eval import tasks

    folders = {_FOLDERS.get(name, "mmlu/default" if name.startswith("mmlu") else "") for name in names}
    if "" not in folders:
        root = Path(tasks.__file__).parent
        manager = tasks.TaskManager(include_defaults=False, include_path=[str(root / one) for one in sorted(folders)])
        if set(names) <= set(manager.all_tasks):
            return manager
    return tasks.TaskManager()


def _load(manager: Any, request: TaskRequest, rows: LocalRows | None) -> LoadedTasks:
    try:
        loaded = manager.load(request.name)
    except CalibruneError:
        raise
    except UNREADABLE as error:
        where = "--data DIR reads local files" if rows is None else "check the files in --data"
        raise CorpusError(f"the task {request.name!r} cannot be read: {first_line(error)}; {where}") from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
            why = "pictures or sound" if getattr(task, "MULTIMODAL", False) else "to run code that the model wrote"
            raise ConfigError(f"the task {name!r} needs {why}, which is not supported; use the harness itself for it")
        if request.num_fewshot is not None:
            task.set_config("num_fewshot", request.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SHOTS_SEED)
        if rows is not None and task.get_config("num_fewshot"):
            _check_examples(task, rows)
    group = loaded.get("groups", {}).get(request.name)
    return LoadedTasks(request, loaded["tasks"], group if group is not None and group.has_aggregation else None)


@contextmanager
def _rows_from(rows: LocalRows | None) -> Iterator[None]:
    """While it lasts, tasks of the harness take their rows from `rows`; None: as they always do."""
    if rows is None:
        yield
        return
    from lm_eval.api.task import ConfigurableTask

    original = ConfigurableTask.download
    ConfigurableTask.download = lambda task, *args, **kwargs: _take(task, rows)
    try:
        yield
    finally:
        ConfigurableTask.download = original


class _Splits(dict[str, Any]):
    """Splits by name; one that has no file is empty, for the harness looks at some that it does not need."""

    def __missing__(self, split: str) -> Any:
        from datasets import Dataset

        return Dataset.from_list([])


def _take(task: Any, rows: LocalRows) -> None:
    """In the place of the harness's download: the splits that there are files for."""
    from datasets import Dataset

    config = task.config
    wanted = config.test_split or config.validation_split
    names = {wanted, config.training_split, config.validation_split, task.fewshot_cfg.split} - {None}
    found = {name: rows.rows(task.DATASET_PATH, task.DATASET_NAME, name) for name in sorted(names)}
    if not found.get(wanted):
        raise CorpusError(_missing(task, rows, wanted))
    task.dataset = _Splits({name: Dataset.from_list(some) for name, some in found.items() if some})
    if config.process_docs is not None:
        config.process_docs = _once(config.process_docs)


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The harness processes a split anew whenever it looks at it; this remembers."""
    done: dict[int, Any] = {}

    def processed(split: Any) -> Any:
        if id(split) not in done:
            done[id(split)] = (process(split), split)  # as long as it is held, no other has its id
        return done[id(split)][0]

    return processed


def _check_examples(task: Any, rows: LocalRows) -> None:
    split = task.fewshot_cfg.split or task.config.training_split or task.config.validation_split
    if not split:
        return
    if split not in task.dataset:
        raise CorpusError(f"{_missing(task, rows, split)} (the examples come from it; num_fewshot=0 needs none)")
    n, there = task.get_config("num_fewshot"), len(task.sampler.df)
    # a question is no example for itself
    most = there - (split == (task.config.test_split or task.config.validation_split))
    if n > most:
        where = rows.find(local_set(task.DATASET_PATH, task.DATASET_NAME), split)
        raise CorpusError(
            f"{task.config.task} takes {n} examples from {where}, which has {there} rows{_of_subset(task)}; "
            f"add rows, or ask for num_fewshot={most}"
        )


def _missing(task: Any, rows: LocalRows, split: str) -> str:
    where = local_set(task.DATASET_PATH, task.DATASET_NAME)
    needs = f"{task.config.task} needs the rows{_of_subset(task)} of its {split} split"
    if path := rows.find(where, split):
        return f"{needs}, and {path} has none; check --data"
    first, *rest = (f"{split}{ending}" for ending in reversed(ENDINGS))
    folders = " or ".join(map(str, rows.folders(where)))
    return f"{needs}, and there is no {first} (or {', '.join(rest)}) in {folders}; check --data"


def _of_subset(task: Any) -> str:
    where = local_set(task.DATASET_PATH, task.DATASET_NAME)
    return f" of the subset {task.DATASET_NAME!r}" if where.subset_field else ""
